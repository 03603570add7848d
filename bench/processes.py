"""Commands that must end in time: each with all that it started, when the time is over or this process is told to."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GRACE = 5  # seconds between asking a command to end and ending it
_told_to_stop = False


@dataclass(frozen=True)
class Command:
    """Both streams go to the end of `log` as they come; `environment` is added to this process's."""

    words: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)


def stopping() -> bool:
    return _told_to_stop


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Within, SIGTERM and SIGINT end the commands that run, and no other is begun; what was measured is kept."""
    global _told_to_stop

    def stop(*_: object) -> None:
        global _told_to_stop
        _told_to_stop = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        _told_to_stop = False
        for number, handler in before.items():
            signal.signal(number, handler)


def run(commands: Sequence[Command], until: float) -> list[tuple[int | None, str]]:
    """Runs them side by side: the exit code of each (None: the time ended first) and what it wrote, this time."""
    if stopping():
        return [(None, "")] * len(commands)
    until = max(until, time.time() + 1)
    began: list[int] = []
    processes: list[subprocess.Popen] = []
    codes: list[int | None] = []
    try:
        for command in commands:
            began.append(command.log.stat().st_size if command.log.exists() else 0)
            with command.log.open("ab") as file:
                options = {"cwd": ROOT, "stdout": file, "stderr": subprocess.STDOUT, "start_new_session": True}
                options["env"] = {**os.environ, "PYTHONUNBUFFERED": "1", **command.environment}
                processes.append(subprocess.Popen(command.words, preexec_fn=_die_with_parent, **options))
        while any(p.poll() is None for p in processes) and time.time() < until and not stopping():
            time.sleep(0.1)
        codes = [p.poll() for p in processes]
    finally:
        _end(processes)
    texts = []
    for command, size in zip(commands, began, strict=True):
        with command.log.open("rb") as file:
            file.seek(size)
            texts.append(file.read().decode(errors="replace"))
    return list(zip(codes, texts, strict=True))


def _end(processes: Sequence[subprocess.Popen]) -> None:
    """Asks those that run to end, then kills every session: a killed pytest would leave its workers on the GPU."""
    for process in processes:
        if process.poll() is None:
            _signal(process, signal.SIGTERM)
    end = time.time() + GRACE
    while any(p.poll() is None for p in processes) and time.time() < end:
        time.sleep(0.05)
    for process in processes:
        _signal(process, signal.SIGKILL)
        process.wait()


def _signal(process: subprocess.Popen, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    """In the child: the system kills it when this process is gone, however that came."""
    if _prctl is not None:
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
