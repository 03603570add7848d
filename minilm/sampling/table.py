"""The figures of quality.json on a terminal: as the model learned, and by temperature where it was best."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

NEAR = 0.7  # the temperature at which the checkpoints are told
NOVELTY_TOLD = {"character": 8, "word": 3}


def print_quality(quality: Mapping[str, Any], console: Console) -> None:
    near = min(quality["temperatures"], key=lambda t: (abs(t - NEAR), t))
    cells, points, unit = quality["cells"], quality["checkpoints"], quality["novelty_of"]
    n = NOVELTY_TOLD[unit]
    best = next((k for k, point in enumerate(points) if point["best"]), len(points) - 1)
    by_step = [(points[cell["checkpoint"]]["name"], cell) for cell in cells if cell["temperature"] == near]
    by_heat = [(f"temperature {cell['temperature']:g}", cell) for cell in cells if cell["checkpoint"] == best]
    console.print(
        _table(quality, f"Texts of {quality['max_new_tokens']} tokens at temperature {near:g}", by_step, near)
    )
    if len(by_heat) > 1:
        console.print(_table(quality, f"By temperature, {points[best]['name']}", by_heat, None))
    console.print(
        f"known: words that the training text has. repeat: of groups of 4 words. pairs: different ones. new {n}: "
        f"{n}-grams of {unit}s that it lacks. copy: characters of the longest. order: characters before the grammar "
        "of the fables objects. stories: that it accepts. Intervals: quality.json.",
        style="dim",
        highlight=False,
    )


def _table(quality: Mapping[str, Any], title: str, rows: list[tuple[str, Any]], near: float | None) -> Table:
    n, points = NOVELTY_TOLD[quality["novelty_of"]], quality["checkpoints"]
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    stories = "accepted" in quality["held_out"]
    shown = [("known", "known_words", "%"), ("repeat", "repeated_4grams", "%"), ("pairs", "distinct_2", "%")]
    shown += [(f"new {n}", f"novelty_{n}", "%"), ("copy", "longest_copy", "")]
    shown += [("order", "followed", ""), ("stories", "accepted", "/")] if stories else []
    for name in ("bits/B", *(name for name, _, _ in shown)):
        table.add_column(name, justify="right")

    def add(name: str, bits: Any, cell: Mapping[str, Any], style: str = "") -> None:
        table.add_row(
            name, _number(bits, "bits"), *(_number(cell.get(key), kind) for _, key, kind in shown), style=style
        )

    for name, cell in rows:
        add(name, points[cell["checkpoint"]]["bits_per_byte"], cell)
    grams = quality["ngram"]
    for cell in grams["cells"]:
        if near is None or cell["temperature"] == near:
            heat = f", {cell['temperature']:g}" if near is None else ""
            add(f"{grams['order']}-gram{heat}", grams["bits_per_byte"], cell, "dim")
    held_out = quality["held_out"]
    add("held-out", {"value": held_out["bits_per_byte"]}, held_out, "dim")
    return table


def _value(row: Mapping[str, Any] | None) -> float:
    value: Any = row and row.get("value")
    return math.nan if value is None else value


def _number(row: Mapping[str, Any] | None, kind: str) -> str:
    value = _value(row)
    if not math.isfinite(value):
        return "-"
    if kind == "bits":
        return f"{value:.3f}"
    if kind == "/":
        return f"{round(value * row['n'])}/{row['n']}"  # type: ignore[index]  # a value has its row
    return f"{100 * value:.0f}%" if kind == "%" else f"{value:.0f}"
