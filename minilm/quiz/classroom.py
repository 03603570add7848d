"""The quiz without a terminal: a form of drawn questions, and the grading of one that was filled in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minilm.errors import UserError
from minilm.quiz.grading import Free, Malformed, Part, Question
from minilm.quiz.multihead import Code
from minilm.quiz.questions import COUNT, draw_questions

FORMAT = 1
LARGEST = 10**6  # bytes of a form; a filled one has some 20,000


@dataclass(frozen=True)
class Mark:
    """The score of one part from 0 to 1, or None where a person has yet to read it."""

    id: str
    topic: str
    score: float | None
    hint: str = ""
    rubric: tuple[str, ...] = ()  # the points to look for in an answer that is yet to be read


@dataclass(frozen=True)
class Marks:
    seed: int
    marks: tuple[Mark, ...]

    @property
    def score(self) -> float:
        return sum(mark.score or 0 for mark in self.marks)

    def to_json(self) -> str:
        unread = [mark.id for mark in self.marks if mark.score is None]
        return json.dumps(
            {
                "seed": self.seed,
                "score": round(self.score, 3),
                "of": len(self.marks),
                "to_read": unread,
                "parts": [asdict(mark) for mark in self.marks],
            },
            indent=1,
            ensure_ascii=False,
        )


def make_form(questions: Sequence[Question], seed: int, text: str | None) -> str:
    """An empty form, as JSON: fill in "answer", or leave it empty for what is not known."""
    entries = []
    for question in questions:
        for part in question.parts:
            entry: dict[str, Any] = {"id": part.id, "question": part.prompt}
            if question.setting:
                entry["setting"] = question.setting
            if part.lettered():
                entry["options"] = part.lettered()
            if isinstance(part, Code):
                entry["write"] = "a file, given with --code FILE when this form is graded"
            else:
                entry |= {"write": part.how(), "answer": ""}
            if isinstance(part, Free):
                entry["points"] = None  # true or false for each point, by who has read the answer
            entries.append(entry)
    form = {"minilm_quiz": FORMAT, "seed": seed, "text": text, "answers": entries}
    return json.dumps(form, indent=1, ensure_ascii=False) + "\n"


def grade(path: Path, numbers: Sequence[int] | None = None, code: Path | None = None) -> Marks:
    """Marks for a filled form: of the questions in `numbers`, or of those that the form has. What is left out counts 0.

    code is the file for question 8; only a file that is named here is run, never one that a form names. Raises
    UserError for a form that cannot be read and, naming the question, for an answer that is none of its kind.
    """
    form = _read(path)
    seed, text = form["seed"], form["text"]
    answers: dict[str, dict[str, Any]] = {}
    for entry in form["answers"]:
        name = entry.get("id") if isinstance(entry, dict) else None
        if not isinstance(name, str):
            raise UserError(f"{path}: an entry of answers has no id; write a form anew with --write-answers.")
        if name in answers:
            raise UserError(f"{path}: question {name} is answered twice; leave one of the answers.")
        answers[name] = entry
    everything = {part.id: part for question in draw_questions(seed, None, text) for part in question.parts}
    for name in answers:
        if name not in everything:
            raise UserError(f"{path}: there is no question {name[:20]!r}; they are 1a to 8d.")
    asked = set(numbers or (int(name[0]) for name in answers))
    parts = [part for part in everything.values() if int(part.id[0]) in asked]
    return Marks(seed, tuple(_mark(part, answers.get(part.id, {}), code) for part in parts))


def _read(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            form = json.loads(file.read(LARGEST + 1).decode("utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); name a form written by --write-answers.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON ({str(error)[:80]}); name a form written by --write-answers.") from None
    if not isinstance(form, dict) or form.get("minilm_quiz") != FORMAT or not isinstance(form.get("answers"), list):
        raise UserError(f"{path} is no form of this quiz; minilm quiz --write-answers FILE writes one.")
    seed, text = form.get("seed"), form.get("text")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise UserError(f"{path}: seed is {str(seed)[:40]!r}; it is the whole number that the form was written with.")
    if not isinstance(text, str | None):
        raise UserError(f"{path}: text is {str(text)[:40]!r}; it is the text of question 6, or null.")
    return {"seed": seed, "text": text, "answers": form["answers"]}


def _mark(part: Part, entry: dict[str, Any], code: Path | None) -> Mark:
    if isinstance(part, Code):
        return _mark_code(part, entry, code)
    given = _text(part, entry.get("answer"))
    if not given:
        return Mark(part.id, part.topic, 0, "Left out.")
    if isinstance(part, Free):
        points = entry.get("points")
        if points is None:
            return Mark(part.id, part.topic, None, "To be read.", tuple(point for point, _ in part.points))
        if not isinstance(points, list) or not all(isinstance(point, bool) for point in points):
            raise UserError(
                f"Question {part.id}: points is {str(points)[:40]!r}; it is a list of true and false, or null."
            )
        given = "".join("y" if point else "n" for point in points)
    try:
        verdict = part.check(given)
    except Malformed as fault:
        raise UserError(f"Question {part.id}: {given[:60]!r} {fault}.") from None
    return Mark(part.id, part.topic, verdict.score, verdict.hint)


def _text(part: Part, answer: Any) -> str:
    """An answer as text: JSON's numbers and lists of them, or of words, are as good as text."""
    if answer is None:
        return ""
    words = answer if isinstance(answer, list) else [answer]
    if any(isinstance(word, bool) or not isinstance(word, str | int | float) for word in words):
        raise UserError(f"Question {part.id}: the answer is {str(answer)[:40]!r}; write {part.how()}.")
    return " ".join(str(word) for word in words).strip()


def _mark_code(part: Code, entry: dict[str, Any], code: Path | None) -> Mark:
    if entry.get("answer") not in (None, ""):
        raise UserError(f"Question {part.id}: its answer is a file, which is given with --code FILE, not in the form.")
    if code is None:
        return Mark(part.id, part.topic, 0, "Left out: no --code FILE was given.")
    try:
        verdict = part.check(str(code))
    except Malformed as fault:
        raise UserError(f"Question {part.id}: {str(code)!r} {fault}.") from None
    return Mark(part.id, part.topic, verdict.score, verdict.hint)


def all_numbers(text: str | None) -> list[int]:
    """The questions that --only names, all by default. Raises UserError for anything but numbers from 1 to 8."""
    words = [word.strip() for word in (text or ",".join(map(str, range(1, COUNT + 1)))).split(",")]
    if not all(word.isascii() and word.isdecimal() and 1 <= int(word[:3]) <= COUNT for word in words):
        raise UserError(f"--only is {text!r}; it must be numbers from 1 to {COUNT}, separated by commas, such as 3,5.")
    return sorted({int(word) for word in words})
