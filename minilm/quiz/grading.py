"""The kinds of answer: how each is read from text, when it is right, and which hint goes with which mistake.

check() is pure: text in, Verdict out. What cannot be read as an answer of its kind at all raises Malformed; a person is
then asked again, and it counts as no attempt.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

NUMBER = re.compile(r"[+-]?(\d[\d_]*\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
THOUSANDS = re.compile(r"(?<![\d.])\d{1,3}(?:,\d{3})+(?![\d,])")
LETTERS = "abcdefgh"


class Malformed(Exception):
    """The text is no answer of the kind that is asked for; the message is a clause that says what it should be."""


@dataclass(frozen=True)
class Verdict:
    score: float  # 0 to 1
    hint: str = ""  # empty where the answer is right

    @property
    def right(self) -> bool:
        return self.score == 1


@dataclass(frozen=True)
class Evidence:
    """Something that the code was made to show: a claim, the numbers, and whether they bear it out."""

    claim: str
    lines: tuple[str, ...]
    holds: bool


@dataclass(frozen=True, kw_only=True)
class Part:
    """One thing to answer. `why` is the explanation with its source, `topic` what a list of weak spots calls it."""

    kind: ClassVar[str]
    id: str
    topic: str
    prompt: str
    why: str

    def how(self) -> str:
        """How an answer is to be written, in a few words."""
        raise NotImplementedError

    def key(self) -> str:
        """The right answer as a person would write it; check(key()) is right."""
        raise NotImplementedError

    def lettered(self) -> list[str]:
        """What there is to choose from, with its letters."""
        return []

    def solution(self) -> str:
        """The right answer in words, for who did not know it."""
        return self.key()

    def check(self, text: str) -> Verdict:
        raise NotImplementedError


@dataclass(frozen=True)
class Question:
    """`verify` runs the code; it is called after the answers, because it gives them away."""

    number: int
    title: str
    parts: tuple[Part, ...]
    verify: Callable[[], Sequence[Evidence]]
    setting: str = ""  # what all parts speak of, told before the first


@dataclass(frozen=True, kw_only=True)
class Number(Part):
    """A number, right within a relative tolerance. `mistakes` are numbers that a known slip leads to, each with its
    hint; `also` further numbers that count as right."""

    kind: ClassVar[str] = "number"
    answer: float
    tolerance: float = 0.01
    unit: str = ""
    mistakes: tuple[tuple[float, str], ...] = ()
    also: tuple[float, ...] = ()

    def how(self) -> str:
        number = f"a number of {self.unit}" if self.unit else "a number"
        return f"{number}, within {self.tolerance:.0%}" if self.tolerance > 1e-3 else f"{number}, exactly"

    def key(self) -> str:
        return f"{self.answer:.10g}"

    def solution(self) -> str:
        return f"{tell(self.answer)} {self.unit}".rstrip()

    def check(self, text: str) -> Verdict:
        value = read_number(text, self.unit)
        if any(self._near(value, right) for right in (self.answer, *self.also)):
            return Verdict(1)
        for wrong, hint in self.mistakes:
            if self._near(value, wrong):
                return Verdict(0, hint)
        if value <= 0:
            return Verdict(0, "It is above zero.")
        ratio = value / self.answer
        if self.tolerance < 1e-3 and abs(value - self.answer) <= 2:
            return Verdict(
                0, f"Too {'large' if ratio > 1 else 'small'} by {tell(abs(value - self.answer))}: count again."
            )
        if max(ratio, 1 / ratio) < 2:
            return Verdict(
                0, f"Close, but {'above' if ratio > 1 else 'below'} it by {abs(ratio - 1):.0%}: reckon again."
            )
        factor = tell(float(f"{max(ratio, 1 / ratio):.2g}"))
        return Verdict(0, f"Too {'large' if ratio > 1 else 'small'}, by a factor of about {factor}.")

    def _near(self, value: float, target: float) -> bool:
        return math.isclose(value, target, rel_tol=self.tolerance, abs_tol=1e-300)


@dataclass(frozen=True, kw_only=True)
class Shape(Part):
    """The shape of a tensor."""

    kind: ClassVar[str] = "shape"
    answer: tuple[int, ...]
    mistakes: Mapping[tuple[int, ...], str] = field(default_factory=dict)

    def how(self) -> str:
        return "whole numbers, such as 2, 5, 24"

    def key(self) -> str:
        return ", ".join(map(str, self.answer))

    def check(self, text: str) -> Verdict:
        words = [word for word in re.split(r"[\s,x×()\[\]]+", text.strip()) if word]
        if not words or not all(word.isdecimal() for word in words):
            raise Malformed("is no shape; write whole numbers, such as 2, 5, 24")
        shape = tuple(int(word[:12]) for word in words)
        if shape == self.answer:
            return Verdict(1)
        if shape in self.mistakes:
            return Verdict(0, self.mistakes[shape])
        if len(shape) != len(self.answer):
            return Verdict(0, f"It has {len(self.answer)} dimensions, not {len(shape)}.")
        if sorted(shape) == sorted(self.answer):
            return Verdict(0, "The right numbers in another order: which axis is summed over, and which ones stay?")
        wrong = next(i for i, (given, right) in enumerate(zip(shape, self.answer, strict=True)) if given != right)
        return Verdict(0, f"Dimension {wrong + 1} is not {shape[wrong]}.")


@dataclass(frozen=True, kw_only=True)
class Choice(Part):
    """One of several sentences, named by its letter. `hints` go with `options`; that of the right one is empty."""

    kind: ClassVar[str] = "choice"
    options: tuple[str, ...]
    hints: tuple[str, ...]

    def how(self) -> str:
        return f"one letter, a to {LETTERS[len(self.options) - 1]}"

    def key(self) -> str:
        return LETTERS[self.hints.index("")]

    def lettered(self) -> list[str]:
        return _lettered(self.options)

    def solution(self) -> str:
        return self.lettered()[self.hints.index("")]

    def check(self, text: str) -> Verdict:
        letter = text.strip().lower().rstrip(").")
        if len(letter) != 1 or letter not in LETTERS[: len(self.options)]:
            raise Malformed(f"is no choice; write {self.how()}")
        hint = self.hints[LETTERS.index(letter)]
        return Verdict(0, hint) if hint else Verdict(1)


@dataclass(frozen=True, kw_only=True)
class Match(Part):
    """To each of `rows` one of `options`. `owners[i]` is the row that option i belongs to, `reasons[i]` why."""

    kind: ClassVar[str] = "match"
    rows: tuple[str, ...]
    options: tuple[str, ...]
    owners: tuple[str, ...]
    reasons: tuple[str, ...]

    def how(self) -> str:
        return f"a letter each for {', '.join(self.rows)}, such as a b c"

    def key(self) -> str:
        return " ".join(LETTERS[self.owners.index(row)] for row in self.rows)

    def lettered(self) -> list[str]:
        return _lettered(self.options)

    def solution(self) -> str:
        return "\n".join(f"{row}: {self.lettered()[self.owners.index(row)]}" for row in self.rows)

    def check(self, text: str) -> Verdict:
        letters = re.findall(r"[a-z]", self._without_rows(text).lower())
        allowed = LETTERS[: len(self.options)]
        if len(letters) != len(self.rows) or not set(letters) <= set(allowed):
            raise Malformed(f"is no matching; write {self.how()}, of {allowed[0]} to {allowed[-1]}")
        right, hint = 0, ""
        for row, letter in zip(self.rows, letters, strict=True):
            chosen = LETTERS.index(letter)
            if self.owners[chosen] == row:
                right += 1
            elif not hint:
                hint = f"{row} is not {letter}: that is {self.owners[chosen]}. {self.reasons[chosen]}"
        return Verdict(right / len(self.rows), hint)

    def _without_rows(self, text: str) -> str:
        return re.sub("|".join(re.escape(row) for row in self.rows), " ", text, flags=re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Grid(Part):
    """A mask of ones and zeros, row by row."""

    kind: ClassVar[str] = "mask"
    answer: tuple[str, ...]
    mistakes: Mapping[tuple[str, ...], str]

    def how(self) -> str:
        rows, columns = len(self.answer), len(self.answer[0])
        return f"{rows} row{'s' * (rows > 1)} of {columns} digits, 1 may look and 0 may not, separated by spaces"

    def key(self) -> str:
        return " ".join(self.answer)

    def solution(self) -> str:
        return "\n".join(self.answer)

    def check(self, text: str) -> Verdict:
        digits = re.sub(r"[\s/,;|]+", "", text)
        rows, columns = len(self.answer), len(self.answer[0])
        if not digits or not set(digits) <= {"0", "1"} or len(digits) != rows * columns:
            raise Malformed(f"is no such mask; write {self.how()}")
        grid = tuple(digits[r * columns : (r + 1) * columns] for r in range(rows))
        if grid == self.answer:
            return Verdict(1)
        if grid in self.mistakes:
            return Verdict(0, self.mistakes[grid])
        r, c = next((r, c) for r in range(rows) for c in range(columns) if grid[r][c] != self.answer[r][c])
        which = "a later token, so it must not" if self.answer[r][c] == "0" else "no later token, so it may"
        return Verdict(0, f"Row {r + 1}, column {c + 1}: the key is {which} be seen.")


@dataclass(frozen=True, kw_only=True)
class Free(Part):
    """An answer in the person's own words. They see the model answer, and say of each point whether theirs had it."""

    kind: ClassVar[str] = "free"
    model: str
    points: tuple[tuple[str, str], ...]  # (the point, the hint for who missed it)

    def how(self) -> str:
        return "your own words; a line or two"

    def key(self) -> str:
        return self.model

    def check(self, text: str) -> Verdict:
        """The points that were met, as letters y and n."""
        marks = re.sub(r"[\s,]+", "", text.lower())
        if len(marks) != len(self.points) or not set(marks) <= {"y", "n"}:
            raise Malformed(f"does not mark the {len(self.points)} points; write y or n for each")
        missed = [hint for (_, hint), mark in zip(self.points, marks, strict=True) if mark == "n"]
        return Verdict(marks.count("y") / len(marks), " ".join(missed))


def _lettered(options: Sequence[str]) -> list[str]:
    return [f"{letter}) {option}" for letter, option in zip(LETTERS, options, strict=False)]


def choice(rng: random.Random, right: str, wrong: Sequence[tuple[str, str]], **fields: str) -> Choice:
    """A Choice of `right` and the (option, hint) pairs of `wrong`, in an order that is drawn."""
    pairs = [(right, ""), *wrong]
    rng.shuffle(pairs)
    return Choice(options=tuple(o for o, _ in pairs), hints=tuple(h for _, h in pairs), **fields)


def match(rng: random.Random, options: Mapping[str, tuple[str, str]], **fields: str) -> Match:
    """A Match from row -> (option, reason), the options in an order that is drawn."""
    rows = tuple(options)
    owners = rng.sample(rows, len(rows))
    return Match(
        rows=rows,
        options=tuple(options[row][0] for row in owners),
        owners=tuple(owners),
        reasons=tuple(options[row][1] for row in owners),
        **fields,
    )


def read_number(text: str, unit: str = "") -> float:
    """The number in a text such as 1,024, 1.5e9, 2^10, 3*64 or 1/8, with or without its unit. Raises Malformed."""
    plain = text.strip().removeprefix("=").replace("−", "-")
    if unit and plain.lower().endswith(unit.lower()):
        plain = plain[: -len(unit)]
    plain = THOUSANDS.sub(lambda found: found.group().replace(",", ""), plain)
    plain = plain.replace("×", "*").replace("·", "*").replace("**", "^").replace(" ", "").lower()
    plain = re.sub(r"(?<=\d)x(?=\d)", "*", plain)
    try:
        above, slash, below = plain.partition("/")
        value = _product(above) / (_product(below) if slash else 1)
    except (Malformed, ZeroDivisionError, OverflowError):
        raise Malformed("is no number; write digits with a decimal point, such as 0.25, 1.5e9 or 2^10") from None
    if not math.isfinite(value):
        raise Malformed("is no finite number; write digits, such as 1.5e9")
    return value


def _product(text: str) -> float:
    value = 1.0
    for factor in text.split("*"):
        base, hat, exponent = factor.partition("^")
        if not NUMBER.fullmatch(base) or (hat and not NUMBER.fullmatch(exponent)):
            raise Malformed
        power = float(base) ** (float(exponent) if hat else 1.0)
        if isinstance(power, complex):
            raise Malformed
        value *= power
    return value


def tell(value: float) -> str:
    """A number for reading: thousands apart, four digits where it is no whole number."""
    if value == int(value) and abs(value) < 1e12:
        return f"{int(value):,}"
    return re.sub(r"e\+?(-?)0*", r"e\1", f"{value:.4g}")
