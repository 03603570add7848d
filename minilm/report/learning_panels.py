"""The panels that show how good a model's texts are: by training step, by temperature and by length of n-gram.

A line is (colour role, line style, x, value, low, high), the last four (n,) float64 in which NaN stands for what is not
known; low and high are ends of 95% intervals, drawn as bars. A level is (colour role, line style, value).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    MaxNLocator,
    NullFormatter,
    NullLocator,
    SymmetricalLogLocator,
)

from minilm.report.canvas import LIGHT
from minilm.report.panels import ROUND, tick

Line = tuple[str, str, np.ndarray, np.ndarray, np.ndarray, np.ndarray]
Level = tuple[str, str, float]


def draw_figure(axes: Axes, lines: Sequence[Line], levels: Sequence[Level], unit: str, against: str) -> None:
    """unit: "%" of shares, "characters", "decades" of characters from none to thousands, or "bits". against: "step",
    "temperature" or "n"."""
    for role, dashes, x, value, low, high in lines:
        color, known = LIGHT[role], np.isfinite(value)
        barred = known & np.isfinite(low) & np.isfinite(high)
        axes.vlines(x[barred], low[barred], high[barred], color=color, linewidth=1.3)
        axes.plot(x[known], value[known], color=color, linestyle=dashes, linewidth=2, marker="o", markersize=4)
    for role, dashes, level in levels:
        if np.isfinite(level):
            axes.axhline(level, color=LIGHT[role], linestyle=dashes, linewidth=1.4, zorder=1)
    _value_axis(axes, unit)
    x = np.concatenate([line[2] for line in lines]) if lines else np.array([])
    if against == "step":
        _step_axis(axes, x)
    else:
        axes.xaxis.set_major_locator(FixedLocator(np.unique(x).tolist()))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel({"n": "length of the n-gram"}.get(against, against))
    axes.grid(axis="x", visible=False)
    if not any(np.isfinite(line[3]).any() for line in lines):
        middle: dict[str, Any] = {"transform": axes.transAxes, "ha": "center", "va": "center", "color": LIGHT["muted"]}
        axes.text(0.5, 0.75, "nothing to count", **middle)


def _value_axis(axes: Axes, unit: str) -> None:
    if unit == "%":
        low, high = axes.dataLim.intervaly if axes.has_data() else (0.0, 1.0)
        margin = 0.06 * (high - low) or 0.05
        axes.set_ylim(max(-0.02, low - margin), min(1.02, high + margin))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}%"))
    elif unit == "characters":
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
    elif unit == "decades":
        axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(bottom=-0.2)
        axes.yaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=1, subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(tick))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=ROUND))


def _step_axis(axes: Axes, steps: np.ndarray) -> None:
    """Logarithmic but for the beginning, since checkpoints are kept more often there."""
    later = steps[steps > 0]
    if len(np.unique(steps)) > 1 and len(later):
        first = float(later.min())
        axes.set_xscale("symlog", linthresh=first, linscale=0.6)
        axes.set_xlim(steps.min() - 0.15 * first, 1.15 * steps.max())
        axes.xaxis.set_major_locator(FixedLocator(_apart(axes, np.unique(steps))))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(tick))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _apart(axes: Axes, steps: np.ndarray) -> list[float]:
    """The first and last steps, and those between whose labels keep clear of their neighbours'."""
    at = axes.xaxis.get_transform().transform(steps.astype(float))
    at = (at - at[0]) / (at[-1] - at[0])
    kept = [0]
    for i in range(1, len(steps) - 1):
        if at[i] - at[kept[-1]] >= 0.16 and at[-1] - at[i] >= 0.16:
            kept.append(i)
    return [float(steps[i]) for i in [*kept, len(steps) - 1]]
