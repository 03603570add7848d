"""A model as it learns: prompts by temperatures by checkpoints, to be read, and how good the texts are, in figures.

samples/watch.json and watch.txt  one continuation of every prompt at every temperature from every checkpoint
quality.json                      the figures of quality.py for every checkpoint and temperature, beside held-out text
                                  and an n-gram model; intervals are 95%
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minilm.corpus.dataset import Dataset, prepared
from minilm.corpus.tokenizer import Tokenizer
from minilm.errors import UserError
from minilm.files import write_atomically
from minilm.model import GPT
from minilm.sampling import quality as judges
from minilm.sampling import yardsticks
from minilm.sampling.baselines import SMOOTHING
from minilm.sampling.generate import load_run
from minilm.training import checkpoint
from minilm.training.journal import METRICS, SAMPLES, check_folder, read_config, read_rows, write_json

FORMAT = 1
PROMPTS = ("", "The ", "One day ")
TEMPERATURES = (0.3, 0.7, 1.0, 1.5)
WATCH, WATCH_TEXT, QUALITY = "watch.json", "watch.txt", "quality.json"
Progress = Callable[[int, int, str], None]  # steps done, of how many, what comes next


def write_samples(
    run: Path,
    prompts: Sequence[str] | None = None,
    temperatures: Sequence[float] = TEMPERATURES,
    max_new_tokens: int = 150,
    samples: int = 20,
    seed: int = 0,
    kernels_name: str = "auto",
    device_name: str = "auto",
    dtype: str = "float32",
    quality: bool = True,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Writes RUN/samples/watch.json and watch.txt and, with `quality`, RUN/quality.json; nothing before all is known.

    samples: texts judged at each checkpoint and temperature, of max_new_tokens each. prompts: PROMPTS by default, as
    far as the tokenizer has their characters; "" begins a new document. The same arguments give the same files.
    Returns {"watch": ..., "quality": ... or None, "files": [paths]}, the contents as written. Raises UserError for no
    run, no checkpoint, an argument out of range, a prompt that cannot be encoded, or data that are gone.
    """
    temperatures = _checked(temperatures, max_new_tokens, samples)
    found = checkpoints_of(run)
    config = read_config(run)
    data = prepared(config.data) if quality else None
    total = len(found) * len(temperatures) * (2 if quality else 1) + (len(temperatures) + 2 if quality else 0)
    tell, done = on_progress or (lambda done, total, what: None), 0

    def step(what: str) -> None:
        nonlocal done
        tell(done, total, what)
        done += 1

    rows = read_rows(run / METRICS) if (run / METRICS).exists() else []
    evaluations = {row["step"]: row for row in rows if isinstance(row.get("val_bpb"), float)}
    judge = _Judge(data, max_new_tokens, samples, seed, rows, step) if data is not None else None
    watched, cells, known = [], [], []
    for number, (name, which, at) in enumerate(found):
        model, tokenizer = load_run(run, which, kernels_name, device_name, dtype)
        contexts = _contexts(prompts, tokenizer)
        bpb = evaluations.get(at, {}).get("val_bpb")
        continued = []
        for temperature in temperatures:
            step(f"{name}, temperature {temperature:g}: texts")
            for prompt, context in contexts.items():
                text = _continued(model, tokenizer, context, max_new_tokens, temperature, seed)
                continued.append({"prompt": prompt, "temperature": temperature, "text": text})
            if judge is not None:
                step(f"{name}, temperature {temperature:g}: judged")
                figures = judge.cell(yardsticks.model_writer(model, temperature, _own(seed, temperature)), temperature)
                cells.append({"checkpoint": number, "step": at, "temperature": temperature, **figures})
        if judge is not None:
            row = yardsticks.bits_per_byte(model, judge.data, bpb, config.train.eval_tokens)
            bpb = row["value"]
            known.append({"name": name, "step": at, "best": "best" in name.split(", "), "bits_per_byte": row})
        watched.append({"name": name, "step": at, "bits_per_byte": bpb, "samples": continued})
    settings = {"seed": seed, "max_new_tokens": max_new_tokens, "temperatures": temperatures}
    watch = {"format": FORMAT, **settings, "prompts": list(contexts), "checkpoints": watched}
    judged = judge and {"format": FORMAT, **settings, **judge.yardsticks(temperatures), "checkpoints": known}
    if judged:
        judged["cells"] = cells
    tell(total, total, "written")
    files = [run / SAMPLES / WATCH, run / SAMPLES / WATCH_TEXT]
    write_json(files[0], watch)
    write_atomically(files[1], lambda part: part.write_text(as_text(watch), encoding="utf-8", newline="\n"))
    if judged:
        files.append(run / QUALITY)
        write_json(files[2], judged)
    return {"watch": watch, "quality": judged, "files": files}


def checkpoints_of(run: Path) -> list[tuple[str, str, int]]:
    """(name, what load_run() calls it, step) of the checkpoints of a run in order of step: those kept, the best and the
    last. Raises UserError where there is none."""
    check_folder(run)
    if not run.is_dir():
        raise UserError(f"There is no run folder {run}; name one that minilm train wrote.")
    folder = run / checkpoint.FOLDER
    steps = sorted(int(p.stem[5:]) for p in folder.glob("step_*.pt") if p.stem[5:].isdecimal())
    by_step = {step: (f"step {step:,}", str(step)) for step in steps}
    for which in ("best", "last"):
        try:
            path = checkpoint.find(run, which)
        except UserError:
            continue
        step = checkpoint.verify(path)["step"]
        name, other = by_step.get(step, (f"step {step:,}", which))
        by_step[step] = (f"{name}, {which}", other)
    if not by_step:
        raise UserError(
            f"{run} has no checkpoint yet; train it on, for minilm train saves one at the latest at its end."
        )
    return [(name, which, step) for step, (name, which) in sorted(by_step.items())]


class _Judge:
    """The figures of texts that begin a document, and of what they are held against."""

    def __init__(self, data: Dataset, length: int, samples: int, seed: int, rows: list, step: Callable[[str], None]):
        self.data, self.length, self.samples, self.seed, self.step = data, length, samples, seed, step
        self.fables = data.meta["source"] == "fables"
        self.start = yardsticks.beginning_of(data)
        step("training text indexed")
        by = "character" if data.tokenizer.kind == "char" else "word"
        self.training = judges.Training(yardsticks.training_text(data), by)
        starts = yardsticks.held_out_starts(data, length)
        if not starts:
            raise UserError(
                f"The held-out text has {len(data.val):,} tokens and texts of {length:,} are judged; lower "
                "--max-new-tokens, or leave the figures out by --no-quality."
            )
        self.held_out = [yardsticks.decoded(data.tokenizer, data.val[s : s + length]) for s in starts]
        self.held_out_stories = [
            yardsticks.decoded(data.tokenizer, data.val[s : s + yardsticks.STORY_CHARACTERS])
            for s in yardsticks.spread(yardsticks.document_starts(data))
        ]
        # three quarters of a usual text: nearly every text that is like the held-out ones has so many words
        self.distinct_words = max(2, int(0.75 * np.median([len(judges.words_of(text)) for text in self.held_out])))
        step("n-gram model fitted")
        seen = max((row["tokens"] for row in rows if "loss" in row), default=len(data.train))
        self.ngram, self.fitted = yardsticks.fit_ngram(data, seen)

    def cell(self, write: yardsticks.Writer, temperature: float) -> dict[str, Any]:
        """Greedy texts are all the same: one is enough."""
        count = self.samples if temperature > 0 else 1
        ids = yardsticks.written(write, self.start, count, self.length)
        texts = [yardsticks.decoded(self.data.tokenizer, row) for row in ids]
        stories = yardsticks.stories(write, self.data.tokenizer, self.start, ids) if self.fables else []
        return self.figures(texts, stories)

    def figures(self, texts: Sequence[str], stories: Sequence[str]) -> dict[str, Any]:
        counted = judges.tally(texts, self.distinct_words, self.training)
        counted |= judges.story_tally(stories) if stories else {}
        longest = max(texts, key=lambda text: int(self.training.matches(text).max(initial=0)))
        matches = self.training.matches(longest)
        at = int(matches.argmax()) if len(matches) else 0
        copied = longest[at : at + int(matches.max(initial=0))]
        return {**judges.summary(counted, self.seed), "copied": copied}

    def yardsticks(self, temperatures: Sequence[float]) -> dict[str, Any]:
        data, grams = self.data, []
        for temperature in temperatures:
            self.step(f"{self.ngram.order}-gram model, temperature {temperature:g}")
            write = yardsticks.ngram_writer(self.ngram, temperature, _own(self.seed, temperature))
            grams.append({"temperature": temperature, **self.cell(write, temperature)})
        floor = data.floor and data.bits_per_byte(data.floor)
        return {
            "samples": self.samples,
            "novelty_of": self.training.by,
            "distinct_words": self.distinct_words,
            "training_characters": data.meta["train"]["characters"],
            "searched_characters": self.training.characters,
            "held_out": {"bits_per_byte": floor, **self.figures(self.held_out, self.held_out_stories * self.fables)},
            "ngram": {
                "order": self.ngram.order,
                "smoothing": SMOOTHING,
                "fitted_on_tokens": self.fitted,
                "bits_per_byte": yardsticks.ngram_bits_per_byte(self.ngram, data, 128),
                "cells": grams,
            },
        }


def _checked(temperatures: Sequence[float], max_new_tokens: int, samples: int) -> list[float]:
    for temperature in temperatures:
        if not math.isfinite(temperature) or temperature < 0:
            raise UserError(f"The temperature is {temperature}; it must be a number of at least 0, 0 being greedy.")
    for name, value in (("max_new_tokens", max_new_tokens), ("samples", samples)):
        if value < 1:
            raise UserError(f"{name} is {value}; it must be at least 1.")
    if not temperatures:
        raise UserError("No temperature was given; give at least one, such as 0.7.")
    return sorted({float(temperature) for temperature in temperatures})


def _contexts(prompts: Sequence[str] | None, tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    """prompt -> ids; of our own prompts those that the tokenizer can write."""
    contexts = {}
    for prompt in PROMPTS if prompts is None else prompts:
        try:
            contexts[prompt] = tokenizer.encode(prompt) if prompt else tokenizer.beginning()
        except UserError:
            if prompts is not None:
                raise
    if not contexts:
        raise UserError('No prompt was given; give at least one, "" to begin a new document.')
    return contexts


def _continued(
    model: GPT, tokenizer: Tokenizer, context: np.ndarray, length: int, temperature: float, seed: int
) -> str:
    write = yardsticks.model_writer(model, temperature, _own(seed, temperature, *context.tolist()))
    return yardsticks.decoded(tokenizer, yardsticks.written(write, context, 1, length)[0])


def _own(seed: int, *what: float) -> int:
    """A seed for what is written at a temperature after a prompt: the same at every checkpoint."""
    return zlib.crc32(repr((seed, what)).encode())


def as_text(watch: dict[str, Any]) -> str:
    """What watch.txt holds: prompt after prompt, at every temperature from the first checkpoint to the last."""
    lines = []
    for prompt in watch["prompts"]:
        for temperature in watch["temperatures"]:
            after = f"after {prompt!r}" if prompt else "a new document"
            lines += [f"===== {after}, temperature {temperature:g}", ""]
            for point in watch["checkpoints"]:
                bits = point["bits_per_byte"]
                lines.append(f"--- {point['name']}" + (f" ({bits:.3f} bits a byte)" if bits is not None else ""))
                lines += [
                    prompt + s["text"]
                    for s in point["samples"]
                    if (s["prompt"], s["temperature"]) == (prompt, temperature)
                ]
                lines.append("")
    return "\n".join(lines)


def run_samples(run: Path, console: Any, **options: Any) -> dict[str, Any]:
    """write_samples() with its progress, and a table of what came of it, on a rich console."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        found = write_samples(
            run,
            on_progress=lambda done, total, what: bar.update(task, completed=done, total=total, description=what),
            **options,
        )
    if found["quality"]:
        from minilm.sampling.table import print_quality

        print_quality(found["quality"], console)
    for path in found["files"]:
        console.print(f"Written: {path}", highlight=False, markup=False, soft_wrap=True)
    return found
