"""Waiting for what other processes do: for the event itself, never for a time that a quiet machine would take."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

PATIENCE = 600  # seconds after which what should have come is taken for lost; how long it takes is not a test's affair
LONG = 86_400  # what a process sleeps that a test expects to be ended before its time

Found = TypeVar("Found")


def wait_for(happened: Callable[[], Found], what: str) -> Found:
    """What `happened()` gives as soon as it is true."""
    end = time.monotonic() + PATIENCE
    while not (found := happened()):
        assert time.monotonic() < end, f"{what}: not within {PATIENCE} s"
        time.sleep(0.02)
    return found


def written(path: Path) -> str:
    """The text of a file, once it is there and ends a line."""
    wait_for(lambda: path.exists() and path.read_text().endswith("\n"), f"{path.name} is written")
    return path.read_text()


def wait_until_gone(pid: int) -> None:
    """Until a process is no more; an orphan is a zombie until it is collected."""
    state = Path(f"/proc/{pid}/stat")

    def gone() -> bool:
        try:
            return state.read_text().rsplit(")", 1)[1].split()[0] == "Z"
        except (FileNotFoundError, ProcessLookupError):
            return True

    wait_for(gone, f"process {pid} ends")
