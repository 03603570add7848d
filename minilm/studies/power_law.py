"""A power law through the losses of a ladder, L = E + a·N^-alpha: its least loss, its intervals, and its lack of fit.

Loss: Huber with delta 1e-3 on log L, summed over runs (a mean lets optimizers stop early). Estimation: for each alpha
the rest is a small reweighted least squares with E >= 0 (variable projection), so alpha is found by search on a line
and no start can miss it. Interval: profile likelihood, those alphas whose loss exceeds the least by no more than
F(1, df) at 95% times the Huber loss's own scale E[psi²]/E[psi'] (Ronchetti 1982) at the spread of the seeds, pooled
over sizes; F in place of chi² pays for a spread estimated from few seeds. Where the floor is near zero the interval
covers a little too much.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special, stats

DELTA = 1e-3  # Hoffmann et al. 2022, appendix D.2
ALPHAS = np.geomspace(1e-3, 4.0, 90)
STEPS = np.linspace(0, 1, 9)
SPREAD_FLOOR = 1e-8  # in log L: runs that agree to the bit leave an interval of no width


@dataclass(frozen=True)
class PowerLaw:
    """L = E + a·N^-alpha with 95% intervals; an end that is None lies beyond what was searched."""

    E: float
    a: float
    alpha: float
    alpha_low: float | None
    alpha_high: float | None
    E_low: float
    E_high: float | None

    def loss(self, n: float | np.ndarray) -> float | np.ndarray:
        return self.E + self.a * np.asarray(n, dtype=float) ** -self.alpha

    def slope(self, n: float) -> float:
        """-d log L / d log N at n: what a pure power law looks like from there."""
        reducible = self.a * n**-self.alpha
        return float(self.alpha * reducible / (self.E + reducible))


def profile(
    x: np.ndarray, y: np.ndarray, alphas: np.ndarray, weight: np.ndarray | None = None
) -> tuple[np.ndarray, ...]:
    """Least summed Huber loss of y = log(E + a·exp(-alpha·x)) over E >= 0 and a >= 0, for each alpha: (loss, E, a).

    x (P,), y (..., P), alphas (..., A), weight (..., P) 0 or 1; results (..., A). Reweighted Gauss-Newton: the curve is
    linear in E and a, which leaves a two-by-two system; where its solution leaves the quadrant, the edge has the least.
    """
    u = np.exp(-alphas[..., None] * x)  # (..., A, P)
    y = y[..., None, :]
    keep = np.ones_like(y) if weight is None else weight[..., None, :]
    fitted = np.exp(y) * np.ones_like(u)
    for _ in range(60):
        r = y - np.log(fitted)
        w = keep * DELTA / np.maximum(np.abs(r), DELTA) / fitted**2
        z = fitted * (1 + np.clip(r, -0.5, 0.5))
        s1, su, suu = w.sum(-1), (w * u).sum(-1), (w * u * u).sum(-1)
        sz, szu = (w * z).sum(-1), (w * z * u).sum(-1)
        determinant = np.maximum(s1 * suu - su * su, 1e-300)
        E, a = (sz * suu - szu * su) / determinant, (szu * s1 - sz * su) / determinant
        E, a = np.where(a < 0, sz / s1, E), np.where(E < 0, szu / suu, np.maximum(a, 0))
        E = np.maximum(E, 0)
        before, fitted = fitted, E[..., None] + a[..., None] * u
        if np.abs(fitted / before - 1).max() < 1e-11:
            break
    return (keep * special.huber(DELTA, y - np.log(fitted))).sum(-1), E, a


def best_alpha(x: np.ndarray, y: np.ndarray, weight: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(alpha, loss) (...,) that minimise the profile: a scan, then four zooms into the best cell."""
    alphas = np.broadcast_to(ALPHAS, (*y.shape[:-1], len(ALPHAS)))
    for _ in range(5):
        loss = profile(x, y, alphas, weight)[0]
        i = loss.argmin(-1, keepdims=True)
        best, least = np.take_along_axis(alphas, i, -1), np.take_along_axis(loss, i, -1)
        low = np.take_along_axis(alphas, np.maximum(i - 1, 0), -1)
        high = np.take_along_axis(alphas, np.minimum(i + 1, alphas.shape[-1] - 1), -1)
        alphas = np.concatenate([low + (best - low) * STEPS, best + (high - best) * STEPS[1:]], -1)
    return best[..., 0], least[..., 0]


def pure_line(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(loss, log a, alpha) (...,) of the least summed Huber loss of y (..., P) = log a - alpha·x, x (P,)."""
    r = np.zeros_like(y)
    for _ in range(60):
        w = DELTA / np.maximum(np.abs(r), DELTA)
        total, middle = w.sum(-1), (w * x).sum(-1) / w.sum(-1)
        away = x - middle[..., None]
        alpha = -(w * away * y).sum(-1) / (w * away * away).sum(-1)
        log_a = (w * y).sum(-1) / total + alpha * middle
        before, r = r, y - (log_a[..., None] - alpha[..., None] * x)
        if np.abs(r - before).max() < 1e-13:
            break
    return special.huber(DELTA, r).sum(-1), log_a, alpha


def alpha_interval(
    x: np.ndarray, y: np.ndarray, best: np.ndarray, least: np.ndarray, spread: np.ndarray, df: int
) -> tuple[np.ndarray, np.ndarray]:
    """95% interval (low, high) (...,) of the offset form's alpha; infinite where the scan ends before the profile does.

    Where E = 0 is not rejected the pure form's interval is joined to the profile's: on that edge of what is allowed the
    profile alone covers 93% where the truth has no floor."""
    allowed, inside = allowance(spread, df)
    ends = []
    for side in (-1, 1):
        limit = ALPHAS[0 if side < 0 else -1]
        grid = best[..., None] + (limit - best[..., None]) * np.concatenate([[0.0], np.geomspace(1e-4, 1, 40)])
        for zoom in range(5):
            over = profile(x, y, grid)[0] - least[..., None] > allowed[..., None]
            i = np.maximum(over.argmax(-1, keepdims=True), 1)
            if zoom == 0:
                unbounded = ~over.any(-1)
            inner, outer = np.take_along_axis(grid, i - 1, -1), np.take_along_axis(grid, i, -1)
            grid = inner + (outer - inner) * STEPS
        ends.append(np.where(unbounded, side * np.inf, outer[..., 0]))
    loss, _, alpha = pure_line(x, y)
    half = np.sqrt(2 * allowed / (inside * ((x - x.mean()) ** 2).sum()))
    join = loss - least <= allowed
    low = np.where(join, np.minimum(ends[0], alpha - half), ends[0])
    return low, np.where(join, np.maximum(ends[1], alpha + half), ends[1])


def allowance(spread: float | np.ndarray, df: int) -> tuple[np.ndarray, np.ndarray]:
    """How far the summed Huber loss may rise within a 95% interval, F(1, df)·E[psi²]/(2·E[psi']), and E[psi'], for
    residuals that are normal with this spread."""
    spread = np.asarray(spread, dtype=float)
    ratio = DELTA / spread
    inside = special.ndtr(ratio) - special.ndtr(-ratio)
    square = spread**2 * (inside - 2 * ratio * stats.norm.pdf(ratio)) + DELTA**2 * (1 - inside)
    return stats.f.ppf(0.95, 1, df) * square / (2 * inside), inside


def seed_spread(x: np.ndarray, y: np.ndarray, index: np.ndarray) -> tuple[float, int]:
    """Spread of log L between seeds, pooled over sizes, and its degrees of freedom. Without replicates there is only
    the scatter about the straight line; such a ladder is refused anyway."""
    means = np.bincount(index, y) / np.bincount(index)
    within, df = y - means[index], len(y) - len(means)
    if df == 0:
        _, log_a, alpha = pure_line(x, y)
        within, df = y - (log_a - alpha * x), max(1, len(y) - 2)
    return max(math.sqrt(float(within @ within) / df), SPREAD_FLOOR), df


def fit_offset(x: np.ndarray, y: np.ndarray, centre: float, spread: float, df: int) -> PowerLaw:
    alpha, least = best_alpha(x, y)
    _, E, a = profile(x, y, alpha[None])
    low, high = (float(end) for end in alpha_interval(x, y, alpha, least, np.array(spread), df))
    at, floor, factor = float(alpha), float(E[0]), float(a[0])
    E_low, E_high = _floor_interval(x, y, floor, factor, at, float(least + allowance(spread, df)[0]))
    scale = math.exp(at * centre)
    return PowerLaw(
        E=floor,
        a=factor * scale,
        alpha=at,
        alpha_low=low if math.isfinite(low) else None,
        alpha_high=high if math.isfinite(high) else None,
        E_low=E_low,
        E_high=E_high,
    )


def _floor_interval(
    x: np.ndarray, y: np.ndarray, E: float, a: float, alpha: float, most: float
) -> tuple[float, float | None]:
    """Profile interval of E: where the least loss with E held fixed reaches `most`."""
    curve = E + a * np.exp(-alpha * x)

    def above(held: float) -> float:
        reducible = curve - held
        slope, log_a = np.polyfit(x, np.log(reducible), 1, w=reducible / curve)
        fit = optimize.least_squares(
            lambda p: np.logaddexp(math.log(held) if held else -np.inf, p[0] - p[1] * x) - y,
            (log_a, -slope),
            loss="huber",
            f_scale=DELTA,
            xtol=1e-12,
            ftol=1e-12,
            gtol=1e-12,
        )
        return fit.cost - most

    top = float(curve.min()) * (1 - 1e-6)
    if top <= E or above(E) >= 0:  # a curve without a slope, or runs that agree to the bit
        return E, (E if top > E else None)
    low = 0.0 if E == 0 or above(0.0) <= 0 else optimize.brentq(above, 0.0, E, xtol=1e-6)
    high = None if above(top) <= 0 else optimize.brentq(above, E, top, xtol=1e-6)
    return float(low), high


def fit_pure(x: np.ndarray, y: np.ndarray, centre: float, spread: float, df: int, offset: PowerLaw | None) -> PowerLaw:
    """The straight line in logarithms. Where E is estimated at zero this is the same curve, with the same intervals."""
    _, log_a, alpha = (float(v) for v in pure_line(x, y))
    a = math.exp(log_a + alpha * centre)
    if offset and offset.E == 0:
        return PowerLaw(0.0, a, alpha, offset.alpha_low, offset.alpha_high, 0.0, offset.E_high)
    allowed, inside = allowance(spread, df)
    half = math.sqrt(2 * allowed / (inside * ((x - x.mean()) ** 2).sum()))
    return PowerLaw(0.0, a, alpha, alpha - half, alpha + half, 0.0, 0.0)


def without_each(x: np.ndarray, y: np.ndarray, index: np.ndarray) -> list[float]:
    """alpha with each size left out in turn."""
    keep = (index != np.arange(index.max() + 1)[:, None]).astype(float)  # (sizes, P)
    return best_alpha(x, np.broadcast_to(y, keep.shape), keep)[0].tolist()


def misfit(n: np.ndarray, y: np.ndarray, index: np.ndarray, law: PowerLaw, spread: float, df: int) -> float | None:
    """p of the F test of lack of fit: distance of the sizes' means from the curve against the spread of seeds."""
    counts = np.bincount(index)
    free = len(counts) - (3 if law.E > 0 else 2)
    if free < 1 or len(y) == len(counts) or spread <= SPREAD_FLOOR:
        return None
    away = np.bincount(index, y - np.log(law.loss(n))) / counts
    return float(stats.f.sf((counts * away**2).sum() / free / spread**2, free, df))
