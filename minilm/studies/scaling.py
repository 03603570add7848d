"""Scaling laws from small ladders: L(N), and its refusals. L(N, D) and IsoFLOP parabolas are in budget.py.

Two forms of L(N) are always fitted, on a parameter count that is named, for the count decides the exponent:

    pure     L = a·N^-alpha          Kaplan et al. 2020, equation 1.1: what their 0.076 may be compared with
    offset   L = E + a·N^-alpha      E >= 0, the loss that no size removes (Hoffmann et al. 2022, with N alone)

The headline is the offset form. Where E is estimated at zero, as in half of all clean ladders without a floor, the two
are the same curve and the pure form is reported with the upper end of E's interval; that is no refusal.

How they are estimated: power_law.py. What makes an exponent worth nothing is refused here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from minilm.errors import UserError
from minilm.studies.power_law import ALPHAS, PowerLaw, fit_offset, fit_pure, misfit, seed_spread, without_each

KAPLAN_ALPHA = 0.076  # Kaplan et al. 2020, L(N), non-embedding parameters
COUNTS = ("total", "non_embedding", "matrices_and_head", "embedding")
TOKENS_PER_PARAMETER = 20  # Hoffmann et al. 2022, as its three approaches agree near 6e23 FLOPs
MIN_SIZES, MIN_DECADES, MIN_SEEDS, MAX_WIDTH, MAX_MOVE, MAX_EPOCHS = 5, 1.0, 3, 0.2, 0.1, 4
LEAST_BEST_STEP = 0.8  # of the run: a best validation before it means that the model overfits
SAME_TOKENS = 0.01  # budgets within this share of each other are one budget
MISFIT_LEVEL = 0.01


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

    pure = offset = law = spread = misfit_p = None
    spread_df = 0
    without: list[float | None] = [None] * len(sizes)
    if len(sizes) >= 2:
        centre = float(np.log(sizes).mean())
        x = np.log(n) - centre
        spread, spread_df = seed_spread(x, y, index)
        if len(sizes) >= 3:
            offset = fit_offset(x, y, centre, spread, spread_df)
            without = without_each(x, y, index) if len(sizes) >= 4 else without
            refusals += _fragility(offset, without, sizes)
        pure = fit_pure(x, y, centre, spread, spread_df, offset)
        law = offset if offset and offset.E > 0 else pure
        misfit_p = misfit(n, y, index, law, spread, spread_df)
        if misfit_p is not None and misfit_p < MISFIT_LEVEL:
            warnings.append(f"The sizes stray from the curve by more than seeds explain (p {misfit_p:.1g}).")

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
        misfit_p=misfit_p,
        kaplan_ratio=pure.alpha / KAPLAN_ALPHA if kaplan else None,
        kaplan_note=_kaplan_note(count, law),
        tokens_note=_tokens_note([t for t in tokens if t], count),
        floor=floor,
        floor_inside=_inside(floor, offset),
        refusals=tuple(refusals),
        warnings=tuple(warnings),
    )


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
