"""Scaling laws from small ladders: L(N) with its refusals, L(N, D), and IsoFLOP parabolas.

Two forms of L(N) are always fitted, on a parameter count that is named, for the count decides the exponent:

    pure     L = a·N^-alpha          Kaplan et al. 2020, equation 1.1: what their 0.076 may be compared with
    offset   L = E + a·N^-alpha      E >= 0, the loss that no size removes (Hoffmann et al. 2022, with N alone)

The headline is the offset form. Where E is estimated at zero, as in half of all clean ladders without a floor, the two
are the same curve and the pure form is reported with the upper end of E's interval; that is no refusal.

Loss: Huber with delta 1e-3 on log L, summed over runs (a mean lets optimizers stop early). Estimation: for each alpha
the rest is a small reweighted least squares with E >= 0 (variable projection), so alpha is found by search on a line
and no start can miss it. Interval: profile likelihood, those alphas whose loss exceeds the least by no more than
F(1, df) at 95% times the Huber loss's own scale E[psi²]/E[psi'] (Ronchetti 1982) at the spread of the seeds, pooled
over sizes; F in place of chi² pays for a spread estimated from few seeds. Where the floor is near zero the interval
covers a little too much.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import optimize, special, stats

from minilm.errors import UserError

DELTA = 1e-3  # Hoffmann et al. 2022, appendix D.2
KAPLAN_ALPHA = 0.076  # Kaplan et al. 2020, L(N), non-embedding parameters
COUNTS = ("total", "non_embedding", "matrices_and_head", "embedding")
TOKENS_PER_PARAMETER = 20  # Hoffmann et al. 2022, as its three approaches agree near 6e23 FLOPs
MIN_SIZES, MIN_DECADES, MIN_SEEDS, MAX_WIDTH, MAX_MOVE, MAX_EPOCHS = 5, 1.0, 3, 0.2, 0.1, 4
LEAST_BEST_STEP = 0.8  # of the run: a best validation before it means that the model overfits
SAME_TOKENS = 0.01  # budgets within this share of each other are one budget
MISFIT_LEVEL = 0.01
ALPHAS = np.geomspace(1e-3, 4.0, 90)
STEPS = np.linspace(0, 1, 9)
SPREAD_FLOOR = 1e-8  # in log L: runs that agree to the bit leave an interval of no width


@dataclass(frozen=True)
class Point:
    """One finished run. n_params holds the counts that are known, by name (COUNTS); what is None was not recorded."""

    n_params: Mapping[str, int]
    loss: float | None  # nats per token; None or not finite: diverged
    seed: int = 0
    tokens: float | None = None
    epochs: float | None = None
    lr: float | None = None
    lr_tried: tuple[float, ...] = ()
    best_step: int | None = None
    last_step: int | None = None
    tokenizer: str | None = None
    schedule: str | None = None
    flops: float | None = None


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


@dataclass(frozen=True)
class Size:
    n: int
    seeds: int
    loss: float  # mean over seeds
    without: float | None  # alpha when this size is left out
    slope: float | None  # local slope of log L on log N under the reported form
    tokens_per_parameter: float | None


@dataclass(frozen=True)
class ScalingFit:
    """What a ladder says. `exponent` is None where a refusal withholds it: then `slope` is a description, no law."""

    count: str
    form: str | None  # offset, pure; None where there is nothing to fit
    exponent: float | None
    slope: float | None  # of log L on log N over the ladder: alpha of the pure form
    pure: PowerLaw | None
    offset: PowerLaw | None
    sizes: tuple[Size, ...]
    spread: float | None  # standard deviation of log L between seeds, pooled over sizes
    spread_df: int
    misfit_p: float | None  # chance of means this far from the curve, were the reported form true
    kaplan_ratio: float | None  # slope over 0.076
    kaplan_note: str
    tokens_note: str | None
    floor: float | None
    floor_inside: bool | None
    refusals: tuple[str, ...]
    warnings: tuple[str, ...] = field(default=())

    @property
    def law(self) -> PowerLaw | None:
        """The form that is reported."""
        return self.offset if self.form == "offset" else self.pure

    def predict(self, n: float | np.ndarray) -> float | np.ndarray:
        """Loss in nats at n parameters of the named count under the reported form. Raises UserError without a fit."""
        if self.law is None:
            raise UserError("No curve was fitted: the ladder needs two sizes or more; train more sizes.")
        return self.law.loss(n)


def fit_scaling(points: Sequence[Point], count: str = "non_embedding", floor: float | None = None) -> ScalingFit:
    """Both forms of L(N) on the named count; `floor` is the entropy of the source in nats per token, where it is known.

    Raises UserError for a count that is unknown or that a point lacks, and for losses or counts that are not positive.
    """
    if count not in COUNTS:
        raise UserError(f"The parameter count is {count!r}; it must be one of {', '.join(COUNTS)}.")
    if any(count not in p.n_params for p in points):
        raise UserError(f"A run has no count {count!r} of its parameters; name a count that every run has.")
    finite = [p for p in points if p.loss is not None and math.isfinite(p.loss)]
    if any(p.loss <= 0 or p.n_params[count] <= 0 for p in finite):
        raise UserError(f"A run has a loss or a count {count!r} that is not above 0; logarithms need positive numbers.")
    n = np.array([p.n_params[count] for p in finite], dtype=float)
    y = np.log(np.array([p.loss for p in finite], dtype=float))
    sizes, index = np.unique(n, return_inverse=True)
    refusals, warnings = _rules(finite, count, sizes, index)
    if len(finite) < len(points):
        warnings.append(f"{len(points) - len(finite)} diverged of {len(points)} runs are left out.")

    pure = offset = law = spread = misfit = None
    spread_df = 0
    without: list[float | None] = [None] * len(sizes)
    if len(sizes) >= 2:
        centre = float(np.log(sizes).mean())
        x = np.log(n) - centre
        spread, spread_df = _spread(x, y, index)
        if len(sizes) >= 3:
            offset = _fit_offset(x, y, centre, spread, spread_df)
            without = _without_each(x, y, index) if len(sizes) >= 4 else without
            refusals += _fragility(offset, without, sizes)
        pure = _fit_pure(x, y, centre, spread, spread_df, offset)
        law = offset if offset and offset.E > 0 else pure
        misfit = _misfit(n, y, index, law, spread, spread_df)
        if misfit is not None and misfit < MISFIT_LEVEL:
            warnings.append(f"The sizes stray from the curve by more than seeds explain (p {misfit:.1g}).")

    tokens = _tokens_per_parameter(finite, n, index, len(sizes))
    kaplan = count == "non_embedding" and pure is not None
    return ScalingFit(
        count=count,
        form=None if law is None else "offset" if law is offset else "pure",
        exponent=law.alpha if law and not refusals else None,
        slope=pure.alpha if pure else None,
        pure=pure,
        offset=offset,
        sizes=tuple(
            Size(
                n=int(size),
                seeds=int((index == k).sum()),
                loss=float(np.exp(y[index == k]).mean()),
                without=without[k],
                slope=law.slope(size) if law else None,
                tokens_per_parameter=tokens[k],
            )
            for k, size in enumerate(sizes)
        ),
        spread=spread,
        spread_df=spread_df,
        misfit_p=misfit,
        kaplan_ratio=pure.alpha / KAPLAN_ALPHA if kaplan else None,
        kaplan_note=_kaplan_note(count, law),
        tokens_note=_tokens_note([t for t in tokens if t], count),
        floor=floor,
        floor_inside=_inside(floor, offset),
        refusals=tuple(refusals),
        warnings=tuple(warnings),
    )


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


def _spread(x: np.ndarray, y: np.ndarray, index: np.ndarray) -> tuple[float, int]:
    """Spread of log L between seeds, pooled over sizes, and its degrees of freedom. Without replicates there is only
    the scatter about the straight line; such a ladder is refused anyway."""
    means = np.bincount(index, y) / np.bincount(index)
    within, df = y - means[index], len(y) - len(means)
    if df == 0:
        _, log_a, alpha = pure_line(x, y)
        within, df = y - (log_a - alpha * x), max(1, len(y) - 2)
    return max(math.sqrt(float(within @ within) / df), SPREAD_FLOOR), df


def _fit_offset(x: np.ndarray, y: np.ndarray, centre: float, spread: float, df: int) -> PowerLaw:
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


def _fit_pure(x: np.ndarray, y: np.ndarray, centre: float, spread: float, df: int, offset: PowerLaw | None) -> PowerLaw:
    """The straight line in logarithms. Where E is estimated at zero this is the same curve, with the same intervals."""
    _, log_a, alpha = (float(v) for v in pure_line(x, y))
    a = math.exp(log_a + alpha * centre)
    if offset and offset.E == 0:
        return PowerLaw(0.0, a, alpha, offset.alpha_low, offset.alpha_high, 0.0, offset.E_high)
    allowed, inside = allowance(spread, df)
    half = math.sqrt(2 * allowed / (inside * ((x - x.mean()) ** 2).sum()))
    return PowerLaw(0.0, a, alpha, alpha - half, alpha + half, 0.0, 0.0)


def _without_each(x: np.ndarray, y: np.ndarray, index: np.ndarray) -> list[float]:
    """alpha with each size left out in turn."""
    keep = (index != np.arange(index.max() + 1)[:, None]).astype(float)  # (sizes, P)
    return best_alpha(x, np.broadcast_to(y, keep.shape), keep)[0].tolist()


def _misfit(n: np.ndarray, y: np.ndarray, index: np.ndarray, law: PowerLaw, spread: float, df: int) -> float | None:
    """p of the F test of lack of fit: distance of the sizes' means from the curve against the spread of seeds."""
    counts = np.bincount(index)
    free = len(counts) - (3 if law.E > 0 else 2)
    if free < 1 or len(y) == len(counts) or spread <= SPREAD_FLOOR:
        return None
    away = np.bincount(index, y - np.log(law.loss(n))) / counts
    return float(stats.f.sf((counts * away**2).sum() / free / spread**2, free, df))


def _rules(points: list[Point], count: str, sizes: np.ndarray, index: np.ndarray) -> tuple[list[str], list[str]]:
    """(refusals, warnings) from what the runs are, before any fit."""
    no, warn = [], []
    decades = math.log10(sizes[-1] / sizes[0]) if len(sizes) else 0.0
    if len(sizes) < MIN_SIZES:
        no.append(f"{len(sizes)} sizes; an exponent needs {MIN_SIZES} or more.")
    if decades < MIN_DECADES:
        no.append(f"The sizes span {decades:.2f} decades of {count} parameters; {MIN_DECADES:g} or more are needed.")
    few = [f"{int(n):,} ({k})" for n, k in zip(sizes, np.bincount(index), strict=True) if k < MIN_SEEDS]
    if few:
        no.append(f"Fewer than {MIN_SEEDS} finite seeds at {', '.join(few)} parameters.")
    epochs = max((p.epochs for p in points if p.epochs is not None), default=0)
    if epochs > MAX_EPOCHS:
        no.append(f"{epochs:.1f} epochs over the data; above {MAX_EPOCHS} repetition bends the curve.")
    ends = [p.best_step / p.last_step for p in points if p.best_step is not None and p.last_step]
    if min(ends, default=1) < LEAST_BEST_STEP:
        no.append(
            f"A run's best validation came at {min(ends):.0%} of its steps, before {LEAST_BEST_STEP:.0%}: it overfits."
        )
    edge = {
        p.n_params[count] for p in points if len(set(p.lr_tried)) > 1 and p.lr in (min(p.lr_tried), max(p.lr_tried))
    }
    if edge:
        named = ", ".join(f"{n:,}" for n in sorted(edge))
        no.append(f"The best learning rate is at the edge of those tried at {named} parameters; widen the range there.")
    tokens = [p.tokens for p in points if p.tokens is not None]
    if tokens and max(tokens) > min(tokens) * (1 + SAME_TOKENS):
        no.append(
            f"Token budgets run from {min(tokens):.3g} to {max(tokens):.3g}; L(N) needs one, within {SAME_TOKENS:.0%}."
        )
    for name in ("tokenizer", "schedule"):
        kinds = sorted({str(getattr(p, name)) for p in points if getattr(p, name) is not None})
        if len(kinds) > 1:
            no.append(f"{len(kinds)} {name}s ({', '.join(kinds)}); a ladder needs 1.")
    rates = {p.lr for p in points if p.lr is not None}
    if len(rates) == 1 and len(sizes) > 1 and not any(len(set(p.lr_tried)) > 1 for p in points):
        warn.append(f"One learning rate, {rates.pop():g}, for all sizes: it favours the sizes that it suits.")
    facts = ("tokens", "epochs", "lr", "best_step", "tokenizer", "schedule")
    unknown = [f.replace("_", " ") for f in facts if any(getattr(p, f) is None for p in points)]
    if unknown:
        warn.append(f"Not recorded in every run, so not checked: {', '.join(unknown)}.")
    return no, warn


def _fragility(offset: PowerLaw, without: list[float | None], sizes: np.ndarray) -> list[str]:
    """Refusals that only the fit can give."""
    no = []
    if offset.alpha_low is None or offset.alpha_high is None:
        no.append(f"The 95% interval of alpha has no end within {ALPHAS[0]:g} to {ALPHAS[-1]:g}.")
    elif offset.alpha_high - offset.alpha_low > MAX_WIDTH:
        width = offset.alpha_high - offset.alpha_low
        no.append(f"The 95% interval of alpha is {width:.3f} wide; the limit is {MAX_WIDTH}.")
    moves = [(abs(a - offset.alpha), int(n)) for a, n in zip(without, sizes, strict=True) if a is not None]
    move, n = max(moves, default=(0.0, 0))
    if move > MAX_MOVE:
        no.append(f"alpha moves by {move:.3f} without the size of {n:,} parameters; the limit is {MAX_MOVE}.")
    return no


def _kaplan_note(count: str, law: PowerLaw | None) -> str:
    if count != "non_embedding":
        return (
            f"Kaplan's {KAPLAN_ALPHA} counts non-embedding parameters; this fit counts {count}, so they do not compare."
        )
    if law is None:
        return "There is no fit to compare."
    if law.E > 0:
        floor = (
            f"here a floor of {law.E:.2f} makes the slope differ by size, so agreement at one size can be coincidence"
        )
        return f"Kaplan's {KAPLAN_ALPHA} is of a law without a floor; {floor}."
    return f"Kaplan's {KAPLAN_ALPHA} is of the same form and count, on other data and far larger models."


def _tokens_per_parameter(points: list[Point], n: np.ndarray, index: np.ndarray, sizes: int) -> list[float | None]:
    ratios: list[list[float]] = [[] for _ in range(sizes)]
    for point, size, k in zip(points, n, index, strict=True):
        if point.tokens is not None:
            ratios[k].append(point.tokens / size)
    return [float(np.mean(r)) if r else None for r in ratios]


def _tokens_note(ratios: list[float], count: str) -> str | None:
    if not ratios:
        return None
    rule = f"compute-optimal is about {TOKENS_PER_PARAMETER} (Hoffmann et al. 2022): below it a size is short of data"
    return f"Tokens a parameter ({count}) run from {min(ratios):.3g} to {max(ratios):.3g}; {rule}."


def _inside(floor: float | None, offset: PowerLaw | None) -> bool | None:
    if floor is None or offset is None:
        return None
    return offset.E_low <= floor <= (math.inf if offset.E_high is None else offset.E_high)
