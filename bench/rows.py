"""The lines of rows.jsonl: a result each as soon as it is there, and what was begun, so that a run can go on."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

START, STOPPED = "start", "stopped"


class Rows:
    """finished: the rows of each key. crashed: what was begun and neither finished nor stopped for want of time."""

    def __init__(self, path: Path):
        self.path = path
        self.finished: dict[str, list[dict[str, Any]]] = {}
        self.crashed: set[str] = set()
        for line in path.read_text().splitlines() if path.exists() else []:
            entry = json.loads(line)
            if entry["kind"] == START:
                self.crashed.add(entry["key"])
            else:
                self.crashed.discard(entry["key"])
                if entry["kind"] != STOPPED:
                    self.finished[entry["key"]] = entry["rows"]

    def write(self, kind: str, key: str, rows: list[dict[str, Any]]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"kind": kind, "key": key, "rows": rows}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if kind not in (START, STOPPED):
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

    def stop(self) -> None:
        """What is begun was stopped, not crashed: the next run takes it again."""
        for key in sorted(self.crashed):
            self.write(STOPPED, key, [])
