"""What a person has answered and where they are weak, in one small JSON file in their data folder."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from minilm.errors import UserError
from minilm.files import data_folder, write_atomically

FORMAT = 1


@dataclass(frozen=True)
class Entry:
    """One part of a question: how often asked, how often wholly right, the last score (0 to 1) and when (UTC)."""

    topic: str
    asked: int
    right: int
    last: float
    when: str


@dataclass(frozen=True)
class Progress:
    entries: dict[str, Entry]
    note: str = ""  # what happened to a file that could not be read

    def weak(self) -> list[tuple[str, Entry]]:
        """The parts that were not wholly right when last asked, the weakest first."""
        weak = [(part, entry) for part, entry in self.entries.items() if entry.last < 1]
        return sorted(weak, key=lambda pair: (pair[1].last, pair[0]))


def progress_path() -> Path:
    return data_folder() / "quiz.json"


def read_progress() -> Progress:
    """What is kept; a file that cannot be understood is set aside, not lost, and the note says so."""
    path = progress_path()
    try:
        return Progress(_entries(json.loads(path.read_text(encoding="utf-8"))))
    except FileNotFoundError:
        return Progress({})
    except OSError as error:
        return Progress({}, f"{path} cannot be read ({error.strerror}): beginning anew.")
    except (ValueError, RecursionError):
        aside = path.with_name("quiz.damaged.json")
        try:
            os.replace(path, aside)
        except OSError as error:
            return Progress({}, f"{path} is damaged and cannot be set aside ({error.strerror}): beginning anew.")
        return Progress({}, f"{path} is damaged; it is kept as {aside.name}, and progress begins anew.")


def _entries(saved: Any) -> dict[str, Entry]:
    if not isinstance(saved, dict) or saved.get("format") != FORMAT or not isinstance(saved.get("parts"), dict):
        raise ValueError
    kinds = {"topic": str, "asked": int, "right": int, "last": int | float, "when": str}
    for part, entry in saved["parts"].items():
        if not re.fullmatch("[1-8][a-h]", part) or not isinstance(entry, dict) or set(entry) != set(kinds):
            raise ValueError
        if not all(isinstance(entry[name], kind) for name, kind in kinds.items()) or not 0 <= entry["last"] <= 1:
            raise ValueError
    return {part: Entry(**entry) for part, entry in saved["parts"].items()}


def record(part: str, topic: str, score: float) -> None:
    """Note one answer, at once and atomically. Raises UserError where the file cannot be written."""
    entries = read_progress().entries  # afresh: another quiz may be under way in another window
    before = entries.get(part, Entry(topic, 0, 0, 0.0, ""))
    now = datetime.now(UTC).isoformat(timespec="seconds")
    entries[part] = Entry(topic, before.asked + 1, before.right + (score == 1), round(score, 3), now)
    text = json.dumps({"format": FORMAT, "parts": {p: asdict(entries[p]) for p in sorted(entries)}}, indent=1)
    path = progress_path()
    try:
        write_atomically(path, lambda part: part.write_text(text, encoding="utf-8") and None)
    except (UserError, OSError):
        raise UserError(
            f"Progress cannot be kept in {path}; set MINILM_DATA to a folder that can be written to."
        ) from None
