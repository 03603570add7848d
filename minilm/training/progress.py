"""What a person sees of a training: facts before it, a live line during it, plain lines where there is no terminal."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

LINE_EVERY_S = 10.0  # where the output is no terminal


def duration(seconds: float) -> str:
    """3725 -> "1h02m", 151 -> "2m31s", 9.5 -> "9.5s"."""
    if seconds < 60:
        return f"{seconds:.0f}s" if seconds >= 10 else f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def size(number: float) -> str:
    """A count of bytes: "24.5 MB", decimal."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


class ProgressLine:
    """The live line of a training: step, loss, validation loss, tokens/s, MFU, time left."""

    def __init__(self, console: Console, steps: int, done: int):
        self.console, self.steps = console, steps
        self._last_line = time.monotonic()
        self._bar = Progress(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[text]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=steps, completed=done, text="")

    def __enter__(self) -> ProgressLine:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, step: int, text: str) -> None:
        self._bar.update(self._task, completed=step, text=text)
        due = time.monotonic() - self._last_line >= LINE_EVERY_S
        if not self.console.is_terminal and (due or step == self.steps):
            self._last_line = time.monotonic()
            self.say(f"step {step}/{self.steps}  {text}")

    def say(self, text: str) -> None:
        """A line that stays."""
        self.console.print(escape(text), highlight=False, soft_wrap=True)


def facts_table(facts: dict[str, Any]) -> Table:
    """Two columns, names dim."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, value in facts.items():
        table.add_row(name, escape(str(value)))
    return table
