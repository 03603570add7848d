"""The lines of rows.jsonl: a result each as soon as it is there, and what was begun, so that a run can go on."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

START, CRASH = "start", "crash"
TRIES = 3  # a unit that was begun so often and never finished is taken for crashed, whoever saw it


class Rows:
    """finished: the rows of each key. crashed: what a worker died of, or was begun TRIES times. What was begun and
    stopped for want of time is begun again."""

    def __init__(self, path: Path):
        self.path = path
        self.finished: dict[str, list[dict[str, Any]]] = {}
        self.crashed: set[str] = set()
        self.begun: dict[str, int] = {}  # how often, and the last of them last
        for entry in entries(path):
            key = entry["key"]
            if entry["kind"] == START:
                self.begun[key] = self.begun.pop(key, 0) + 1
                self.finished.pop(key, None)  # it is done again
            elif entry["kind"] == CRASH:
                self.crashed.add(key)
            else:
                self.finished[key] = entry["rows"]
        self.crashed |= {key for key, count in self.begun.items() if count >= TRIES}
        self.crashed -= self.finished.keys()

    def write(self, kind: str, key: str, rows: list[dict[str, Any]]) -> None:
        text = self.path.read_bytes() if self.path.is_file() else b""
        cut = bool(text) and not text.endswith(b"\n")  # a line that a kill cut short
        with self.path.open("a") as file:
            file.write("\n" * cut + json.dumps({"kind": kind, "key": key, "rows": rows}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if kind not in (START, CRASH):
            self.finished[key] = rows

    def units(self, kind: str, keys: list[str], until: float, crashed: Callable[[str], list[dict]]) -> Iterator[str]:
        """The keys that are to be done, while there is time; those that crashed before get their rows by `crashed`."""
        for key in keys:
            if key in self.finished:
                continue
            if key in self.crashed:
                self.write(kind, key, crashed(key))
                continue
            if time.time() > until:
                return
            self.write(START, key, [])
            yield key

    def crash(self) -> None:
        """The worker died: of what it had begun last, unless that is finished."""
        last = next(reversed(self.begun), None)
        if last is not None and last not in self.finished:
            self.write(CRASH, last, [])


def entries(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file, but for one that was cut short."""
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue
