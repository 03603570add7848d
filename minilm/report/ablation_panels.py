"""The panels of an ablation study: each draws one thing that its table or its runs hold on given axes."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from minilm.report import words
from minilm.report.canvas import LIGHT
from minilm.report.panels import ROUND, log_axis, tick
from minilm.report.runs import Run
from minilm.studies.design import BASELINE

LABEL_SHOWN = 46  # characters of an arm's name that fit over its interval
FAR_OUT = 6  # an interval that reaches so many times further than most leaves the axis to the others
SETTLED = 1 / 3  # of the steps, after which losses set the axis: arms differ by far less than training falls at first
OF_VERDICT = {"better": "s3", "worse": "s2"}
Row = dict[str, Any]


def name_of(arm: str) -> str:
    """An arm's name as one line that any page can hold."""
    return words.visible(arm).replace("\n", " ")


def decimals(low: float | None, high: float | None) -> int:
    """Decimal places that an interval bears: two digits of its half width. Four where there is no interval."""
    if low is None or high is None or not high > low:
        return 4
    return min(6, max(0, 1 - math.floor(math.log10((high - low) / 2))))


def draw_forest(axes: Axes, compared: Sequence[Row], control: Row | None, dots: Mapping[str, Sequence[float]]) -> None:
    """A row an arm, its name and difference written over its interval; A/A last."""
    entries = [
        (
            name_of(row["arm"]),
            (row["difference"], row["difference_low"], row["difference_high"]),
            row["detectable"],
            OF_VERDICT.get(row["verdict"], "muted"),
            dots.get(row["arm"], ()),
            "diverged" if row["diverged"] else "no loss yet",
        )
        for row in compared
    ]
    if control:
        bounds = control["difference"], control["low"], control["high"]
        entries.append(("A/A: the baseline, other seeds", bounds, None, "ink", (), "not judged"))
    reach = [max(abs(v) for v in (*bounds, 0.0) if v is not None) for _, bounds, *_ in entries]
    reach = [r for r in reach if r > 0] or [0.01]
    most = FAR_OUT * statistics.median(reach)
    limit = 1.06 * max([r for r in reach if r <= most] + [d for _, _, d, *_ in entries if d and d <= most])
    axes.set_xlim(-limit, limit)
    axes.set_ylim(-len(entries), 0)
    for i, (name, (difference, low, high), detectable, role, seeds, nothing) in enumerate(entries):
        y = -i - 0.68
        if detectable:
            axes.add_patch(Rectangle((-detectable, -i - 1), 2 * detectable, 1, color=LIGHT["grid"], alpha=0.55, lw=0))
        shown = name if len(name) <= LABEL_SHOWN else name[: LABEL_SHOWN - 1] + "…"
        beside: dict[str, Any] = {
            "transform": axes.get_yaxis_transform(),
            "va": "center",
            "fontsize": 10,
            "parse_math": False,
        }
        axes.text(0, -i - 0.27, shown, color=LIGHT["ink"], **beside)
        said = nothing if difference is None else f"{difference:+.{decimals(low, high)}f}"
        axes.text(1, -i - 0.27, said, color=LIGHT["s2" if difference is None else role], ha="right", **beside)
        inside = [s for s in seeds if abs(s) <= limit] if len(seeds) > 1 else []
        axes.plot(inside, [y - 0.17] * len(inside), ".", color=LIGHT["muted"], markersize=4, zorder=3)
        if difference is None:
            continue
        if low is not None and max(low, -limit) < min(high, limit):
            axes.plot([max(low, -limit), min(high, limit)], [y, y], color=LIGHT[role], linewidth=2, zorder=3)
        away = abs(difference) > limit
        mark = ("<" if difference < 0 else ">") if away else "D" if name.startswith("A/A") else "o"
        at = math.copysign(0.985 * limit, difference) if away else difference
        axes.plot([at], [y], mark, color=LIGHT[role], markersize=6, zorder=4)
    if control:
        axes.axhline(1 - len(entries), color=LIGHT["muted"], linewidth=0.8)
    axes.axvline(0, color=LIGHT["ink"], linewidth=1, zorder=2)
    axes.yaxis.set_major_locator(NullLocator())
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if round(value, 12) else "0"))
    axes.set_xlabel("better  ←  nats a token  →  worse")


@dataclass(frozen=True)
class Curve:
    """Validation loss of an arm: its mean over seeds and the lowest and the highest seed, (n,) arrays."""

    name: str
    steps: np.ndarray
    wall: np.ndarray  # seconds, the mean over seeds
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def curve_of(name: str, found: Sequence[Run]) -> Curve | None:
    """Over the evaluations that all seeds have and that are finite in all of them; None where there is none."""
    by_seed = [{r["step"]: (r["val_loss"], r["wall"]) for r in run.eval_rows} for run in found]
    shared = set.intersection(*map(set, by_seed)) if by_seed else set()
    steps = sorted(s for s in shared if all(math.isfinite(rows[s][0]) for rows in by_seed))
    if not steps:
        return None
    table = np.array([[rows[s] for s in steps] for rows in by_seed])
    loss, wall = table[:, :, 0], table[:, :, 1].mean(axis=0)
    return Curve(name, np.array(steps, dtype=float), wall, loss.mean(axis=0), loss.min(axis=0), loss.max(axis=0))


def draw_curves(axes: Axes, curves: Sequence[tuple[Curve, str, str]], against: str) -> None:
    """Curves with their colour role and line style, against "step" or "wall"."""
    longest = max(curve.wall[-1] for curve, *_ in curves)
    second, clock = next(
        (choice for choice in ((3600, "hours"), (60, "minutes")) if longest > 5 * choice[0]), (1, "seconds")
    )
    for curve, role, dashes in curves:
        x = curve.steps if against == "step" else curve.wall / second
        if np.any(curve.high > curve.low):
            axes.fill_between(x, curve.low, curve.high, color=LIGHT[role], alpha=0.16, linewidth=0)
        marker = "o" if len(x) <= 12 else None
        axes.plot(x, curve.mean, color=LIGHT[role], linestyle=dashes, linewidth=1.8, marker=marker, markersize=3)
    axes.set_ylim(*_loss_limits([curve for curve, *_ in curves]))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=ROUND))
    axes.set_ylabel("nats a token")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
    axes.xaxis.set_major_formatter(FuncFormatter(tick))
    axes.set_xlabel("step" if against == "step" else f"{clock} of training")
    axes.grid(axis="x", visible=False)


def _loss_limits(curves: Sequence[Curve]) -> tuple[float, float]:
    """From the lowest loss to the highest that any arm has once it has settled, or begins with if that is lower."""
    low = min(curve.low.min() for curve in curves)
    late = [curve.high[curve.steps >= SETTLED * curve.steps[-1]].max() for curve in curves]
    high = min(max(late), max(curve.high[0] for curve in curves))
    margin = 0.06 * (high - low) or 0.1
    return low - margin, high + margin


def draw_ladder(
    axes: Axes, points: Sequence[tuple[int, Row, Sequence[float]]], key: str, limits: tuple[float, float]
) -> None:
    xs = [x for x, *_ in points]
    axes.set_xscale("log")
    axes.set_ylim(*limits)
    axes.plot(xs, [row["mean"] for _, row, _ in points], color=LIGHT["faint1"], linewidth=1.4, zorder=1)
    for x, row, seeds in points:
        role = "ink" if row["axis"] == BASELINE else "s1"
        axes.plot([x] * len(seeds), seeds, ".", color=LIGHT["muted"], markersize=6, zorder=3)
        if row["low"] is not None:
            axes.plot([x, x], [row["low"], row["high"]], color=LIGHT[role], linewidth=2, zorder=2)
        axes.plot([x], [row["mean"]], "_", color=LIGHT[role], markersize=14, markeredgewidth=2.4, zorder=4)
        top = max([*seeds, row["mean"], row["high"] or row["mean"]])
        over: dict[str, Any] = {"xytext": (0, 5), "textcoords": "offset points", "ha": "center", "fontsize": 10}
        axes.annotate(words.short((row["parameters"] or {}).get("total")), (x, top), color=LIGHT["muted"], **over)
    pad = (max(xs) / min(xs)) ** 0.12
    axes.set_xlim(min(xs) / pad, max(xs) * pad)
    _at_values(axes, xs)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=ROUND))
    axes.set_xlabel(key)
    axes.set_ylabel("nats a token")


def _at_values(axes: Axes, values: Iterable[int]) -> None:
    """Ticks of a logarithmic x axis at the values that were tried, and nowhere else."""
    axes.xaxis.set_major_locator(FixedLocator(sorted(set(values))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(tick))
    axes.grid(axis="x", visible=False)


def draw_by_context(
    axes: Axes, lines: Mapping[str, Sequence[tuple[int, float]]], styles: Mapping[str, str], unit: str
) -> None:
    axes.set_xscale("log")
    for name, points in lines.items():
        axes.plot(*zip(*points, strict=True), color=LIGHT[styles[name]], linewidth=2, marker="o", markersize=5)
    _at_values(axes, [x for points in lines.values() for x, _ in points])
    axes.set_ylim(0, 1.1 * max(y for points in lines.values() for _, y in points) or 1)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
    axes.yaxis.set_major_formatter(FuncFormatter(tick))
    axes.set_xlabel("context length, tokens")
    axes.set_ylabel(unit)


def draw_deviations(axes: Axes, lines: Sequence[tuple[np.ndarray, np.ndarray, str]], noise: float | None) -> None:
    axes.set_yscale("log")
    seen = [noise] if noise else []
    for steps, apart, role in lines:
        drawn = np.where(apart > 0, apart, np.nan)
        axes.plot(steps, drawn, color=LIGHT[role], linewidth=1.4)
        seen += drawn[np.isfinite(drawn)].tolist()
    if noise:
        axes.axhline(noise, color=LIGHT["ink"], linewidth=1, linestyle=(0, (4, 3)))
    log_axis(axes, *((min(seen), max(seen)) if seen else (1e-6, 1e-4)))
    if not seen:
        axes.text(0.5, 0.5, "the same to the last digit", transform=axes.transAxes, ha="center", color=LIGHT["muted"])
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
    axes.xaxis.set_major_formatter(FuncFormatter(tick))
    axes.grid(axis="x", visible=False)
    axes.set_xlabel("step")
    axes.set_ylabel("nats a token")
