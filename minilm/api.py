"""The Python interface: train a GPT, open a run, write with it, look at its report; in a notebook too.

import minilm

run = minilm.train(preset="quick", data="my.txt", steps=500)
run.generate("Once", max_new_tokens=200, seed=1)
run.report()
"""

from __future__ import annotations

import html
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kernels import BackendUnavailable
from minilm.config import RunConfig
from minilm.errors import UserError
from minilm.training import journal
from minilm.training.loggers import by_step

if TYPE_CHECKING:
    from minilm.corpus.tokenizer import Tokenizer
    from minilm.model import GPT

PathLike = str | os.PathLike[str]
NOTEBOOK_COLUMNS = 110
PAGE_HEIGHT = 900  # CSS pixels, of a report within a notebook


def train(
    preset: str | None = None,
    data: PathLike | None = None,
    *,
    out: PathLike | None = None,
    init: PathLike | None = None,
    steps: int | None = None,
    seed: int | None = None,
    kernels: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    compile: str | None = None,
    graphs: str | None = None,
    log: str | Iterable[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    baselines: bool = True,
    report: bool = True,
    quiet: bool = False,
) -> Run:
    """Train a GPT and return its run: what `minilm train` does, with the same names.

    preset: "quick" (the default on a CPU), "capstone" (the default on a GPU), "tiny" ... data: "fables", "shakespeare",
    "python", or a file, a folder or a glob. out: the run folder, runs/<preset>-NNN by default. init: a run, an export
    or a model that transformers saved, to begin from. steps: optimizer updates. kernels: "auto", "reference", "torch"
    or "triton". log: "tensorboard", "wandb", "csv", or several. settings: any other, such as {"model.n_layers": 6,
    "train.lr": 3e-4}; minilm/config.py has them all. baselines: fit n-gram models to compare with afterwards. report:
    write the report. quiet: print nothing.

    Interrupted (in a notebook: the stop button), it finishes the step, saves, and returns the run as it stands; go on
    by run.resume(). Outside the main thread signals are left alone. Raises UserError for whatever a person can mend;
    nothing of an earlier run is lost by that.
    """
    given = _settings(settings, data, steps, seed, kernels, device, dtype, compile, graphs, log)
    return _train(preset, given, out, init, False, baselines, report, quiet)


def open_run(path: PathLike) -> Run:
    """A run that `minilm train` or train() wrote, finished or not. Raises UserError where `path` holds none."""
    path = Path(path)
    journal.check_folder(path)
    journal.read_config(path)
    return Run(path)


class Run:
    """A run folder. What is asked for is read when it is asked for: a run that still goes on can be looked at."""

    def __init__(self, path: PathLike):
        self.path = Path(path)
        self._models: dict[tuple[Any, ...], tuple[GPT, Tokenizer]] = {}

    def __repr__(self) -> str:
        best = self.best
        reached = f"step {best['step']}, validation loss {best['val_loss']:.4f}" if best else "no evaluation yet"
        return f"Run({str(self.path)!r}, best: {reached})"

    @property
    def config(self) -> RunConfig:
        """The resolved settings: config.model, config.train, config.data."""
        return journal.read_config(self.path)

    @property
    def history(self) -> list[dict[str, Any]]:
        """A dictionary a step, in order, for pandas.DataFrame(run.history): step, tokens (read so far), wall (seconds
        of training), loss (nats a token), lr, grad_norm, tokens_per_s, val_loss (nats a token), val_bpb (bits a byte).

        None where there is none, as for val_loss between evaluations."""
        path = self.path / journal.METRICS
        return by_step(journal.read_rows(path) if path.exists() else [])

    def column(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps int64, values float64) of one key of the history, where it has a value.

        Raises UserError for a key that the history does not have."""
        rows = self.history
        if rows and key not in rows[0]:
            raise UserError(f"There is no column {key!r} in the history; there are {', '.join(rows[0])}.")
        known = [(row["step"], row[key]) for row in rows if row[key] is not None]
        return np.array([step for step, _ in known], dtype=np.int64), np.array([v for _, v in known], dtype=np.float64)

    @property
    def best(self) -> dict[str, Any] | None:
        """The evaluation with the lowest loss: step, tokens, wall, val_loss, val_bpb; None before there is one."""
        keys = ("step", "tokens", "wall", "val_loss", "val_bpb")
        rows = [{key: row[key] for key in keys} for row in self.history if row["val_loss"] is not None]
        return min(rows, key=lambda row: row["val_loss"], default=None)

    def samples(self) -> list[dict[str, Any]]:
        """The texts that the model wrote as it trained: step, prompt, temperature, top_k, top_p, seed, text."""
        found = []
        for path in sorted((self.path / journal.SAMPLES).glob("step_*.json")):
            saved = journal.read_json(path)
            found += [{"step": saved["step"], **sample} for sample in saved["samples"]]
        return found

    def model(
        self, checkpoint: str | int = "best", *, kernels: str = "auto", device: str = "auto", dtype: str = "float32"
    ) -> tuple[GPT, Tokenizer]:
        """The model at the checkpoint "best", "last" or a step that was kept, in evaluation mode, and its tokenizer.

        The same arguments give the same model again. Raises UserError for what is missing or damaged."""
        from minilm.sampling.generate import load_run
        from minilm.training.checkpoint import find

        with _plain_errors():
            stamp = find(self.path, str(checkpoint)).stat().st_mtime_ns
            key = (str(checkpoint), kernels, device, dtype, stamp)
            if key not in self._models:
                self._models = {key: load_run(self.path, str(checkpoint), kernels, device, dtype)}
            return self._models[key]

    def generate(
        self,
        prompt: str = "",
        max_new_tokens: int = 500,
        temperature: float = 0.8,
        *,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        unknown: str = "error",
        checkpoint: str | int = "best",
        kernels: str = "auto",
        device: str = "auto",
        dtype: str = "float32",
    ) -> str:
        """The prompt and how the model goes on. temperature 0 is greedy; seed None draws anew each time.

        "" begins a new document. The text ends before the first of the strings `stop`. unknown: "replace" lets the
        prompt hold characters that the tokenizer has not. Raises UserError for what is refused."""
        from minilm.sampling.generate import Writer, sampling_of

        sampling = sampling_of(
            temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty
        )
        model, tokenizer = self.model(checkpoint, kernels=kernels, device=device, dtype=dtype)
        stops = [stop] if isinstance(stop, str) else list(stop)
        writer = Writer(model, tokenizer, [prompt], max_new_tokens, sampling, seed, stops, unknown)
        for _ in writer:
            pass
        return prompt + writer.texts[0]

    def report(self, out: PathLike | None = None) -> Page:
        """Write report.html, report.md and the figures into `out` (the run folder by default); a notebook shows it."""
        from minilm.report.page import write_report

        return Page(write_report([self.path], None if out is None else Path(out)))

    def resume(
        self,
        steps: int | None = None,
        *,
        kernels: str | None = None,
        device: str | None = None,
        log: str | Iterable[str] | None = None,
        settings: Mapping[str, Any] | None = None,
        baselines: bool = True,
        report: bool = True,
        quiet: bool = False,
    ) -> Run:
        """Go on from the last checkpoint, up to `steps` in all, and return the run. Arguments and errors as train()."""
        given = _settings(settings, None, steps, None, kernels, device, None, None, None, log)
        return _train(None, given, self.path, None, True, baselines, report, quiet, self)


@dataclass(frozen=True)
class Page:
    """A report: path of report.html. A notebook shows the page itself."""

    path: Path

    def _repr_html_(self) -> str:
        page = html.escape(self.path.read_text(encoding="utf-8"), quote=True)
        return f'<iframe srcdoc="{page}" style="width: 100%; height: {PAGE_HEIGHT}px; border: 0"></iframe>'


@contextmanager
def _plain_errors() -> Iterator[None]:
    """One kind of error for a person, whichever package noticed."""
    try:
        yield
    except BackendUnavailable as error:
        raise UserError(str(error)) from None


def _settings(
    settings: Mapping[str, Any] | None,
    data: PathLike | None,
    steps: int | None,
    seed: int | None,
    kernels: str | None,
    device: str | None,
    dtype: str | None,
    compile: str | None,
    graphs: str | None,
    log: str | Iterable[str] | None,
) -> dict[str, dict[str, Any]]:
    """{section: {key: value}} of what was given. Raises UserError for a name that is not section.key or given twice."""
    named: dict[str, Any] = {
        "data.source": None if data is None else os.fspath(data),
        "train.steps": steps,
        "train.seed": seed,
        "train.kernels": kernels,
        "train.device": device,
        "train.dtype": dtype,
        "train.compile": compile,
        "train.graphs": graphs,
        "train.log": log if log is None or isinstance(log, str) else ",".join(log),
    }
    sections: dict[str, dict[str, Any]] = {}
    for name, value in [*named.items(), *(settings or {}).items()]:
        section, dot, key = name.partition(".")
        if not dot:
            raise UserError(f"settings has {name!r}; its names are of the form section.key, such as train.lr.")
        if name in named and value is None:
            continue
        if key in sections.setdefault(section, {}):
            raise UserError(f"{name} is given twice, by a parameter and in settings; give it once.")
        sections[section][key] = value
    return sections


def _train(
    preset: str | None,
    settings: dict[str, dict[str, Any]],
    out: PathLike | None,
    init: PathLike | None,
    resume: bool,
    baselines: bool,
    report: bool,
    quiet: bool,
    run: Run | None = None,
) -> Run:
    from rich.console import Console

    from minilm.pipeline import train_and_report

    console = Console(quiet=quiet)
    if console.is_jupyter:  # a notebook keeps lines of text, and has no cursor that could move up
        console = Console(quiet=quiet, force_jupyter=False, force_terminal=False, width=NOTEBOOK_COLUMNS)
    folder, start = (None if path is None else Path(path) for path in (out, init))
    with _plain_errors():
        result = train_and_report(preset, settings, folder, start, resume, baselines, report, console)
    if result.signal is not None and result.first:
        console.print("From Python: run.resume()", highlight=False)
    return run or Run(result.path)
