"""How far a capstone is: which stage of how many, the time since it was begun and the time that is left."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

from minilm.training.progress import duration

LEAST_SHARE = 0.05  # of a stage that must be done before its own pace counts


class Line:
    """In a terminal a live line over all stages, where a stage has no live line of its own; else plain lines.

    expected: seconds a stage, for those that are still to be run; before: seconds already spent on each.
    """

    def __init__(
        self, console: Console, stages: Sequence[str], expected: Mapping[str, float], before: Mapping[str, float]
    ):
        self.console, self.stages, self.expected = console, stages, dict(expected)
        self.spent = dict(before)  # seconds by stage, over all times that the command was given
        self.stage, self.begun, self.share = stages[0], time.monotonic(), 0.0
        self.finished: dict[str, float] = {}  # of this time, whole stages
        self._bar: Progress | None = None

    def begin(self, stage: str, what: str, live: bool) -> None:
        """A stage begins; live: it shows how far it is by step()."""
        self.stage, self.begun, self.share = stage, time.monotonic(), 0.0
        self.say(f"{self._place()}: {what}  ({self._times()})", style="bold")
        if live and self.console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.fields[place]}"), BarColumn(bar_width=20), TextColumn("{task.fields[text]}"),
                console=self.console, transient=True,
            )  # fmt: skip
            self._task = self._bar.add_task("", total=1.0, place=self._place(), text="")
            self._bar.start()

    def step(self, done: int, total: int, text: str, stays: bool = True) -> None:
        """`done` parts of `total`; the line stays where there is no terminal, and in one where it is worth keeping."""
        self.share = done / total if total else 0.0
        if self._bar is not None:
            shown = f"{escape(text)}  {self._times()}"
            self._bar.update(self._task, completed=self.share, text=shown)
        if stays or not self.console.is_terminal:
            self.say(f"{self._place()}  {text}  ({self._times()})")

    def end(self, whole: bool = True) -> float:
        """The stage is over, or was stopped; returns the seconds spent on it in all."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        took = time.monotonic() - self.begun
        self.spent[self.stage] = self.spent.get(self.stage, 0.0) + took
        if whole:
            self.finished[self.stage] = took
        return self.spent[self.stage]

    def say(self, text: str, style: str = "") -> None:
        self.console.print(escape(text), style=style, highlight=False, soft_wrap=True)

    def left(self) -> float:
        """Seconds: of this stage by its own pace, of those to come as expected, at the pace of those that are over."""
        known = [name for name in self.finished if self.expected.get(name)]
        pace = sum(self.finished[n] for n in known) / sum(self.expected[n] for n in known) if known else 1.0
        took = time.monotonic() - self.begun
        if self.share >= LEAST_SHARE:
            here = took / self.share - took
        else:
            here = max(0.0, pace * self.expected.get(self.stage, 0.0) - took)
        position = self.stages.index(self.stage)
        return here + pace * sum(self.expected.get(name, 0.0) for name in self.stages[position + 1 :])

    def elapsed(self) -> float:
        return sum(self.spent.values()) + time.monotonic() - self.begun

    def _place(self) -> str:
        return f"stage {self.stages.index(self.stage) + 1} of {len(self.stages)}, {self.stage}"

    def _times(self) -> str:
        return f"{duration(self.elapsed())} so far, about {duration(self.left())} left"
