"""The run folder: who holds it, and the lines it gathers.

config.json    the resolved configuration and the facts of the machine
data.json      meta.json of the data; tokenizer.json beside it
metrics.jsonl  a row a step: step, tokens, loss, lr, grad_norm, tokens_per_s, wall; and evaluation rows:
               step, tokens, val_loss, val_bpb, wall
events.jsonl   what happened: started, resume, config_change, warning, best, spike, rewind, non_finite, saved, stopped,
               finished
checkpoints/ samples/
metrics.csv tensorboard/ wandb/: see loggers.py
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from minilm.config import RunConfig
from minilm.errors import UserError
from minilm.files import check_plain, make_folder, remove_parts, sync_file, write_atomically

CONFIG, DATA, METRICS, EVENTS, SAMPLES = "config.json", "data.json", "metrics.jsonl", "events.jsonl", "samples"
LOCK, HOLDER = ".lock", ".holder"
FILES, FOLDERS = (CONFIG, DATA, METRICS, EVENTS, "tokenizer.json", LOCK, HOLDER), ("", SAMPLES, "checkpoints")
LOCK_WAIT_S = 1.0  # a git that a killed process had just started still holds its files for a moment
SAID_AGAIN = {"best", "spike", "non_finite", "finished"}  # by the steps that a resumed run repeats


def next_run_folder(preset: str, root: Path = Path("runs")) -> Path:
    """runs/<preset>-NNN, the first number that is free."""
    taken = [int(p.name.rsplit("-", 1)[1]) for p in root.glob(f"{preset}-*") if p.name.rsplit("-", 1)[1].isdigit()]
    return root / f"{preset}-{max(taken, default=0) + 1:03d}"


def newest_run_folder(preset: str, root: Path = Path("runs")) -> Path:
    """The run of this preset with the highest number. Raises UserError where there is none."""
    taken = [p for p in root.glob(f"{preset}-*") if p.name.rsplit("-", 1)[1].isdigit() and (p / CONFIG).exists()]
    if not taken:
        raise UserError(f"There is no run of {preset} under {root} to resume; name its folder by --out.")
    return max(taken, key=lambda p: int(p.name.rsplit("-", 1)[1]))


def write_json(path: Path, content: Any) -> None:
    text = json.dumps(content, indent=1) + "\n"
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> Any:
    """A JSON file of a run; raises UserError where it is missing or is not JSON."""
    check_plain(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path.parent} is no run folder: it has no {path.name}.") from None
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({str(error)[:100]}).") from None


def check_folder(path: Path) -> None:
    """Raises UserError where a run folder, or one of what it holds, is a link, a pipe or of another kind."""
    for name in FOLDERS:
        check_plain(path / name, folder=True)
    for name in FILES:
        check_plain(path / name)


def read_config(run: Path) -> RunConfig:
    """The configuration of a run folder; raises UserError where it has none."""
    saved = read_json(run / CONFIG)
    try:
        config = RunConfig.from_dict(saved)
        if config.data.tokenizer_file and (run / "tokenizer.json").exists():  # a run has its tokens with it
            own = dataclasses.replace(config.data, tokenizer_file=str((run / "tokenizer.json").resolve()))
            config = dataclasses.replace(config, data=own)
        return config
    except (KeyError, TypeError):
        raise UserError(f"{run / CONFIG} is no configuration of a run: {json.dumps(saved)[:60]} ...") from None


def read_facts(run: Path) -> dict[str, Any]:
    """The facts in the configuration of a run folder; raises UserError where it lacks those that --resume needs."""
    facts = read_json(run / CONFIG).get("facts")
    if not isinstance(facts, dict) or not {"data_sha256", "created"} <= facts.keys():
        raise UserError(f"{run / CONFIG} lacks the facts of a run, among them the checksum of its text.")
    return facts


class Logger:
    """Who else is told what the journal has written; this one does nothing with it."""

    def go_on(self, step: int) -> None:
        """Rows after `step` (-1: all) are taken back, as a resumed run says them again; called before all others."""

    def rows(self, rows: list[dict[str, Any]]) -> None:
        """Rows that metrics.jsonl holds now, in order of step."""

    def samples(self, step: int, samples: list[dict[str, Any]]) -> None:
        """Texts that the model wrote, each with its prompt and temperature."""

    def figure(self, step: int, draw: Callable[[], bytes]) -> None:
        """The figure of the report as PNG, once all steps are done."""

    def close(self) -> None:
        """Nothing more comes."""


class RunFolder:
    """An open, locked run folder. Use as a context manager; the lock goes with the process, however it ends."""

    def __init__(self, path: Path, resume: bool):
        """Raises UserError for a folder that is a run already (without resume), is not one (with it), is held by
        another process or cannot be written."""
        self.path, self.log = path, Logger()
        check_folder(path)
        exists = (path / CONFIG).exists()
        if exists and not resume:
            raise UserError(f"{path} holds a run already; continue it with --resume or name another folder by --out.")
        if resume and not exists:
            raise UserError(f"{path} holds no run to resume: it has no {CONFIG}.")
        if not exists and path.exists() and (not path.is_dir() or any(p.name[0] != "." for p in path.iterdir())):
            raise UserError(f"{path} exists and is no run folder; name another folder by --out.")
        holder = path / HOLDER
        self._made = [p for p in (path, *path.parents) if not p.exists()]
        try:
            make_folder(path)
            self._lock = FileLock(path / LOCK)
            self._lock.acquire(timeout=LOCK_WAIT_S)
            holder.write_text(f"process {os.getpid()} since {time.strftime('%Y-%m-%d %H:%M:%S')}", encoding="utf-8")
        except Timeout:
            who = holder.read_text(encoding="utf-8") if holder.exists() else "another process"
            raise UserError(f"{path} is in use by {who}; wait for it, or name another folder by --out.") from None
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error.strerror}); name another folder by --out.") from None
        self._rows: list[dict[str, Any]] = []
        for name in FOLDERS:
            remove_parts(path / name)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.flush()
        finally:
            self.log.close()
            (self.path / HOLDER).unlink(missing_ok=True)
            self._lock.release()
        if not (self.path / CONFIG).exists():  # it failed before it began: leave nothing behind
            with contextlib.suppress(OSError):
                (self.path / LOCK).unlink(missing_ok=True)
                for folder in self._made:
                    folder.rmdir()

    def metric(self, row: dict[str, Any]) -> None:
        """A row of metrics.jsonl, written at the next flush()."""
        self._rows.append(row)

    def flush(self, durable: bool = False) -> None:
        """Write the rows that wait; durable: and have them, and the events, survive a power cut."""
        rows, self._rows = [{k: _plain(v) for k, v in row.items()} for row in self._rows], []
        _append(self.path / METRICS, rows)
        if rows:
            self.log.rows(rows)
        if durable:
            sync_file(self.path / METRICS)
            sync_file(self.path / EVENTS)

    def has_rows(self) -> bool:
        return (self.path / METRICS).exists() and bool(read_rows(self.path / METRICS))

    def gap(self, step: int) -> str | None:
        """A sentence about steps up to `step` that the journal lacks, as a damaged disk may leave it."""
        count, first = missing_steps(read_rows(self.path / METRICS) if (self.path / METRICS).exists() else [], step)
        return f"{METRICS} lacks {count} steps up to {step}, the first of them {first}" if count else None

    def finish(self, step: int, message: str, **more: Any) -> None:
        """The event of the end, unless it is there already."""
        rows = read_rows(self.path / EVENTS) if (self.path / EVENTS).exists() else []
        if not any(row.get("event") == "finished" and row["step"] == step for row in rows):
            self.event(step, "finished", message, **more)

    def event(self, step: int, event: str, message: str, **more: Any) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        row = {"step": step, "time": stamp, "event": event, "message": message, **more}
        _append(self.path / EVENTS, [{k: _plain(v) for k, v in row.items()}])

    def sample(self, step: int, samples: list[dict[str, Any]]) -> None:
        write_json(self.path / SAMPLES / f"step_{step:06d}.json", {"step": step, "samples": samples})
        self.log.samples(step, samples)

    def rewind(self, step: int, rewinds: int = 0) -> None:
        """Drop what the steps after `step` said and a last line that was cut, so that a resumed run leaves no gap and
        no duplicate. rewinds: how many of the events of that name are of the history that goes on."""
        self.flush()
        for name in (METRICS, EVENTS):
            path, kept, gone_back = self.path / name, [], 0
            if not path.exists():
                continue
            for row in read_rows(path):
                gone_back += row.get("event") == "rewind"
                if row.get("event") == "rewind":
                    keep = gone_back <= rewinds
                else:
                    keep = row["step"] <= step or (name == EVENTS and row.get("event") not in SAID_AGAIN)
                kept += [json.dumps(row) + "\n"] if keep else []
            write_atomically(path, functools.partial(Path.write_text, data="".join(kept), encoding="utf-8"))
        self.log.go_on(step)


def missing_steps(rows: list[dict[str, Any]], step: int) -> tuple[int, int]:
    """How many of the steps from 1 to `step` have no row of their own, and the first of them (0: none).

    Takes memory by the rows, not by `step`, which in a damaged journal is any number.
    """
    present = {row["step"] for row in rows if "loss" in row and 1 <= row["step"] <= step}
    count = step - len(present)
    return count, next(n for n in itertools.count(1) if n not in present) if count else 0


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a .jsonl file; a torn line, as a kill leaves one, is passed over."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def _append(path: Path, rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    lines = [json.dumps(row) + "\n" for row in rows]
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write("".join(lines))
    except OSError as error:
        raise UserError(f"{path} could not be written ({error.strerror}); free some space and --resume.") from None


def _plain(value: Any) -> Any:
    """JSON has no NaN: what is not finite is null."""
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    return value
