"""A study on disk: a manifest of trials, one subprocess each, and what came of them.

STUDY/
  study.json         what is compared: the options, and a row a trial (id, arm, axis, seed, lr_factor, config)
  trials/<id>/       the run folder of a trial, as `minilm train` writes it
  trials/<id>.json   what came of it, written when it has ended: status, losses, wall, tokens/s, peak memory
  trials/<id>.log    what it printed

A trial is known by the hash of its configuration and is never run twice. Whatever is killed, the same command again
goes on: a run folder resumes from its last checkpoint, bit for bit on a CPU, so the table ends as if nothing had
happened. Several processes may work on one folder (a trial in hand is locked), or on copies that are merged later.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minilm.config import RunConfig
from minilm.errors import UserError
from minilm.studies.design import Trial
from minilm.training.journal import METRICS, read_json, read_rows, write_json

FORMAT = 1
MANIFEST, TRIALS = "study.json", "trials"
FINISHED, DIVERGED, FAILED, MISSING = "finished", "diverged", "failed", "missing"
STOPPED_EXIT, BUSY_EXIT = 75, 76  # of a trial that was told to stop and has saved; of one that another process runs


@dataclass(frozen=True)
class Outcome:
    """What came of a trial. val_loss: nats a token at the last step over the validation split; None unless finished."""

    id: str
    arm: str
    axis: str
    seed: int
    lr_factor: float
    config: dict[str, Any]
    status: str
    reason: str = ""
    val_loss: float | None = None
    best_val_loss: float | None = None
    best_step: int | None = None
    steps: int | None = None
    tokens: int | None = None
    epochs: float | None = None
    wall: float | None = None  # seconds of training, over all resumes
    tokens_per_s: float | None = None
    peak_bytes: int | None = None  # of the process on a CPU, of its tensors on a GPU
    parameters: dict[str, int] | None = None
    flops_per_token: int | None = None
    device: str | None = None


class Study:
    """A study folder. Raises UserError where the folder is none, or another."""

    def __init__(self, path: Path):
        self.path = path
        self.manifest = read_json(path / MANIFEST)
        if self.manifest.get("format") != FORMAT or "trials" not in self.manifest:
            raise UserError(f"{path / MANIFEST} is no manifest of a study of format {FORMAT}.")

    @classmethod
    def create(cls, path: Path, options: dict[str, Any], trials: Sequence[Trial], resume: bool) -> Study:
        """A new study, or with `resume` the one that is there, if it is of the same trials."""
        rows = [
            {"id": t.id, "arm": t.arm, "axis": t.axis, "seed": t.seed, "lr_factor": t.lr_factor}
            | {"config": t.config.to_dict()}
            for t in trials
        ]
        if (path / MANIFEST).exists():
            study = cls(path)
            if not resume:
                raise UserError(f"{path} holds a study already; go on with it by --resume, or name another by --out.")
            if [row["id"] for row in study.rows] != [row["id"] for row in rows]:
                raise UserError(f"{path} holds a study of other trials; name another folder by --out.")
            return study
        if path.exists() and any(path.iterdir()):
            raise UserError(f"{path} is not empty and holds no study; name another folder by --out.")
        (path / TRIALS).mkdir(parents=True, exist_ok=True)
        write_json(path / MANIFEST, {"format": FORMAT, "name": path.name, "options": options, "trials": rows})
        return cls(path)

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self.manifest["trials"]

    @property
    def options(self) -> dict[str, Any]:
        return self.manifest.get("options", {})

    def folder(self, trial_id: str) -> Path:
        return self.path / TRIALS / trial_id

    def result(self, trial_id: str) -> dict[str, Any] | None:
        path = self.path / TRIALS / f"{trial_id}.json"
        return read_json(path) if path.exists() else None

    def outcomes(self) -> list[Outcome]:
        """One a row of the manifest, in its order."""
        found = []
        for row in self.rows:
            result = self.result(row["id"]) or {"status": MISSING, "reason": "not run yet"}
            found.append(Outcome(**row, **result))
        return found

    def open_rows(self, shard: tuple[int, int] = (1, 1)) -> list[dict[str, Any]]:
        """The rows of this shard, of n every n-th, that have no result yet. A failed trial is tried again."""
        number, of = shard
        mine = [row for i, row in enumerate(self.rows) if i % of == number - 1]
        return [row for row in mine if (self.result(row["id"]) or {"status": FAILED})["status"] == FAILED]

    def merge(self, other: Path) -> int:
        """Take the results that a copy of this study has and this one has not; returns how many."""
        theirs, taken = Study(other), 0
        if {row["id"] for row in theirs.rows} != {row["id"] for row in self.rows}:
            raise UserError(f"{other} is a study of other trials than {self.path}; only parts of one study merge.")
        for row in self.rows:
            result, mine = theirs.result(row["id"]), self.result(row["id"])
            if result and result["status"] != FAILED and (mine is None or mine["status"] == FAILED):
                target = self.folder(row["id"])
                with contextlib.suppress(FileNotFoundError):
                    shutil.rmtree(target)
                shutil.copytree(theirs.folder(row["id"]), target, ignore=shutil.ignore_patterns("*.lock"))
                write_json(self.path / TRIALS / f"{row['id']}.json", result)
                taken += 1
        return taken


# --- running ----------------------------------------------------------------------------------------------------------


def run_trials(
    study: Study,
    jobs: int = 1,
    shard: tuple[int, int] = (1, 1),
    say: Callable[[str], None] = lambda _: None,
    stopping: list[int] | None = None,
) -> bool:
    """Run what is open, `jobs` at a time; False where a signal stopped it before the end (all is saved).

    A trial that another process has in hand is left to it. A failed trial stops nobody; its result says why. The
    signals that came are appended to `stopping`.
    """
    stopping = [] if stopping is None else stopping
    rows = study.open_rows(shard)
    begun, done = time.monotonic(), 0
    threads = max(1, (os.cpu_count() or 1) // jobs)
    children: dict[str, subprocess.Popen[bytes]] = {}

    def stop(number: int, _frame: Any) -> None:
        stopping.append(number)
        for child in list(children.values()):
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with ThreadPoolExecutor(jobs) as pool:
            waiting: set[Future[tuple[dict[str, Any], str]]] = set()
            upcoming = iter(rows)
            while True:
                while len(waiting) < jobs and not stopping and (row := next(upcoming, None)) is not None:
                    waiting.add(pool.submit(_run_one, study, row, threads, children, stopping))
                if not waiting:
                    break
                finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in finished:
                    row, what = future.result()
                    done += 1
                    left = (time.monotonic() - begun) / done * (len(rows) - done)
                    rate = "" if row["lr_factor"] == 1 else f", rate x{row['lr_factor']:g}"
                    name = f"{row['arm']}{rate}, seed {row['seed']}"
                    say(f"{done}/{len(rows)}  {name}: {what}  ({_minutes(left)} left)")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return not stopping


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _run_one(
    study: Study, row: dict[str, Any], threads: int, children: dict[str, subprocess.Popen[bytes]], stopping: list[int]
) -> tuple[dict[str, Any], str]:
    """One trial to its end, in a process of its own; returns the row and what became of it, in words."""
    trial_id = row["id"]
    if (result := study.result(trial_id)) and result["status"] != FAILED:
        return row, "done by another process"
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
    command = [sys.executable, "-m", "minilm.studies.trial", str(study.path), trial_id]
    with (study.path / TRIALS / f"{trial_id}.log").open("ab") as log:
        child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
        children[trial_id] = child
        if stopping:  # between the signal and this line
            child.send_signal(signal.SIGTERM)
        code = child.wait()
        del children[trial_id]
    if code == STOPPED_EXIT:
        return row, "stopped and saved"
    if code == BUSY_EXIT:
        return row, "in the hands of another process"
    result = study.result(trial_id)
    if code or result is None:
        reason = f"its process ended with {code}; see {TRIALS}/{trial_id}.log"
        write_json(study.path / TRIALS / f"{trial_id}.json", {"status": FAILED, "reason": reason})
        return row, f"failed: {reason}"
    loss = result.get("val_loss")
    return (
        row,
        f"{result['status']}, {result.get('reason', '')[:100] if loss is None else f'validation loss {loss:.4f}'}",
    )


# --- reading runs that were not made by a study -----------------------------------------------------------------------


def outcome_of(run: Path, arm: str = "", axis: str = "") -> Outcome:
    """What a finished run folder says. Raises UserError for a folder that is none."""
    saved = read_json(run / "config.json")
    config = RunConfig.from_dict(saved)
    facts = saved.get("facts", {})
    rows = read_rows(run / METRICS)
    evaluations = [row for row in rows if "val_loss" in row]
    steps = [row for row in rows if "loss" in row]
    last = evaluations[-1] if evaluations else None
    finite = [e for e in evaluations if e["val_loss"] is not None and math.isfinite(e["val_loss"])]
    best = min(finite, key=lambda e: e["val_loss"], default=None)
    complete = last is not None and last["step"] == config.train.steps
    diverged = complete and (last["val_loss"] is None or not math.isfinite(last["val_loss"]))
    status = DIVERGED if diverged else FINISHED if complete else MISSING
    wall = steps[-1]["wall"] if steps else None
    tokens = steps[-1]["tokens"] if steps else None
    return Outcome(
        id=re.sub(r"[^\w-]", "_", run.resolve().name),
        arm=arm,
        axis=axis,
        seed=config.train.seed,
        lr_factor=1.0,
        config=config.to_dict(),
        status=status,
        reason="" if status == FINISHED else "the last loss is not finite" if diverged else "not at its last step",
        val_loss=last["val_loss"] if status == FINISHED else None,
        best_val_loss=best["val_loss"] if best else None,
        best_step=best["step"] if best else None,
        steps=steps[-1]["step"] if steps else None,
        tokens=tokens,
        epochs=facts.get("epochs"),
        wall=wall,
        tokens_per_s=tokens / wall if wall else None,
        peak_bytes=facts.get("peak_bytes"),
        parameters=facts.get("parameters"),
        flops_per_token=facts.get("flops_per_token"),
        device=facts.get("device_name"),
    )


def result_of(outcome: Outcome) -> dict[str, Any]:
    """The part of an outcome that a study writes beside a trial."""
    keys = ("id", "arm", "axis", "seed", "lr_factor", "config")
    return {name: value for name, value in vars(outcome).items() if name not in keys}


def from_runs(folders: Iterable[Path], baseline: Path | None = None) -> list[Outcome]:
    """Outcomes of finished runs and of studies, as arms: runs whose settings differ in nothing but the seed are one.

    The arm of `baseline`, or of the first run, is the baseline; the others are called by what they change.
    """
    found: list[Outcome] = []
    for folder in folders:
        if (folder / MANIFEST).exists():
            found += [outcome_of(Study(folder).folder(o.id)) for o in Study(folder).outcomes() if o.status == FINISHED]
        else:
            found.append(outcome_of(folder))
    if not found:
        raise UserError("No run is named; --from takes finished run folders, or studies.")
    base = outcome_of(baseline) if baseline else found[0]
    named = []
    for number, outcome in enumerate(found):
        changes = _differences(base.config, outcome.config)
        label = ", ".join(changes) or "baseline"
        known = {"id": f"{number:02d}_{outcome.id}", "arm": label, "axis": "settings" if changes else "baseline"}
        named.append(Outcome(**{**vars(outcome), **known}))
    return named


def _differences(base: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """What `other` changes, but for the seed and what follows from other settings alone."""
    ignored = {("train", "seed"), ("model", "vocab_size")}
    return [
        f"{key} {other[section][key]}"
        for section in ("model", "train", "data")
        for key in other[section]
        if (section, key) not in ignored and base[section].get(key) != other[section][key]
    ]
