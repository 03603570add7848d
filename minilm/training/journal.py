"""The run folder: who holds it, and the lines it gathers.

config.json    the resolved configuration and the facts of the machine
data.json      meta.json of the data; tokenizer.json beside it
metrics.jsonl  a row a step: step, tokens, loss, lr, grad_norm, tokens_per_s, wall; and evaluation rows:
               step, tokens, val_loss, val_bpb, wall
events.jsonl   what happened: started, resume, config_change, best, spike, non_finite, saved, stopped, finished
checkpoints/ samples/
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from minilm.errors import UserError
from minilm.training.checkpoint import write_atomically

CONFIG, DATA, METRICS, EVENTS, SAMPLES = "config.json", "data.json", "metrics.jsonl", "events.jsonl", "samples"


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
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path.parent} is no run folder: it has no {path.name}.") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}).") from None


class RunFolder:
    """An open, locked run folder. Use as a context manager; the lock goes with the process, however it ends."""

    def __init__(self, path: Path, resume: bool):
        """Raises UserError for a folder that is a run already (without resume), is not one (with it), is held by
        another process or cannot be written."""
        self.path = path
        exists = (path / CONFIG).exists()
        if exists and not resume:
            raise UserError(f"{path} holds a run already; continue it with --resume or name another folder by --out.")
        if resume and not exists:
            raise UserError(f"{path} holds no run to resume: it has no {CONFIG}.")
        if not exists and path.exists() and (not path.is_dir() or any(p.name[0] != "." for p in path.iterdir())):
            raise UserError(f"{path} exists and is no run folder; name another folder by --out.")
        holder = path / ".holder"
        self._made = [p for p in (path, *path.parents) if not p.exists()]
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(path / ".lock")
            self._lock.acquire(blocking=False)
            holder.write_text(f"process {os.getpid()} since {time.strftime('%Y-%m-%d %H:%M:%S')}", encoding="utf-8")
        except Timeout:
            who = holder.read_text(encoding="utf-8") if holder.exists() else "another process"
            raise UserError(f"{path} is in use by {who}; wait for it, or name another folder by --out.") from None
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error.strerror}); name another folder by --out.") from None
        self._rows: list[dict[str, Any]] = []

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()
        (self.path / ".holder").unlink(missing_ok=True)
        self._lock.release()
        if not (self.path / CONFIG).exists():  # it failed before it began: leave nothing behind
            with contextlib.suppress(OSError):
                (self.path / ".lock").unlink(missing_ok=True)
                for folder in self._made:
                    folder.rmdir()

    def metric(self, row: dict[str, Any]) -> None:
        """A row of metrics.jsonl, written at the next flush()."""
        self._rows.append(row)

    def flush(self) -> None:
        _append(self.path / METRICS, self._rows)
        self._rows.clear()

    def event(self, step: int, event: str, message: str, **more: Any) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        _append(self.path / EVENTS, [{"step": step, "time": stamp, "event": event, "message": message, **more}])

    def sample(self, step: int, samples: list[dict[str, Any]]) -> None:
        write_json(self.path / SAMPLES / f"step_{step:06d}.json", {"step": step, "samples": samples})

    def rewind(self, step: int) -> None:
        """Drop metrics past `step` and a last line that was cut, so that a resumed run leaves no gap, no duplicate."""
        for name in (METRICS, EVENTS):
            path = self.path / name
            if path.exists():
                kept = [json.dumps(row) + "\n" for row in read_rows(path) if name == EVENTS or row["step"] <= step]
                write_atomically(path, lambda part, kept=kept: part.write_text("".join(kept), encoding="utf-8"))


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
    lines = [json.dumps({k: _plain(v) for k, v in row.items()}) + "\n" for row in rows]
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
