"""What a budget buys: the law of size and data, fitted or published, and the arithmetic of compute, time and memory.

L(N, D) = E + A/N^alpha + B/D^beta (Hoffmann et al. 2022, equation 10) and training compute C = 6·N·D (Kaplan et al.
2020, section 2.1), from which the best split of C follows in closed form (Hoffmann et al. 2022, equation 4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special, stats

from minilm.errors import UserError
from minilm.studies.power_law import DELTA
from minilm.studies.scaling import TOKENS_PER_PARAMETER, Point

SAME_FLOPS = 0.05  # runs within this share of the last one's compute are on one IsoFLOP curve
MIN_ON_CURVE, MIN_CURVES = 4, 3  # a parabola has three coefficients, a line's spread needs a third point
VANISHED = 1e-3  # a term below this share of the loss at the middle of the runs is below what Huber's delta can see
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float8": 1}
# bytes a parameter: (weights, gradients, AdamW's two moments, further copies of the weights)
POLICIES = {
    "float32": (4, 4, 8, 0),
    "autocast": (4, 4, 8, 2),  # the 16-bit copies that torch.autocast keeps from forward to backward
    "mixed": (2, 2, 8, 4),  # 16-bit weights with a float32 master copy (Rajbhandari et al. 2020, section 3.1)
    "bfloat16": (2, 2, 4, 0),
}


@dataclass(frozen=True)
class ChinchillaLaw:
    """L = E + A/N^alpha + B/D^beta in nats per token, N parameters, D tokens."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, n: float | np.ndarray, d: float | np.ndarray) -> float | np.ndarray:
        return self.E + self.A * np.asarray(n, float) ** -self.alpha + self.B * np.asarray(d, float) ** -self.beta

    def split(self, flops: float) -> tuple[float, float]:
        """(N, D) of the least loss at 6·N·D = flops."""
        base = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        n = base * (flops / 6) ** (self.beta / (self.alpha + self.beta))
        return n, flops / 6 / n

    def flops_for(self, params: float | None = None, tokens: float | None = None) -> float:
        """The compute at which the best split has this size, or this many tokens: 6·N·D with A·alpha/N^alpha =
        B·beta/D^beta, the condition of the minimum."""
        if params is not None:
            marginal = self.A * self.alpha * params**-self.alpha
            return 6 * params * (self.B * self.beta / marginal) ** (1 / self.beta)
        marginal = self.B * self.beta * tokens**-self.beta
        return 6 * tokens * (self.A * self.alpha / marginal) ** (1 / self.alpha)


REFIT = ChinchillaLaw(
    E=1.817, A=482.0, B=2085.0, alpha=0.348, beta=0.366
)  # Besiroglu et al. 2024, on Chinchilla's data


@dataclass(frozen=True)
class LawFit:
    """`law` is None where a refusal withholds it. `agreeing` of `starts` ended within 0.1% of the least loss."""

    law: ChinchillaLaw | None
    loss: float | None  # summed Huber on log L
    n_points: int
    starts: int
    agreeing: int
    refusals: tuple[str, ...]


@dataclass(frozen=True)
class IsoFlopCurve:
    flops: float
    n_points: int
    n: float | None  # parameters at the minimum of the parabola
    tokens: float | None
    loss: float | None
    reason: str  # empty, or why there is no minimum


@dataclass(frozen=True)
class IsoFlopFit:
    """N ~ C^n_exponent and D ~ C^d_exponent through the minima, with the 95% interval of the first (Student's t)."""

    curves: tuple[IsoFlopCurve, ...]
    n_exponent: float | None
    n_low: float | None
    n_high: float | None
    d_exponent: float | None
    refusals: tuple[str, ...]


@dataclass(frozen=True)
class Split:
    rule: str
    params: float
    tokens: float
    flops: float
    tokens_per_parameter: float


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes. Activations are not counted: they go with batch, length and backend."""

    policy: str
    weights: int
    gradients: int
    moments: int
    copies: int
    total: int


def fit_chinchilla(points: Sequence[Point], count: str = "non_embedding") -> LawFit:
    """All five parameters by summed Huber (delta 1e-3) on log L in the logsumexp form (Hoffmann et al. 2022, appendix
    D.2), from the ten best of a grid of 196 exponents, at each of which E, A, B follow by non-negative least squares.

    Refused with fewer than 8 finite runs or fewer than three sizes or three token budgets, and where a term vanishes.
    Raises UserError where a run lacks its tokens or the count."""
    n, d, y = _columns(points, count, "tokens")
    no = [f"{len(y)} finite runs; five parameters need 8 or more."] if len(y) < 8 else []
    for name, values in (("sizes", n), ("token budgets", d)):
        if len(np.unique(values)) < 3:
            no.append(f"{len(np.unique(values))} {name}; a power of them needs 3 or more.")
    if no:
        return LawFit(None, None, len(y), 0, 0, tuple(no))
    centre_n, centre_d = np.log(n).mean(), np.log(d).mean()
    x, z = np.log(n) - centre_n, np.log(d) - centre_d

    def residual(p: np.ndarray) -> np.ndarray:
        return special.logsumexp(_terms(p, x, z), axis=0) - y

    def jacobian(p: np.ndarray) -> np.ndarray:
        e, a, b = special.softmax(_terms(p, x, z), axis=0)
        return np.stack([e, a, b, -x * a, -z * b], axis=1)

    ends = []
    for start in _starts(x, z, y):
        options = {"loss": "huber", "f_scale": DELTA, "x_scale": "jac", "xtol": 1e-14, "ftol": 1e-14, "gtol": 1e-14}
        ends.append(optimize.least_squares(residual, start, jac=jacobian, max_nfev=2000, **options))
    best = min(ends, key=lambda end: end.cost)
    agreeing = int(sum(end.cost <= best.cost * 1.001 + 1e-12 for end in ends))
    e, a, b, alpha, beta = (float(v) for v in best.x)
    law = ChinchillaLaw(math.exp(e), math.exp(a + alpha * centre_n), math.exp(b + beta * centre_d), alpha, beta)
    least = float(y.min())
    for name, height, power in (("size", a, alpha), ("data", b, beta)):
        if height < least + math.log(VANISHED) or power <= 0:
            no.append(
                f"The term of {name} vanishes: the losses do not fall with it, so its exponent is not determined."
            )
    return LawFit(None if no else law, float(best.cost), len(y), len(ends), agreeing, tuple(no))


def _terms(p: np.ndarray, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """log of the three terms, (3, P), from p = log E, log A, log B, alpha, beta."""
    return np.stack([np.full_like(x, p[0]), p[1] - p[3] * x, p[2] - p[4] * z])


def _starts(x: np.ndarray, z: np.ndarray, y: np.ndarray, keep: int = 10) -> list[np.ndarray]:
    """The best of a grid of exponents, with E, A, B that minimise the relative squares at each."""
    found = []
    grid = np.linspace(0.05, 1.35, 14)
    for alpha in grid:
        for beta in grid:
            terms = np.stack([np.ones_like(x), np.exp(-alpha * x), np.exp(-beta * z)], axis=1)
            heights, error = optimize.nnls(terms / np.exp(y)[:, None], np.ones_like(y))
            logs = np.log(np.maximum(heights, 1e-2 * np.exp(y.min())))
            found.append((error, np.array([*logs, alpha, beta])))
    return [start for _, start in sorted(found, key=lambda pair: pair[0])[:keep]]


def fit_isoflop(points: Sequence[Point], count: str = "non_embedding") -> IsoFlopFit:
    """A parabola of loss in log N for each compute budget, its minimum, and the power laws through the minima (Hoffmann
    et al. 2022, section 3.2). Tokens at the minimum are read off the runs' own line of log D on log N, so compute
    need not be counted as 6·N·D.

    A curve without a minimum inside the sizes tried, or with fewer than four sizes, is refused, and so are power laws
    through fewer than three minima. Raises UserError where a run lacks its FLOPs, its tokens or the count."""
    finite = _finite(points)
    n, flops, y = _columns(finite, count, "flops")
    d = _columns(finite, count, "tokens")[1]
    order = np.argsort(flops, kind="stable")
    jumps = np.flatnonzero(np.diff(np.log(flops[order])) > math.log(1 + SAME_FLOPS)) + 1
    groups = [group for group in np.split(order, jumps) if len(group)]
    curves = tuple(_curve(flops[g], n[g], d[g], np.exp(y[g])) for g in groups)
    no = [f"At {c.flops:.3g} FLOPs: {c.reason}" for c in curves if c.reason]
    good = [c for c in curves if c.n is not None]
    if len(good) < MIN_CURVES:
        no.append(f"{len(good)} compute budgets have a minimum; a power law through them needs {MIN_CURVES} or more.")
        return IsoFlopFit(curves, None, None, None, None, tuple(no))
    log_c = np.log([c.flops for c in good])
    line = stats.linregress(log_c, np.log([c.n for c in good]))
    half = float(stats.t.ppf(0.975, len(good) - 2) * line.stderr)
    d_exponent = stats.linregress(log_c, np.log([c.tokens for c in good])).slope
    slope = float(line.slope)
    return IsoFlopFit(curves, slope, slope - half, slope + half, float(d_exponent), tuple(no))


def _curve(flops: np.ndarray, n: np.ndarray, d: np.ndarray, loss: np.ndarray) -> IsoFlopCurve:
    budget = float(np.exp(np.log(flops).mean()))

    def none(reason: str) -> IsoFlopCurve:
        return IsoFlopCurve(budget, len(n), None, None, None, reason)

    sizes = len(np.unique(n))
    if sizes < MIN_ON_CURVE:
        return none(f"{sizes} sizes; a parabola needs {MIN_ON_CURVE} or more.")
    x = np.log(n)
    bend, tilt, height = np.polyfit(x - x.mean(), loss, 2)
    if bend <= 0:
        return none("the parabola opens downward, so it has no minimum.")
    best = float(x.mean() - tilt / (2 * bend))
    if not x.min() < best < x.max():
        side = "smaller" if best <= x.min() else "larger"
        return none(f"the minimum lies outside the sizes tried, {n.min():.3g} to {n.max():.3g}; try {side} ones.")
    tokens = np.exp(np.polyval(np.polyfit(x, np.log(d), 1), best))
    return IsoFlopCurve(budget, len(n), math.exp(best), float(tokens), float(height - tilt**2 / (4 * bend)), "")


def _finite(points: Sequence[Point]) -> list[Point]:
    return [p for p in points if p.loss is not None and math.isfinite(p.loss)]


def _columns(points: Sequence[Point], count: str, other: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N, tokens or FLOPs, log L) of the finite runs."""
    finite = _finite(points)
    if any(count not in p.n_params or getattr(p, other) is None for p in finite):
        raise UserError(f"A run has no {other} or no count {count!r} of its parameters; give every run both.")
    table = np.array([[p.n_params[count], getattr(p, other), p.loss] for p in finite], dtype=float).reshape(-1, 3)
    if (table <= 0).any():
        raise UserError(
            f"A run has a loss, {other} or parameters that are not above 0; logarithms need positive numbers."
        )
    return table[:, 0], table[:, 1], np.log(table[:, 2])


def splits(params: float | None = None, flops: float | None = None, tokens: float | None = None) -> tuple[Split, Split]:
    """Compute-optimal size and data from one of the three, by about 20 tokens a parameter and by the re-fitted law.

    Raises UserError unless exactly one is given, above 0."""
    given = {k: v for k, v in (("params", params), ("flops", flops), ("tokens", tokens)) if v is not None}
    if len(given) != 1:
        raise UserError(f"{len(given)} of params, flops and tokens were given; give exactly one.")
    _positive(**given)
    if flops is not None:
        n = math.sqrt(flops / (6 * TOKENS_PER_PARAMETER))
        law_flops = flops
    else:
        n = params if params is not None else tokens / TOKENS_PER_PARAMETER
        law_flops = REFIT.flops_for(params=params, tokens=tokens)
    rule = f"about {TOKENS_PER_PARAMETER} tokens a parameter (Hoffmann et al. 2022)"
    law_n, law_d = REFIT.split(law_flops)
    return (
        _split(rule, n, TOKENS_PER_PARAMETER * n),
        _split("Chinchilla's law, re-fitted (Besiroglu et al. 2024)", law_n, law_d),
    )


def _split(rule: str, n: float, d: float) -> Split:
    return Split(rule, n, d, 6 * n * d, d / n)


def training_seconds(flops: float, peak: float, mfu: float) -> float:
    """Seconds for `flops` on chips of `peak` FLOP/s in all at a model FLOPs utilisation (Chowdhery et al. 2022,
    appendix B) between 0 and 1. Raises UserError for other values."""
    _positive(flops=flops, peak=peak, mfu=mfu)
    if mfu > 1:
        raise UserError(f"mfu is {mfu:g}; it is a share of the peak, above 0 and at most 1, for example 0.4.")
    return flops / (peak * mfu)


def kv_cache_bytes(
    n_layers: int, n_kv_heads: int, head_dim: int, context: int, batch: int = 1, dtype: str = "bfloat16"
) -> int:
    """Bytes of the keys and values of `batch` sequences of `context` tokens: two tensors (B, Hkv, T, D) a layer.

    Raises UserError for an unknown dtype and for a size that is not a whole number above 0."""
    sizes = {
        "n_layers": n_layers,
        "n_kv_heads": n_kv_heads,
        "head_dim": head_dim,
        "context": context,
        "batch": batch,
    }
    _positive(**sizes)
    for name, value in sizes.items():
        if value != int(value):
            raise UserError(f"{name} is {value}; it must be a whole number.")
    return 2 * math.prod(int(v) for v in sizes.values()) * _named(dtype, DTYPE_BYTES, "dtype")


def training_memory(params: int, policy: str = "autocast") -> TrainingMemory:
    """Bytes of weights, gradients and AdamW's moments under one of POLICIES. Raises UserError for an unknown policy and
    for params not above 0."""
    _positive(params=params)
    weights, gradients, moments, copies = (int(params * each) for each in _named(policy, POLICIES, "policy"))
    return TrainingMemory(policy, weights, gradients, moments, copies, weights + gradients + moments + copies)


def _named(name: str, known: dict, what: str):
    if name not in known:
        raise UserError(f"The {what} is {name!r}; it must be one of {', '.join(known)}.")
    return known[name]


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not (value > 0 and math.isfinite(value)):
            raise UserError(f"{name} is {value}; it must be a finite number above 0.")
