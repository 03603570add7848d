"""What `minilm samples` wrote of a run, as a page shows it: what the model writes as it learns, and how good that is.

samples/watch.json and quality.json, which may be missing, half of them, or someone else's: what is not of the form that
is expected is passed over.
"""

import math
import re
from functools import partial
from typing import Any

import numpy as np
from markupsafe import Markup

from minilm.report import words
from minilm.report.canvas import SERIES, svg
from minilm.report.learning_panels import Level, Line, draw_figure
from minilm.report.plates import Panel, Plate
from minilm.report.runs import Run, number, table

POINTS_SHOWN = 10  # checkpoints of one prompt, first and last among them
PROMPTS_SHOWN = 6
TEMPERATURES_SHOWN = 6
CHARACTERS_SHOWN = 800
NEAR = 0.7  # the temperature that sentences speak of
NOVELTY_TOLD = {"character": 8, "word": 3}
MARGINS = (50, 16, 10, 40)
SHARES = ("value", "low", "high")


def watch_of(run: Run) -> list[dict[str, Any]]:
    """Prompt after prompt: its name and the checkpoints, each with its texts from cool to hot."""
    points = [p for p in _list(run.watch, "checkpoints") if isinstance(p, dict) and _list(p, "samples")]
    chosen: Any = np.unique(np.linspace(0, len(points) - 1, POINTS_SHOWN).round().astype(int)) if points else []
    prompts = [p for p in _list(run.watch, "prompts") if isinstance(p, str)][:PROMPTS_SHOWN]
    shown = []
    for prompt in prompts:
        rows = []
        for index in chosen:
            point, bits = points[index], number(points[index].get("bits_per_byte"))
            texts = [
                {"temperature": f"{number(s.get('temperature')):g}", "text": _cut(s["text"], prompt)}
                for s in _list(point, "samples")
                if isinstance(s, dict) and s.get("prompt") == prompt and isinstance(s.get("text"), str)
            ][:TEMPERATURES_SHOWN]
            name = str(point.get("name") or f"step {words.count(point.get('step'))}")
            rows.append({"name": name, "bits": words.loss(bits), "texts": texts})
        if any(row["texts"] for row in rows):
            shown.append({"prompt": prompt if prompt.strip() else "", "points": rows})
    return shown


def quality_of(run: Run, prefix: str, slug: str) -> dict[str, Any]:
    """Figures, sentences and a table; empty where the run was not judged."""
    judged = _Judged(run.quality)
    if not judged.cells:
        return {}
    plates = [plate for plate in (judged.by_step(), judged.by_temperature()) if plate is not None]
    shown = [_plate(plate, f"{prefix}q{i}-", slug) for i, plate in enumerate(plates)]
    return {"note": judged.note(), "findings": judged.findings(), "plates": shown, "table": judged.table()}


def plates_of(run: Run) -> list[Plate]:
    judged = _Judged(run.quality)
    return [plate for plate in (judged.by_step(), judged.by_temperature()) if plate is not None] if judged.cells else []


def file_of(plate: Plate, slug: str) -> str:
    return f"{plate.name}_{slug}.png"


def _plate(plate: Plate, prefix: str, slug: str) -> dict[str, Any]:
    panels = [
        {"title": p.title, "svg": Markup(svg(p.draw, f"{prefix}{i}", p.label, height=p.height, margins=p.margins))}
        for i, p in enumerate(plate.panels)
    ]
    legend = [list(entry) for entry in plate.panels[0].legend]
    return {"title": plate.title, "note": plate.note, "legend": legend, "panels": panels, "png": file_of(plate, slug)}


class _Judged:
    """quality.json, read with care: every figure (value, low, high), NaN where it is not known."""

    def __init__(self, quality: dict[str, Any]):
        self.quality = quality
        self.by = "word" if quality.get("novelty_of") == "word" else "character"
        self.novelty = f"novelty_{NOVELTY_TOLD[self.by]}"
        self.ngram, self.held_out = table(quality, "ngram"), table(quality, "held_out")
        self.points = [p if isinstance(p, dict) else {} for p in _list(quality, "checkpoints")]
        self.cells = self._known(quality)
        self.grams = self._known(self.ngram)
        self.temperatures = sorted({c["temperature"] for c in self.cells})[:TEMPERATURES_SHOWN]
        self.stories = any(figure(c, "followed")[0] >= 0 for c in self.cells)
        self.best = next((i for i, p in enumerate(self.points) if p.get("best") is True), len(self.points) - 1)
        order = number(self.ngram.get("order"))
        self.gram_name = f"{order:.0f}-gram model" if math.isfinite(order) else "n-gram model"

    @staticmethod
    def _known(holder: dict[str, Any]) -> list[dict[str, Any]]:
        cells = [c for c in _list(holder, "cells") if isinstance(c, dict)]
        return [c for c in cells if math.isfinite(number(c.get("temperature")))]

    def told(self) -> list[tuple[str, str, str]]:
        """(figure, title, unit) of the panels."""
        told = [
            ("known_words", "Words that the training text has", "%"),
            (self.novelty, f"New {self.novelty.removeprefix('novelty_')}-grams of {self.by}s", "%"),
            ("longest_copy", "Longest copy from the training text", "characters"),
            ("distinct_2", "Different pairs of words", "%"),
        ]
        if self.stories:
            return [*told, ("followed", "Characters before the grammar objects", "decades")]
        return [*told, ("repeated_4grams", "Repeated groups of 4 words", "%")]

    def nearest(self, temperature: float) -> float:
        return min(self.temperatures, key=lambda t: (abs(t - temperature), t))

    def by_step(self) -> Plate | None:
        steps = [number(p.get("step")) for p in self.points]
        if len(set(steps)) < 2:
            return None
        legend = [(SERIES[i], "solid", f"temperature {t:g}") for i, t in enumerate(self.temperatures)]
        near = self.nearest(1.0)
        legend += [("ink", "dashed", "held-out text")]
        gram = next((c for c in self.grams if c["temperature"] == near), {})
        legend += [("muted", "dotted", f"{self.gram_name}, temperature {near:g}")] if gram else []
        bits = _line("ink", "solid", steps, [figure(p, "bits_per_byte") for p in self.points])
        floor, grams = number(self.held_out.get("bits_per_byte")), figure(self.ngram, "bits_per_byte")[0]
        levels: list[Level] = [("ink", "dashed", floor), ("muted", "dotted", grams)]
        draw = partial(draw_figure, lines=[bits], levels=levels, unit="bits", against="step")
        panels = [Panel("Bits a byte of held-out text", "Bits a byte by step", draw, legend, margins=MARGINS)]
        for name, title, unit in self.told():
            lines = []
            for i, temperature in enumerate(self.temperatures):
                own = [c for c in self.cells if c["temperature"] == temperature]
                at = [number(c.get("step")) for c in own]
                lines.append(_line(SERIES[i], "solid", at, [figure(c, name) for c in own]))
            levels = [("ink", "dashed", figure(self.held_out, name)[0]), ("muted", "dotted", figure(gram, name)[0])]
            draw = partial(draw_figure, lines=lines, levels=levels, unit=unit, against="step")
            panels.append(Panel(title, f"{title}, by step", draw, margins=MARGINS))
        note = "Bars are 95% intervals. The step axis is logarithmic from the first checkpoint on."
        return Plate("quality_by_step", "As training went on", note, panels)

    def by_temperature(self) -> Plate | None:
        own = [c for c in self.cells if c.get("checkpoint") == self.best]
        if len(own) < 2:
            return None
        legend = [
            ("s1", "solid", "this model"),
            ("muted", "dotted", self.gram_name),
            ("ink", "dashed", "held-out text"),
        ]
        panels: list[Panel] = []
        for name, title, unit in self.told():
            lines = [
                _line(role, dashes, [c["temperature"] for c in cells], [figure(c, name) for c in cells])
                for role, dashes, cells in (("muted", "dotted", self.grams), ("s1", "solid", own))
            ]
            levels: list[Level] = [("ink", "dashed", figure(self.held_out, name)[0])]
            draw = partial(draw_figure, lines=lines, levels=levels, unit=unit, against="temperature")
            panels.append(Panel(title, f"{title}, by temperature", draw, () if panels else legend, margins=MARGINS))
        near = self.nearest(NEAR)
        of_length = []
        for role, dashes, cells in (
            ("muted", "dotted", self.grams),
            ("s1", "solid", own),
            ("ink", "dashed", [self.held_out]),
        ):
            cell = next((c for c in cells if c is self.held_out or c["temperature"] == near), {})
            lengths = [float(n) for n in range(1, 11)]
            of_length.append(_line(role, dashes, lengths, [figure(cell, f"novelty_{n:g}") for n in lengths]))
        draw = partial(draw_figure, lines=of_length, levels=[], unit="%", against="n")
        panels.append(
            Panel(f"New n-grams at temperature {near:g}", "New n-grams by their length", draw, margins=MARGINS)
        )
        return Plate("quality_by_temperature", f"By temperature, {self.name(self.best)}", "", panels)

    def name(self, index: int) -> str:
        return str(self.points[index].get("name") or "the best checkpoint") if self.points else "the best checkpoint"

    def note(self) -> str:
        q = self.quality
        said = [
            f"Every figure is of {words.count(q.get('samples'))} texts of {words.count(q.get('max_new_tokens'))} "
            "tokens, each the beginning of a new document, beside held-out text of that length and what "
            f"{_article(self.gram_name)} {self.gram_name} writes, fitted on "
            f"{words.count(self.ngram.get('fitted_on_tokens'))} tokens."
        ]
        searched, whole = number(q.get("searched_characters")), number(q.get("training_characters"))
        if searched < whole:
            said.append(
                f"Copies and new n-grams are looked for in the first {words.short(searched)} of the "
                f"{words.short(whole)} characters of training text: what is copied from the rest is not found."
            )
        return " ".join(said)

    def findings(self) -> list[str]:
        """Sentences on the best checkpoint at a middling temperature."""
        near = self.nearest(NEAR)
        cell = next((c for c in self.cells if c.get("checkpoint") == self.best and c["temperature"] == near), None)
        if cell is None:
            return []
        said = []
        known, held = figure(cell, "known_words"), figure(self.held_out, "known_words")[0]
        if math.isfinite(known[0]):
            said.append(
                f"Of the words that it writes at temperature {near:g}, {words.percent(known[0])}"
                f"{_between(known, 100, '%')} occur in the training text; of those in held-out text, "
                f"{words.percent(held)}."
            )
        copy, held_copy = figure(cell, "longest_copy"), figure(self.held_out, "longest_copy")
        if math.isfinite(copy[0]) and math.isfinite(held_copy[2]):
            more = copy[1] > held_copy[2]
            said.append(
                f"The longest passage that a text has from the training text is {copy[0]:.0f} characters on average"
                f"{_between(copy, 1, '')}; of held-out text it is {held_copy[0]:.0f}{_between(held_copy, 1, '')}, "
                f"so that {'some of it was memorised' if more else 'there is no sign of memorising'}."
            )
        accepted = table(cell, "accepted")
        if number(accepted.get("n")) > 0:
            share = figure(cell, "accepted")
            n = number(accepted["n"])
            said.append(
                f"Of {n:.0f} stories judged the grammar accepts {share[0] * n:.0f}{_between(share, 100, '%')}; a text "
                f"is in order for {figure(cell, 'followed')[0]:.0f} characters before the grammar objects."
            )
        return said

    def table(self) -> dict[str, Any]:
        """The best checkpoint by temperature, with intervals; n-gram model and held-out text last."""
        shown = [
            ("known words", "known_words", "%"),
            ("repeated 4-grams", "repeated_4grams", "%"),
            ("distinct-1", "distinct_1", "%"),
            ("distinct-2", "distinct_2", "%"),
            (f"new {self.novelty.removeprefix('novelty_')}-grams", self.novelty, "%"),
            ("longest copy", "longest_copy", "characters"),
        ]
        if self.stories:
            shown += [("in order for", "followed", "characters"), ("stories accepted", "accepted", "%")]
            shown += [("nats a character", "story_nats", "nats")]
        own = [(f"temperature {c['temperature']:g}", c) for c in self.cells if c.get("checkpoint") == self.best]
        grams = [(f"{self.gram_name}, {c['temperature']:g}", c) for c in self.grams]
        rows = [
            {"name": name, "cells": [_cell(cell, key, unit) for _, key, unit in shown]}
            for name, cell in [*own, *grams, ("held-out text", self.held_out)]
        ]
        return {"head": [name for name, _, _ in shown], "rows": rows, "caption": self.name(self.best)}


def figure(holder: dict[str, Any], name: str) -> tuple[float, float, float]:
    """(value, low, high)"""
    row = table(holder, name)
    value, low, high = (number(row.get(key)) for key in SHARES)
    return value, low, high


def _line(role: str, dashes: str, x: list[float], rows: list[tuple[float, float, float]]) -> Line:
    order = sorted((i for i in range(len(x)) if math.isfinite(x[i])), key=lambda i: x[i])
    value, low, high = (np.array([rows[i][k] for i in order], dtype=float) for k in range(3))
    return role, dashes, np.array([x[i] for i in order], dtype=float), value, low, high


def _cell(holder: dict[str, Any], key: str, unit: str) -> tuple[str, str]:
    value, low, high = figure(holder, key)
    n = number(table(holder, key).get("n"))
    if not math.isfinite(value):
        return "none", ""
    form = {"%": lambda v: f"{100 * v:.0f}%", "nats": lambda v: f"{v:.2f}"}.get(unit, lambda v: f"{v:.0f}")
    between = f"{form(low)} to {form(high)}" if math.isfinite(low) and math.isfinite(high) else ""
    if key == "accepted" and math.isfinite(n):
        return f"{value * n:.0f} of {n:.0f}", between
    return form(value), between


def _between(row: tuple[float, float, float], scale: float, sign: str) -> str:
    _, low, high = row
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    return f" (95%: {scale * low:.0f}{sign} to {scale * high:.0f}{sign})"


def _article(name: str) -> str:
    return "an" if name.startswith(("8", "n")) else "a"


def _list(holder: dict[str, Any], key: str) -> list[Any]:
    value = holder.get(key)
    return value if isinstance(value, list) else []


def _cut(text: str, prompt: str) -> str:
    """As a page has room for it: of many empty lines only the number, and none before a new text."""
    if not text.strip():
        return f"[nothing but {len(text)} blanks]"
    text = text if prompt.strip() else text.lstrip("\r\n")
    text = re.sub(r"\n{4,}", lambda found: f"\n[{len(found[0])} line ends]\n", text)
    return text[:CHARACTERS_SHOWN].rstrip() + " …" if len(text) > CHARACTERS_SHOWN else text
