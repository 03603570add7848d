"""Figures of what was measured: curves against a size, with the floor; bars where the sizes are few."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from bench.contest import ABSENT, MEMORY, OK
from bench.records import (
    CACHED,
    FAMILIES,
    STRANGER,
    STYLES,
    Family,
    Machine,
    Row,
    digits,
    faults,
    name_of,
    of_family,
    rank,
    series,
    size,
    thousands,
    title_of,
)
from minilm.report.canvas import LIGHT

MODES = {"compiled": "-", "eager": "--", "graphs": "-.", "deterministic": ":", "float32": ":"}  # dashes
FEW = 3  # sizes below which a curve would only pretend to be one


@dataclass(frozen=True)
class Point:
    """One result: value (None: status says why not) and what 20 and 80% of the rounds gave."""

    name: str
    x: int
    value: float | None
    low: float | None = None
    high: float | None = None
    status: str = OK


@dataclass(frozen=True)
class Panel:
    """floor: the best that the machine allows, by x. ticks: labels by x, where the number alone does not do."""

    title: str
    points: Sequence[Point]
    xlabel: str
    ylabel: str
    floor: dict[int, float] = field(default_factory=dict)
    ticks: dict[int, str] = field(default_factory=dict)

    @property
    def top(self) -> float:
        seen = [v for p in self.points for v in (p.value, p.low, p.high) if v is not None]
        return max([*seen, *self.floor.values()], default=1.0)

    def label(self, x: int) -> str:
        return self.ticks.get(x, f"{x:,}").replace("\n", " ")


Band = tuple[str, list[Panel]]  # a heading and panels in a row


def figures(machine: Machine) -> dict[str, Callable[[], Figure]]:
    """By file name, how it is drawn; only those there are results for."""
    drawn = {
        family.name: partial(_bars_by_case if family.name == "cross_entropy" else _against_size, machine, family)
        for family in FAMILIES
        if any(row["status"] == OK for row in of_family(machine, family))
    }
    if any(row["status"] == OK for row in machine.train.values()):
        drawn["training"] = partial(_training, machine)
    return {f"{name}-{machine.slug}.png": draw for name, draw in drawn.items()}


def _against_size(machine: Machine, family: Family) -> Figure:
    """Speed against the length or width: a band a series, a panel a pass or, of one pass, a batch size."""
    key, quantity = ("flops_per_s", "FLOP/s") if family.name == "attention" else ("bytes_per_s", "B/s")
    rows = of_family(machine, family)
    top = max(row[key] or 0 for row in rows)
    scale, unit = (1e12, f"T{quantity}") if top >= 1e12 and family.name == "attention" else (1e9, f"G{quantity}")
    grid: dict[tuple, dict[str, list[Row]]] = {}
    for row in rows:
        column = f"batch {row['shape']['B']}" if family.name == "decode" else row["which"]
        grid.setdefault(series(row), {}).setdefault(column, []).append(row)
    bands = []
    for one, columns in grid.items():
        if family.name == "decode":
            columns = dict(sorted(columns.items(), key=lambda item: item[1][0]["shape"]["B"]))
        panels = [_speed_panel(column, found, family, key, scale, unit) for column, found in columns.items()]
        shapes = [row["shape"] for found in columns.values() for row in found]
        bands.append((_heading(one, shapes, family) + _sizes(panels), panels))
    return _sheet(machine, family.title, bands, rows)


def _heading(one: tuple, shapes: Sequence[dict[str, int]], family: Family) -> str:
    op, dtype, heads, width = one
    if heads is None:
        return f"{op}, {dtype}"
    batches, tokens = {s["B"] for s in shapes}, {s["B"] * s["T"] for s in shapes}
    constant = ""
    if family.name == "attention" and len(batches) == 1:
        constant = f", batch {min(batches)}"
    elif family.name == "attention" and len(tokens) == 1:
        constant = f", {min(tokens):,} tokens"
    apart = "q, k, v apart, " if op == "causal_attention" else ""
    return f"{apart}{heads} heads of width {width}{constant}, {dtype}"


def _sizes(panels: Sequence[Panel]) -> str:
    """For the heading, where there are too few sizes for an axis of their own."""
    sizes = {point.x for panel in panels for point in panel.points}
    if len(sizes) == 1:
        return f", {panels[0].xlabel} = {panels[0].label(min(sizes))}"
    return f", by {panels[0].xlabel}" if len(sizes) < FEW else ""


def _speed_panel(column: str, rows: Sequence[Row], family: Family, key: str, scale: float, unit: str) -> Panel:
    """Of several cases of one width, the one with most rows."""
    most: dict[int, int] = {}
    for row in rows:
        x = row["shape"][family.x]
        most[x] = max(most.get(x, 0), row["shape"].get("rows", 0))
    points, floor = [], {}
    for row in rows:
        x = row["shape"][family.x]
        if row["shape"].get("rows", 0) != most[x]:
            continue
        if row["status"] != OK:
            points.append(Point(row["provider"], x, None, status=row["status"]))
            continue
        work = row[key] * row["median"] / scale
        points.append(Point(row["provider"], x, *(work / row[t] for t in ("median", "p80", "p20"))))
        floor[x] = max(floor.get(x, 0.0), work / row["floor"])
    ticks = {x: f"{thousands(x)}\n× {thousands(n)}" for x, n in most.items() if n}
    title = "forward and backward" if column == "both" else column
    return Panel(title, points, f"{family.xlabel} × rows" if ticks else family.xlabel, unit, floor, ticks)


def _bars_by_case(machine: Machine, family: Family) -> Figure:
    """Time and, where it was measured, peak memory: a panel a case."""
    rows = of_family(machine, family)
    cases: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row["shape"][family.x], size(row))):
        cases.setdefault(row["case"], []).append(row)
    times, peaks = [], []
    for found in cases.values():
        shape = found[0]["shape"]
        title = f"vocabulary {shape['vocab']:,}\n{shape['rows']:,} rows, width {shape['width']:,}"
        points = [_point(row, 0, ("median", "p20", "p80"), 1e3) for row in found]
        floor = {0: min(row["floor"] for row in found if row["floor"]) * 1e3} if any(p.value for p in points) else {}
        times.append(Panel(title, points, family.xlabel, "ms", floor))
        peaks.append(Panel("", [_point(row, 0, ("peak_bytes",) * 3, 2**-20) for row in found], family.xlabel, "MiB"))
    bands = [(f"Time, forward and backward, {rows[0]['dtype']}", times), ("Peak memory", peaks)]
    return _sheet(machine, family.title, bands[: 2 if any(row["peak_bytes"] for row in rows) else 1], rows, bars=True)


def _point(row: Row, x: int, keys: Sequence[str], scale: float) -> Point:
    return Point(name_of(row), x, *(None if row[key] is None else row[key] * scale for key in keys), row["status"])


def _training(machine: Machine) -> Figure:
    """Tokens a second and peak memory against the context length."""
    rows = list(machine.train.values())
    same = [row for row in rows if row.get("preset") == rows[0].get("preset")]
    if len({row["context_length"] for row in same}) > 1:  # a line along the contexts is of one model
        rows = same
    speeds = []
    for row in rows:
        tokens = row["context_length"] * row["batch_size"] / 1e3
        spread = [tokens / row[t] if row.get(t) else None for t in ("p80", "p20")]
        value = None if row["tokens_per_s"] is None else row["tokens_per_s"] / 1e3
        speeds.append(Point(row["label"], row["context_length"], value, *spread, row["status"]))
    panels = [Panel("", speeds, "context length", "thousand tokens/s")]
    if any(row["peak_bytes"] for row in rows):
        peaks = [_point(row, row["context_length"], ("peak_bytes",) * 3, 2**-30) for row in rows]
        panels.append(Panel("", peaks, "context length", "peak memory, GiB"))
    presets = " and ".join(dict.fromkeys(row["preset"] for row in rows if row.get("preset")))
    return _sheet(machine, "Training step", [(presets + _sizes(panels), panels)], rows)


def _sheet(machine: Machine, title: str, bands: Sequence[Band], rows: Sequence[Row], bars: bool = False) -> Figure:
    """Bands of panels under a common legend; below, what could not be drawn and where all was measured."""
    panels = [panel for _, band in bands for panel in band]
    bars = bars or max(len({p.x for p in panel.points}) for panel in panels) < FEW
    across = max(len(band) for _, band in bands)
    width = max(across * (3.1 if bars else 3.9) + 1.2 * bars, 7.5)
    names = [_shown(band) for _, band in bands]
    heights = [3.2] * len(bands)
    if bars:
        counts = [max(len({p.x for p in panel.points}) for panel in band) for _, band in bands]
        heights = [1.25 + 0.28 * len(known) * count for known, count in zip(names, counts, strict=True)]
    handles = _legend(machine, _shown(panels), rows) if not bars else []
    if any(panel.floor for panel in panels):
        handles.append(Line2D([], [], **FLOOR, label="floor, measured on this machine"))
    if not bars and any(p.status == MEMORY for panel in panels for p in panel.points):
        handles.append(Line2D([], [], color=LIGHT["ink"], marker="x", linestyle="", label=MEMORY))
    notes = [f"Not drawn, because {said}." for said in faults(rows, (OK, ABSENT, *([] if bars else [MEMORY])))]
    if bars and (versions := [title_of(row) for row in rows if title_of(row) != name_of(row)]):
        notes.append(f"Versions: {', '.join(dict.fromkeys(versions))}.")
    if any((row.get("fraction") or 0) > 1 for row in rows):
        notes.append(CACHED)
    spread = "lines" if bars else "bands"
    notes.append(f"Medians, {spread} from 20 to 80% of the rounds. {machine.provenance}.")
    caption = [line for note in notes for line in textwrap.wrap(note, int(width * 15))]
    columns = max(min(len(handles), int((width - 1) / 2.1)), 1)
    lines = -(-len(handles) // columns)
    figure = Figure(figsize=(width, sum(heights) + 0.7 + 0.22 * lines + 0.17 * len(caption)), layout="constrained")
    figure.get_layout_engine().set(rect=(0.01, 0.01, 0.98, 0.98), wspace=0.04)
    figure.legend(
        handles=handles, ncols=columns, loc="outside upper left", handlelength=2.8, fontsize=10,
        title=title, title_fontsize=16, alignment="left", borderpad=0.9,
    )  # fmt: skip
    figure.supxlabel("\n".join(caption), x=0.01, ha="left", fontsize=8.5, color=LIGHT["muted"], parse_math=False)
    parts = figure.subfigures(len(bands), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, known, (heading, band) in zip(parts, names, bands, strict=True):
        part.suptitle(heading, x=0.01, ha="left", fontsize=12)
        grid = part.subplots(1, across, squeeze=False)[0]
        for axes in grid[len(band) :]:
            axes.set_axis_off()
        for panel, axes in zip(band, grid, strict=False):
            axes.set_title(panel.title, loc="left", fontsize=10, color=LIGHT["muted"])
            if bars:
                draw_bars(axes, panel, known, machine.ours, labels=panel is band[0])
            else:
                draw_curves(axes, panel, known, machine.ours)
                axes.set_ylabel(panel.ylabel if panel is band[0] or panel.ylabel != band[0].ylabel else "")
    return figure


FLOOR = {"color": LIGHT["ink"], "linestyle": (0, (5, 2, 1, 2)), "linewidth": 1.2}


def _shown(panels: Iterable[Panel]) -> list[str]:
    """Who is in the panels, ours first."""
    return sorted({p.name for panel in panels for p in panel.points if p.status != ABSENT}, key=rank)


def _legend(machine: Machine, names: Sequence[str], rows: Sequence[Row]) -> list[Line2D]:
    titles = {name_of(row): title_of(row) for row in rows}
    return [Line2D([], [], label=titles[one], **_style(one, machine.ours)) for one in names]


def _style(name: str, ours: str) -> dict[str, Any]:
    """Ours is thick and filled. Of a way to train, "triton eager", the dashes tell eager, compiled and graphs apart;
    they are dots for a provider's second way, "flash-attn-3 deterministic"."""
    first, _, mode = name.partition(" ")
    colour, dashes, marker = STYLES.get(first, STRANGER)
    mine = first == ours
    return {
        "color": LIGHT[colour],
        "linestyle": MODES.get(mode, dashes),
        "marker": marker,
        "linewidth": 2.6 if mine else 1.3,
        "markersize": 7 if mine else 5.5,
        "markerfacecolor": LIGHT[colour] if mine and mode != "eager" else "white",
        "zorder": 4 if mine else 3,
    }


def draw_curves(axes: Axes, panel: Panel, names: Sequence[str], ours: str) -> None:
    """Against x on a scale of powers of two. What ran out of memory is a cross in a strip below zero."""
    top = panel.top * 1.06
    axes.set_xscale("log", base=2)
    if panel.floor:
        axes.plot(*zip(*sorted(panel.floor.items()), strict=True), **FLOOR, zorder=2)
    depth: Counter[int] = Counter()
    for name in names:
        found = sorted((p for p in panel.points if p.name == name), key=lambda p: p.x)
        style = _style(name, ours)
        measured = [p for p in found if p.value is not None]
        axes.plot([p.x for p in measured], [p.value for p in measured], **style)
        spread = [p for p in measured if p.low is not None and p.high is not None]
        band = {"color": style["color"], "alpha": 0.2, "linewidth": 0}
        axes.fill_between([p.x for p in spread], [p.low for p in spread], [p.high for p in spread], **band)
        for p in found:
            if p.status == MEMORY:
                depth[p.x] += 1
                cross = {"color": style["color"], "markersize": 6, "markeredgewidth": 1.8}
                axes.plot(p.x, -0.055 * top * depth[p.x], "x", **cross)
    axes.set_ylim(-0.055 * top * (max(depth.values()) + 0.7) if depth else 0, top)
    if depth:
        axes.axhline(0, color=LIGHT["muted"], linewidth=0.8, zorder=1)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.6g}" if y >= 0 else ""))
    xs = sorted({p.x for p in panel.points})
    axes.set_xticks(xs, [panel.ticks.get(x, thousands(x)) for x in xs], fontsize=9)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(panel.xlabel)


def draw_bars(axes: Axes, panel: Panel, names: Sequence[str], ours: str, labels: bool) -> None:
    """A bar a result with its number beside it, or its status where there is none; sizes from the top down."""
    by_place = {(p.x, p.name): p for p in panel.points}
    xs = sorted({p.x for p in panel.points})
    places = [(x, name) for x in xs for name in names]
    for y, place in enumerate(places):
        point = by_place.get(place)
        if point is None or point.value is None:
            word = point.status if point and point.status != OK else "not measured"
            axes.text(0.01 * panel.top, y, word, va="center", fontsize=9, style="italic", color=LIGHT["muted"])
            continue
        style = _style(point.name, ours)
        axes.barh(y, point.value, height=0.7, color=style["color"], alpha=1 if style["linewidth"] > 2 else 0.55)
        end = point.value
        if point.low is not None and point.high is not None:
            axes.plot([point.low, point.high], [y, y], color=LIGHT["ink"], linewidth=1.2)
            end = max(end, point.high)
        beside = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        axes.text(end + 0.02 * panel.top, y, digits(point.value), va="center", fontsize=9, bbox=beside)
    for x, value in panel.floor.items():
        first = xs.index(x) * len(names)
        axes.plot([value, value], [first - 0.5, first + len(names) - 0.5], **FLOOR)
    shown = [f"{name}, {panel.label(x)}" if len(xs) > 1 else name for x, name in places]
    axes.set_yticks(range(len(places)), shown if labels else [""] * len(places), fontsize=10)
    axes.set_ylim(len(places) - 0.4, -0.6)
    axes.set_xlim(0, 1.25 * panel.top)
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(panel.ylabel)
