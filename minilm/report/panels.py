"""The panels of a report: each draws one thing that a run recorded on the axes that it is given.

The PNG sets four of them on one sheet and the page sets each on its own. Series are pairs (steps, values) of float64
arrays in which NaN stands for what was not finite.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from minilm.report.canvas import LIGHT, SERIES

AVERAGE_FACTOR = 0.01
ROLLING_STEPS = 100
MARKS_SHOWN = 200  # of one kind on the edge of a panel; a page need not hold one for each step of a long failure
ROUND = [1, 2, 2.5, 5, 10]  # distances between ticks
Series = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Curves:
    """What a run recorded: train, lr and grad_norm against the step of the update, val against the number of updates
    before it. Losses are nats per token."""

    train: Series
    val: Series
    lr: Series
    grad_norm: Series


@dataclass(frozen=True)
class Reference:
    """What the curves are read against. floor: the source's entropy in nats per token; baselines: (label, nats per
    token on the validation text); grad_clip: the norm above which gradients are scaled down; unit: what one token
    is."""

    floor: float | None = None
    baselines: Sequence[tuple[str, float]] = ()
    grad_clip: float | None = None
    unit: str = "token"

    def __post_init__(self):
        """A reference that is not finite is none."""
        if self.floor is not None and not math.isfinite(self.floor):
            object.__setattr__(self, "floor", None)
        known = tuple((name, nats) for name, nats in self.baselines if math.isfinite(nats))
        object.__setattr__(self, "baselines", known)


def moving_average(values: np.ndarray, factor: float = AVERAGE_FACTOR) -> np.ndarray:
    """Exponential moving average of (n,) values, corrected for its start at zero (Kingma and Ba 2015, section 3), so
    that the first value is its own average. A value that is not finite leaves the average as it was."""
    averages = np.full(len(values), np.nan)
    total, weight = 0.0, 0.0
    for index, value in enumerate(values):
        if math.isfinite(value):
            total += factor * (value - total)
            weight += factor * (1 - weight)
        if weight:
            averages[index] = total / weight
    return averages


def rolling_mean(values: np.ndarray, window: int = ROLLING_STEPS) -> np.ndarray:
    """Mean of the finite among the last `window` of (n,) values, fewer at the start; NaN where none is finite."""
    finite = np.isfinite(values)
    known = np.where(finite, values, 0.0)
    total, count = np.zeros(len(values)), np.zeros(len(values))
    for ago in range(min(window, len(values))):  # a difference of running sums would lose digits after a spike
        total[ago:] += known[: len(values) - ago]
        count[ago:] += finite[: len(values) - ago]
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def best_of(series: Series) -> tuple[float, float] | None:
    """(step, loss) of the lowest finite loss, the first of them; None if there is none."""
    steps, losses = series
    finite = np.isfinite(losses)
    if not finite.any():
        return None
    lowest = int(np.argmin(np.where(finite, losses, np.inf)))
    return float(steps[lowest]), float(losses[lowest])


def draw_training_loss(axes: Axes, series: Series, reference: Reference) -> None:
    """Raw loss faint, its moving average bold; what lies above the axis as triangles on its edge, what is not finite
    as crosses."""
    steps, losses = series
    average = moving_average(losses)
    _line(axes, steps, losses, "faint1", "raw", linewidth=0.8)
    _line(axes, steps, average, "s1", f"moving average, factor {AVERAGE_FACTOR:g}", linewidth=2.2)
    finite = losses[np.isfinite(losses)]
    top = max(np.nanmax(average), np.quantile(finite, 0.98)) if len(finite) else None
    _loss_axis(axes, finite, reference, top)
    if top is not None:
        above = np.isfinite(losses) & (losses > axes.get_ylim()[1])
        _on_the_edge(axes, steps[above], "^", "s1", "above the axis")
    _on_the_edge(axes, steps[~np.isfinite(losses)], "x", "s2", "not finite")
    last = [(average[-1], f"{average[-1]:.3f}", "s1")] if len(finite) else []
    _finish(axes, steps, last + _reference_lines(axes, reference), "" if len(finite) else "no finite loss")


def draw_validation_loss(axes: Axes, series: Series, reference: Reference) -> None:
    """Validation loss with the best evaluation marked."""
    steps, losses = series
    marker = "o" if len(steps) <= 60 else None
    _line(axes, steps, losses, "s2", "validation", linewidth=2.2, marker=marker, markersize=4)
    best = best_of(series)
    if best:
        ring: dict[str, Any] = {
            "markersize": 11,
            "markerfacecolor": "none",
            "markeredgecolor": LIGHT["ink"],
            "markeredgewidth": 1.4,
        }
        axes.plot(*best, "o", label=f"best {best[1]:.3f} at step {best[0]:,.0f}", **ring)
    _loss_axis(axes, losses[np.isfinite(losses)], reference, None)
    _on_the_edge(axes, steps[~np.isfinite(losses)], "x", "s2", "not finite")
    nothing = "no finite validation loss" if len(steps) else "no evaluation yet"
    _finish(axes, steps, _reference_lines(axes, reference), "" if best else nothing)


def draw_learning_rate(axes: Axes, series: Series) -> None:
    steps, rates = series
    finite = rates[np.isfinite(rates)]
    label = f"peak {_short(float(finite.max()))} at step {steps[np.nanargmax(rates)]:,.0f}" if len(finite) else None
    _line(axes, steps, rates, "s3", label, linewidth=2.2)
    if len(finite):
        axes.set_ylim(0, 1.08 * finite.max() or 1)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=ROUND))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    last = [(finite[-1], _short(float(finite[-1]), 3), "s3")] if len(finite) else []
    _finish(axes, steps, last, "" if len(finite) else "no learning rate recorded")


def draw_gradient_norm(axes: Axes, series: Series, clip: float | None) -> None:
    """Norm before clipping on a log axis, its rolling mean, and the line at which it is clipped."""
    steps, norms = series
    drawn, mean = (np.where(values > 0, values, np.nan) for values in (norms, rolling_mean(norms)))
    positive = drawn[np.isfinite(drawn)]
    axes.set_yscale("log")
    _line(axes, steps, drawn, "faint4", "raw", linewidth=0.8)
    _line(axes, steps, mean, "s4", f"rolling mean over {ROLLING_STEPS}", linewidth=2.2)
    marks = [positive.min(), positive.max()] if len(positive) else [0.1, 10.0]
    labels = []
    if clip:
        marks.append(clip)
        axes.axhline(clip, color=LIGHT["ink"], linewidth=1, linestyle=(0, (4, 3)), label=f"_clip {clip:g}")
        labels.append((clip, f"clip {clip:g}", "ink"))
    log_axis(axes, min(marks), max(marks))
    _on_the_edge(axes, steps[~np.isfinite(norms)], "x", "s2", "not finite")
    _finish(axes, steps, labels, "" if len(positive) else "no gradient norm recorded")


def draw_above_floor(axes: Axes, curves: Curves, floor: float) -> None:
    """L - E, what is left to learn, on two log axes: the only form in which a power law is a straight line."""
    left: list[Any] = []
    for (steps, losses), name, role in ((curves.train, "training, averaged", "s1"), (curves.val, "validation", "s2")):
        losses = moving_average(losses) if role == "s1" else losses
        seen = (steps > 0) & np.isfinite(losses) & (losses > floor)
        left.extend(losses[seen] - floor)
        marker = "o" if role == "s2" and seen.sum() <= 60 else None
        _line(axes, steps[seen], losses[seen] - floor, role, name, linewidth=2.2, marker=marker, markersize=4)
    axes.set_xscale("log")
    axes.set_yscale("log")
    log_axis(axes, *((min(left), max(left)) if left else (0.1, 1)))
    axes.set_ylabel("nats above the floor")
    _finish(axes, curves.train[0], [], "" if left else "nothing above the floor")
    axes.xaxis.set_major_formatter(FuncFormatter(tick))
    axes.xaxis.set_minor_formatter(NullFormatter())


def draw_throughput(axes: Axes, series: Series) -> None:
    steps, rates = series
    _line(axes, steps, rates, "faint5", "raw", linewidth=0.8)
    _line(axes, steps, rolling_mean(rates), "s5", f"rolling mean over {ROLLING_STEPS}", linewidth=2.2)
    axes.set_ylim(0, 1.08 * np.quantile(rates[np.isfinite(rates)], 0.995) or 1)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=ROUND))
    axes.yaxis.set_major_formatter(FuncFormatter(tick))
    _finish(axes, steps, [], "")


def draw_comparison(axes: Axes, runs: Sequence[Series], against: str, ylabel: str, reference: Reference) -> None:
    """One validation curve a run, in the colours and dashes of `run_style`, against what `against` names."""
    for index, (x, y) in enumerate(runs):
        role, dashes = run_style(index)
        _line(axes, x, y, role, f"_run {index}", linewidth=2, linestyle=dashes)
    finite = np.concatenate([y[np.isfinite(y)] for _, y in runs])
    _loss_axis(axes, finite, reference, None)
    axes.set_ylabel(ylabel)
    _finish(axes, np.array([0.0, 1.0]), _reference_lines(axes, reference), "" if len(finite) else "no evaluation yet")
    axes.set_xlabel(against)


def run_style(index: int) -> tuple[str, str]:
    """(colour role, line style) of the index-th run of a comparison."""
    return SERIES[index % len(SERIES)], ("solid", "dashed", "dotted")[index // len(SERIES) % 3]


def _line(axes: Axes, x: np.ndarray, y: np.ndarray, role: str, label: str | None, **style: Any) -> None:
    known = int(np.isfinite(y).sum())
    label = label if known else None
    if known == 1:  # a line of one point would not be seen
        style = style | {"marker": "o", "markersize": 6}
    axes.plot(x, y, color=LIGHT[role], label=label, **style)


def _on_the_edge(axes: Axes, steps: np.ndarray, marker: str, role: str, label: str) -> None:
    if len(steps):
        kept = steps[np.unique(np.linspace(0, len(steps) - 1, MARKS_SHOWN).astype(int))]
        edge: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "clip_on": False}
        axes.plot(kept, np.ones(len(kept)), marker, color=LIGHT[role], markersize=6, label=label, **edge)


def _loss_axis(axes: Axes, finite: np.ndarray, reference: Reference, top: float | None) -> None:
    axes.set_ylabel(f"nats per {reference.unit}")
    best = [min(nats for _, nats in reference.baselines)] if reference.baselines else []
    marks = best + ([] if reference.floor is None else [reference.floor])
    if len(finite) or marks:
        low = min([*finite, *marks])
        high = max([*marks, finite.max() if top is None else top] if len(finite) else marks)
        margin = 0.05 * (high - low) or 0.5
        axes.set_ylim(low - margin, high + margin)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=ROUND))


def _reference_lines(axes: Axes, reference: Reference) -> list[tuple[float, str, str]]:
    low, high = axes.get_ylim()
    labels = []
    for name, nats in reference.baselines:
        if low < nats < high:
            dots: dict[str, Any] = {"linewidth": 0.9, "alpha": 0.6, "linestyle": (0, (1, 2))}
            axes.axhline(nats, color=LIGHT["muted"], zorder=1, label=f"_{name}", **dots)
            labels.append((nats, name, "muted"))
    if reference.floor is not None:
        axes.axhline(reference.floor, color=LIGHT["s3"], linewidth=1.4, linestyle=(0, (4, 3)), zorder=1, label="_floor")
        labels.append((reference.floor, f"floor {reference.floor:.3f}", "s3"))
    return labels


def log_axis(axes: Axes, low: float, high: float) -> None:
    """A vertical log axis that holds low to high, with ticks at 1, 2 and 5 where it spans few decades."""
    axes.set_ylim(low / 1.3, high * 1.3)
    few_decades = high / low < 300
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few_decades else (1,), numticks=12))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))


def _finish(axes: Axes, steps: np.ndarray, labels: list[tuple[float, str, str]], nothing: str) -> None:
    """Step axis, legend above the panel, labels of horizontal lines beside it, pushed apart where they would
    overlap."""
    axes.set_xlabel("step")
    axes.xaxis.set_major_formatter(FuncFormatter(tick))
    if axes.get_xscale() == "linear":
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=ROUND))
        if len(steps) == 0:
            axes.set_xticks([])
        elif steps[0] == steps[-1]:
            axes.set_xlim(steps[0] - 1, steps[0] + 1)
    axes.grid(axis="x", visible=False)
    handles, names = axes.get_legend_handles_labels()
    if names:
        legend = axes.legend(handles, names, loc="lower left", bbox_to_anchor=(0, 1.04), ncols=2)
        for handle in cast(list[Line2D], legend.legend_handles):
            handle.set_linewidth(max(2, handle.get_linewidth()))
    if nothing:
        axes.text(0.5, 0.75, nothing, transform=axes.transAxes, ha="center", va="center", color=LIGHT["muted"])
    height = axes.get_position().height * cast(Figure, axes.figure).get_figheight() * 72
    place = axes.transAxes.inverted().transform
    at = [place(axes.transData.transform((axes.get_xlim()[0], value)))[1] for value, _, _ in labels]
    for (_, name, role), y in zip(labels, spread(at, 12 / height), strict=True):
        beside: dict[str, Any] = {"transform": axes.transAxes, "va": "center", "fontsize": 10, "parse_math": False}
        axes.text(1.015, y, name, color=LIGHT[role], **beside)


def spread(places: Sequence[float], gap: float) -> list[float]:
    """The places, each moved as little as keeps any two at least `gap` apart: neighbours that are too close are
    centred on their mean."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    groups: list[list[int]] = []

    def centre(group: list[int]) -> float:
        return sum(places[i] for i in group) / len(group)

    def too_close(lower: list[int], upper: list[int]) -> bool:
        return centre(upper) - centre(lower) < gap * (len(lower) + len(upper)) / 2

    for index in order:
        groups.append([index])
        while len(groups) > 1 and too_close(*groups[-2:]):
            groups[-2:] = [groups[-2] + groups[-1]]
    moved = list(places)
    for group in groups:
        for rank, index in enumerate(group):
            moved[index] = centre(group) + gap * (rank - (len(group) - 1) / 2)
    return moved


def _short(value: float, digits: int = 4) -> str:
    if value and (abs(value) < 1e-4 or abs(value) >= 1e5):
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.{digits}g}"


def tick(value: float, _position: int | None = None) -> str:
    """A count on an axis: 5000 -> 5,000, 200000 -> 200k."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if abs(value) >= 1e5 else f"{value:,.6g}"
