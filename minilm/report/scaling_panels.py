"""The panels of a scaling study: each draws one thing that the fit or its runs hold on the axes that it is given.

`fit` is a ScalingFit as a dict.
"""

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from scipy import stats

from minilm.report.canvas import LIGHT
from minilm.report.panels import ROUND, log_axis, run_style, spread
from minilm.studies.budget import ChinchillaLaw
from minilm.studies.power_law import ALPHAS, PowerLaw, profile
from minilm.studies.scaling import MAX_MOVE, TOKENS_PER_PARAMETER

COUNT_NAMES = {
    "total": "all parameters",
    "non_embedding": "non-embedding parameters",
    "matrices_and_head": "parameters of matrices and head",
    "embedding": "embedding parameters",
}
DASHED, DOTTED = (0, (4, 3)), (0, (1, 2))
BELOW = 2  # times the range of the losses: a floor farther below them leaves the axis to them
FARTHEST = 0.35  # from alpha: an exponent without one size that lies beyond is drawn at the edge
Fit = dict[str, Any]


def runs_of(points: Sequence[dict[str, Any]], count: str) -> tuple[np.ndarray, np.ndarray]:
    """(parameters, loss) of the runs whose loss is finite, each (P,)."""
    finite = finite_points(points)
    return np.array([p["n_params"][count] for p in finite], float), np.array([p["loss"] for p in finite], float)


def finite_points(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [p for p in points if p["loss"] is not None and math.isfinite(p["loss"])]


def form_of(fit: Fit, form: str | None) -> PowerLaw | None:
    return PowerLaw(**fit[form]) if form and fit[form] else None


def law_of(fit: Fit) -> PowerLaw | None:
    """The form that is reported."""
    return form_of(fit, fit["form"])


def replicated(fit: Fit) -> bool:
    """Whether any size has two seeds: without them the spread of seeds, and so every interval, is unknown."""
    return fit["spread"] is not None and any(size["seeds"] > 1 for size in fit["sizes"])


def half_width(fit: Fit, size: dict[str, Any]) -> float | None:
    """Half of the 95% interval of a size's mean loss, in nats, by the spread pooled over sizes."""
    if not replicated(fit):
        return None
    return float(stats.t.ppf(0.975, fit["spread_df"]) * fit["spread"] / math.sqrt(size["seeds"]) * size["loss"])


def band_of(fit: Fit, n: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """(parameters, lowest, highest loss), each (80,), of the best curves at all exponents within the interval; None
    where there is no interval."""
    law = form_of(fit, "offset")
    if law is None or not replicated(fit):
        return None
    low = max(ALPHAS[0], law.alpha_low or 0.0)
    high = ALPHAS[-1] if law.alpha_high is None else law.alpha_high
    centre = np.log(n).mean()
    alphas = np.append(np.linspace(low, high, 40), law.alpha)
    _, E, a = profile(np.log(n) - centre, np.log(losses), alphas)
    at = _along(n)
    curves = E[:, None] + a[:, None] * np.exp(-alphas[:, None] * (np.log(at) - centre))
    return at, curves.min(0), curves.max(0)


# --- L(N) -------------------------------------------------------------------------------------------------------------


def draw_loss(axes: Axes, fit: Fit, n: np.ndarray, losses: np.ndarray) -> None:
    """Every run, means, both forms over the sizes tried and no further, and the floors."""
    law = law_of(fit)
    offset = fit["form"] == "offset"
    labels = []
    if law:
        at = _along(n)
        if band := band_of(fit, n, losses):
            axes.fill_between(*band, color=LIGHT["s1"], alpha=0.16, linewidth=0)
        axes.plot(at, law.loss(at), color=LIGHT["s1"], linewidth=2.2)
        if offset:
            axes.plot(at, form_of(fit, "pure").loss(at), color=LIGHT["s2"], linewidth=1.6, linestyle=DASHED)
            labels.append((law.E, f"E {law.E:.3f}", "s1"))
    _seeds(axes, fit, n, losses)
    halves = [half_width(fit, s) for s in fit["sizes"]]
    _means(axes, fit, [s["loss"] for s in fit["sizes"]], halves)
    if fit["floor"] is not None:
        labels.append((fit["floor"], f"entropy {fit['floor']:.3f}", "s3"))
    reach = np.ptp(losses) if len(losses) else 0.0
    bars = [s["loss"] + side * (h or 0) for s, h in zip(fit["sizes"], halves, strict=True) for side in (-1, 1)]
    shown = [*losses, *bars, *(v for v, *_ in labels if not reach or losses.min() - v <= BELOW * reach)] or [1.0]
    if offset or not law:
        margin = 0.06 * (max(shown) - min(shown)) or 0.05 * max(shown)
        axes.set_ylim(min(shown) - margin, max(shown) + margin)
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=ROUND))
    else:
        axes.set_yscale("log")
        _log_loss(axes, min(shown), max(shown))
    bottom = axes.get_ylim()[0]
    for value, _, role in labels:
        style = DASHED if role == "s3" else DOTTED
        if value >= bottom:
            axes.axhline(value, color=LIGHT[role], linewidth=1.4, linestyle=style, zorder=1)
    labels = [(max(value, bottom), name if value >= bottom else f"↓ {name}", role) for value, name, role in labels]
    axes.set_ylabel("validation loss, nats a token")
    if not len(n):
        nothing: dict[str, Any] = {"transform": axes.transAxes, "ha": "center", "va": "center", "color": LIGHT["muted"]}
        axes.text(0.5, 0.75, "no run ended with a finite loss", **nothing)
    _size_axis(axes, n, fit["count"])
    _beside(axes, labels)


def draw_pure(axes: Axes, fit: Fit, n: np.ndarray, losses: np.ndarray) -> None:
    """Loss on two logarithmic axes, where the pure form is a straight line and one with a floor bends."""
    at, pure = _along(n), form_of(fit, "pure")
    shown = [*losses, *np.asarray(pure.loss(at))]
    axes.set_yscale("log")
    axes.plot(at, pure.loss(at), color=LIGHT["s2"], linewidth=2, linestyle=DASHED, label="a·N^-alpha")
    if fit["form"] == "offset":
        axes.plot(at, law_of(fit).loss(at), color=LIGHT["s1"], linewidth=2, label="with a floor, E + a·N^-alpha")
    _seeds(axes, fit, n, losses)
    _means(axes, fit, [s["loss"] for s in fit["sizes"]], [half_width(fit, s) for s in fit["sizes"]])
    _log_loss(axes, min(shown), max(shown))
    axes.set_ylabel("validation loss, nats a token")
    _size_axis(axes, n, fit["count"])
    axes.legend(loc="upper right")


def draw_above(axes: Axes, fit: Fit, n: np.ndarray, losses: np.ndarray) -> None:
    """L - E on two logarithmic axes, of the fitted floor and of the known one: there a power law is straight. By the
    fitted floor it is nearly so whatever the truth, since E was chosen for it; by the known one it need not be."""
    law, shown = law_of(fit), []
    axes.set_yscale("log")
    if fit["form"] == "offset":
        at = _along(n)
        axes.plot(at, law.loss(at) - law.E, color=LIGHT["s1"], linewidth=2.2)
        above = losses > law.E
        _seeds(axes, fit, n[above], losses[above] - law.E)
        shown += [*(losses[above] - law.E), *(np.asarray(law.loss(at)) - law.E)]
        means = [s["loss"] - law.E if s["loss"] > law.E else math.nan for s in fit["sizes"]]
        _means(axes, fit, means, [_within(m, half_width(fit, s)) for m, s in zip(means, fit["sizes"], strict=True)])
    if fit["floor"] is not None and losses.min() > fit["floor"]:
        sizes = [s["n"] for s in fit["sizes"]]
        means = [s["loss"] - fit["floor"] for s in fit["sizes"]]
        axes.plot(sizes, means, color=LIGHT["s3"], linewidth=1.6, linestyle=DASHED, marker="o", markersize=4)
        _seeds(axes, fit, n, losses - fit["floor"])
        shown += [*(losses - fit["floor"])]
    _log_loss(axes, min(shown), max(shown))
    axes.set_ylabel("nats a token above the floor")
    _size_axis(axes, n, fit["count"])


def draw_distance(
    axes: Axes, fit: Fit, n: np.ndarray, losses: np.ndarray, law: PowerLaw, other: PowerLaw | None
) -> None:
    """Runs and means in percent of the reported curve, on which the eye sees what the loss's own axis hides."""

    def off(x: Any, loss: Any) -> np.ndarray:
        return 100 * (np.asarray(loss, float) / law.loss(np.asarray(x, float)) - 1)

    axes.axhline(0, color=LIGHT["s1"], linewidth=2.2, zorder=1)
    if other:
        at = _along(n)
        axes.plot(at, off(at, other.loss(at)), color=LIGHT["s2"], linewidth=1.6, linestyle=DASHED)
    _seeds(axes, fit, n, off(n, losses))
    sizes = fit["sizes"]
    means = [float(off(s["n"], s["loss"])) for s in sizes]
    halves = [half_width(fit, s) for s in sizes]
    percent = [None if h is None else float(100 * h / law.loss(s["n"])) for h, s in zip(halves, sizes, strict=True)]
    _means(axes, fit, means, percent)
    ends = [*off(n, losses), *(m + side * (h or 0) for m, h in zip(means, percent, strict=True) for side in (-1, 1))]
    limit = 1.15 * max(map(abs, ends)) or 1.0
    axes.set_ylim(-limit, limit)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=ROUND))
    axes.set_ylabel("loss, % off the curve")
    _size_axis(axes, n, fit["count"])


def draw_without(axes: Axes, fit: Fit) -> None:
    """alpha of the form with a floor: of all sizes with its interval, then without each size; dashed, how far it may
    move before the exponent is withheld."""
    law = form_of(fit, "offset")
    rows = [("all sizes", law.alpha)]
    rows += [(f"without {amount(s['n'])}", s["without"]) for s in fit["sizes"] if s["without"] is not None]
    ends = [e for e in (law.alpha_low, law.alpha_high) if e is not None and replicated(fit)]
    reach = max([MAX_MOVE, *(abs(v - law.alpha) for v in [*ends, *(a for _, a in rows)])])
    reach = 1.12 * min(reach, FARTHEST)
    axes.set_xlim(law.alpha - reach, law.alpha + reach)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    if replicated(fit):
        ends = [-1e3 if law.alpha_low is None else law.alpha_low, 1e3 if law.alpha_high is None else law.alpha_high]
        inside = np.clip(ends, *axes.get_xlim())
        axes.axvspan(*inside, color=LIGHT["s1"], alpha=0.16, linewidth=0)
        axes.plot(inside, [0, 0], color=LIGHT["s1"], linewidth=2.2)
    for side in (-1, 1):
        axes.axvline(law.alpha + side * MAX_MOVE, color=LIGHT["muted"], linewidth=1, linestyle=DASHED)
    for row, (_, alpha) in enumerate(rows):
        over = abs(alpha - law.alpha) > reach
        marker = ("<" if alpha < law.alpha else ">") if over else "o"
        role = "ink" if row == 0 else "s2" if abs(alpha - law.alpha) > MAX_MOVE else "s1"
        axes.plot(np.clip(alpha, *axes.get_xlim()), row, marker, color=LIGHT[role], markersize=7, clip_on=False)
        beside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 10}
        axes.text(1.03, row, f"{alpha:.3f}", color=LIGHT[role if row == 0 or role == "s2" else "muted"], **beside)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
    axes.set_xlabel("alpha")


# --- L(N, D) ----------------------------------------------------------------------------------------------------------


def draw_by_budget(axes: Axes, groups: Sequence[Sequence[dict]], law: ChinchillaLaw | None, count: str) -> None:
    every = np.array([p["n_params"][count] for g in groups for p in g], float)
    for i, group in enumerate(groups):
        role, dashes = run_style(i)
        n, losses = runs_of(group, count)
        axes.plot(n, losses, ".", color=LIGHT[role], markersize=8)
        at = _along(n) if law else np.unique(n)
        curve = law.loss(at, group[0]["tokens"]) if law else [losses[n == size].mean() for size in at]
        axes.plot(at, curve, color=LIGHT[role], linewidth=1.8, linestyle=dashes)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=ROUND))
    axes.set_ylabel("validation loss, nats a token")
    _size_axis(axes, every, count)


def draw_contours(axes: Axes, points: Sequence[dict], law: ChinchillaLaw | None, count: str) -> None:
    n = np.array([p["n_params"][count] for p in points], float)
    d = np.array([p["tokens"] for p in points], float)
    _size_axis(axes, n, count)
    axes.set_yscale("log")
    axes.set_ylim(d.min() / 1.4, d.max() * 1.4)
    _amounts(axes.yaxis, *axes.get_ylim())
    axes.set_ylabel("tokens")
    ends = axes.get_xlim(), axes.get_ylim()
    x, y = (np.geomspace(low, high, 60) for low, high in ends)
    if law:
        losses = np.asarray(law.loss(x[None, :], y[:, None]))
        levels = np.asarray(MaxNLocator(8, steps=ROUND).tick_values(losses.min(), losses.max()))
        levels = levels[(levels > losses.min()) & (levels < losses.max())]
        if len(levels):
            lines = axes.contour(x, y, losses, levels=levels, colors=LIGHT["s1"], linewidths=1.1)
            axes.clabel(lines, fontsize=9, fmt=lambda level: f"{level:g}")
        best = np.array([law.split(c) for c in np.geomspace(1, 1e30, 600)])
        axes.plot(*best.T, color=LIGHT["s2"], linewidth=2)
    axes.plot(x, TOKENS_PER_PARAMETER * x, color=LIGHT["s3"], linewidth=1.6, linestyle=DASHED)
    axes.plot(n, d, ".", color=LIGHT["ink"], markersize=6)
    axes.set_xlim(*ends[0])
    axes.set_ylim(*ends[1])


# --- IsoFLOP ----------------------------------------------------------------------------------------------------------


def draw_parabolas(axes: Axes, curves: Sequence[dict], groups: Sequence[Sequence[dict]], count: str) -> None:
    every = np.array([p["n_params"][count] for g in groups for p in g], float)
    for i, (curve, group) in enumerate(zip(curves, groups, strict=True)):
        role, dashes = run_style(i)
        n, losses = runs_of(group, count)
        axes.plot(n, losses, ".", color=LIGHT[role], markersize=8)
        if len(np.unique(n)) > 2:
            x, at = np.log(n), _along(n, 1.0)
            bend = np.polyfit(x - x.mean(), losses, 2)
            axes.plot(at, np.polyval(bend, np.log(at) - x.mean()), color=LIGHT[role], linewidth=1.8, linestyle=dashes)
        if curve["n"]:
            ring: dict[str, Any] = {
                "markersize": 11,
                "markerfacecolor": "none",
                "markeredgecolor": LIGHT["ink"],
                "markeredgewidth": 1.4,
            }
            axes.plot(curve["n"], curve["loss"], "o", **ring)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=ROUND))
    axes.set_ylabel("validation loss, nats a token")
    _size_axis(axes, every, count)


def draw_minima(axes: Axes, fit: Fit) -> None:
    good = [c for c in fit["curves"] if c["n"]]
    flops = np.array([c["flops"] for c in good])
    axes.set_xscale("log")
    axes.set_yscale("log")
    pad = (flops.max() / flops.min()) ** 0.08 if len(good) > 1 else 2.0
    at = np.array([flops.min() / pad, flops.max() * pad])
    for key, power, role, style in (("n", "n_exponent", "s1", "solid"), ("tokens", "d_exponent", "s2", DASHED)):
        values = np.array([c[key] for c in good])
        axes.plot(flops, values, "o", color=LIGHT[role], markersize=7)
        if fit[power] is not None:
            height = np.log(values).mean() - fit[power] * np.log(flops).mean()
            axes.plot(at, np.exp(height) * at ** fit[power], color=LIGHT[role], linewidth=2, linestyle=style)
    shown = [c[key] for c in good for key in ("n", "tokens")]
    axes.set_xlim(*at)
    axes.set_ylim(min(shown) / 1.8, max(shown) * 1.8)
    _amounts(axes.yaxis, *axes.get_ylim())
    axes.xaxis.set_major_locator(LogLocator(subs=(1,) if flops.max() / flops.min() > 30 else (1, 2, 5), numticks=8))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}".replace("+", "")))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(axis="x", visible=False)
    axes.set_xlabel("FLOPs of a training")
    axes.set_ylabel("at the least loss")


# --- what the panels share --------------------------------------------------------------------------------------------


def amount(value: float, _position: int | None = None) -> str:
    """12_300 -> 12.3k, 200_000 -> 200k: three digits and a letter."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:
            return f"{float(f'{value / size:.3g}'):g}{letter}"
    return f"{value:.3g}"


def _along(n: np.ndarray, beyond: float = 1.15) -> np.ndarray:
    return np.geomspace(n.min() / beyond, n.max() * beyond, 80)


def _seeds(axes: Axes, fit: Fit, n: np.ndarray, values: np.ndarray) -> None:
    """Runs, faint where a mean with its interval stands among them."""
    look = ("muted", 6) if replicated(fit) else ("ink", 9)
    axes.plot(n, values, ".", color=LIGHT[look[0]], markersize=look[1], zorder=3)


def _means(axes: Axes, fit: Fit, means: Sequence[float], halves: Sequence[float | None]) -> None:
    for size, mean, half in zip(fit["sizes"], means, halves, strict=True):
        if half is not None:
            ends = [mean - half, mean + half]
            axes.plot([size["n"]] * 2, ends, color=LIGHT["ink"], linewidth=2, zorder=4, solid_capstyle="butt")
            axes.plot(size["n"], mean, "_", color=LIGHT["ink"], markersize=9, markeredgewidth=2, zorder=4)


def _within(mean: float, half: float | None) -> float | None:
    """A half width that a logarithmic axis can hold."""
    return None if half is None else min(half, 0.999 * mean)


def _size_axis(axes: Axes, n: np.ndarray, count: str) -> None:
    axes.set_xscale("log")
    low, high = (n.min(), n.max()) if len(n) else (1e3, 1e6)
    pad = max(1.2, (high / low) ** 0.06)
    axes.set_xlim(low / pad, high * pad)
    _amounts(axes.xaxis, *axes.get_xlim())
    axes.grid(axis="x", visible=False)
    axes.set_xlabel(COUNT_NAMES[count])


def _amounts(axis: Any, low: float, high: float) -> None:
    """Ticks at round numbers of a logarithmic axis, about five."""
    finer = ((1.0, (1, 2, 3, 5, 7)), (1.8, (1, 2, 5)), (2.6, (1, 3)))
    subs = next((subs for decades, subs in finer if high / low < 10**decades), (1,))
    axis.set_major_locator(LogLocator(subs=subs, numticks=9))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(amount))


def _log_loss(axes: Axes, low: float, high: float) -> None:
    """Losses of a ladder often stay within a factor of two, where a logarithmic axis has few round numbers."""
    log_axis(axes, low, high)
    margin = (high / low) ** 0.06 if high > low else 1.05
    axes.set_ylim(low / margin, high * margin)
    if high / low < 5:
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=ROUND))


def _beside(axes: Axes, labels: Sequence[tuple[float, str, str]]) -> None:
    """Names of horizontal lines at their right end, pushed apart where they would overlap."""
    place = axes.transAxes.inverted().transform
    at = [place(axes.transData.transform((axes.get_xlim()[0], value)))[1] for value, _, _ in labels]
    height = axes.get_position().height * cast(Figure, axes.figure).get_figheight() * 72
    for (_, name, role), y in zip(labels, spread(at, 12 / height), strict=True):
        beside: dict[str, Any] = {"transform": axes.transAxes, "va": "center", "fontsize": 10, "parse_math": False}
        axes.text(1.015, y, name, color=LIGHT[role], **beside)
