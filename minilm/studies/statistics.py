"""Arms compared with a baseline, so that a sceptic would accept it. A value is a final loss: lower is better.

Every arm is trained with the same seeds, and a seed means the same batches in every arm, so the model is

    value[arm, seed] = arm + seed + noise                              (blocked: the seeds are the blocks)

fitted by least squares, which also serves tables with holes; where arms do not share the baseline's seeds the seed's
term is left out (one-way). The noise is pooled over all arms, for three seeds of one arm say little about its spread:
at spread 0.005, three seeds, eight arms, a difference of 0.01 is found with probability 0.34, by paired t tests 0.04.

p and intervals are Dunnett's (1955): they hold for all comparisons with the one baseline at once, so the chance of any
false "better" or "worse" in a study is 5%. Their distribution, of the largest of correlated |t|, is integrated, not
sampled: the same study gives the same digits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from minilm.errors import UserError
from minilm.studies.dunnett import LEVEL, critical_value, exceeds, law_of, power_at, shift_for_power

ENOUGH_SEEDS = 3
UNEVEN_LEVEL = 0.05  # chance that a study of even arms is told that one is uneven
ROUNDING = 1e-12  # spread below this share of the values is rounding, not spread

Trials = Mapping[str, Sequence[tuple[int, float | None]]]


@dataclass(frozen=True)
class Arm:
    """One arm by itself. The interval is of its mean, at 95%, by the spread of single runs pooled over all arms."""

    name: str
    n: int
    mean: float | None
    low: float | None
    high: float | None
    diverged: tuple[int, ...]  # seeds


@dataclass(frozen=True)
class Comparison:
    """An arm minus the baseline. p and the interval hold for all comparisons of the study at once."""

    arm: str
    n: int
    n_baseline: int
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    detectable: float | None  # the difference that would be found with probability 0.8
    verdict: str  # better, worse, inconclusive
    reason: str


@dataclass(frozen=True)
class Control:
    """The A/A arm, the baseline again with seeds of its own: what differs is chance. p is of this comparison alone."""

    arm: str
    n: int
    n_baseline: int
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    inside: bool | None
    reason: str


@dataclass(frozen=True)
class Study:
    baseline: str
    design: str  # blocked, one-way
    spread: float | None  # standard deviation of the noise, what comparisons are judged by
    df: int
    run_spread: float | None  # standard deviation of a single run over seeds: noise and seed together
    critical: float | None  # |t| above which a difference counts
    arms: tuple[Arm, ...]
    comparisons: tuple[Comparison, ...]
    control: Control | None
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Equivalence:
    """Second minus first, paired by seed. The interval is 90%: it lies inside the margin exactly where p < 0.05."""

    n: int
    margin: float
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    verdict: str  # equivalent, not shown equivalent, different
    reason: str


def compare(trials: Trials, baseline: str, control: str | None = None) -> Study:
    """Every arm against the baseline. `trials` maps an arm to its (seed, value) pairs; a value that is None, NaN or
    infinite is a diverged trial.

    - Diverged trials are counted and named. An arm that has one is never "better", for the mean of its survivors
      flatters it; by the same reason nothing is "worse" than a baseline that has one.
    - `control` names the A/A arm. It is outside the family, so the level is spent on real questions. Its seeds are its
      own: it shares no block, cannot inform the noise within blocks, and enters that pool only in a one-way design. It
      is judged by the spread of single runs: in blocks by its own and the baseline's, since arms that share seeds add
      little and the freedom of their pool is a guess (that gave 6.3% false alarms where 5% were due).
    - An arm whose own spread is larger than the others' beyond chance gets no verdict: the pooled spread is not its.

    Raises UserError for an unknown baseline or control and for a seed that appears twice in an arm.
    """
    for name, role in ((baseline, "baseline"), (control, "A/A arm")):
        if name is not None and name not in trials:
            raise UserError(f"The {role} {name!r} is none of the study's arms ({', '.join(trials)}); name one of them.")
    if control == baseline:
        raise UserError(
            f"{baseline!r} is named both as the baseline and as the A/A arm; the A/A arm needs its own name."
        )
    for name, pairs in trials.items():
        if len({seed for seed, _ in pairs}) < len(pairs):
            raise UserError(f"The arm {name!r} has a seed more than once; give each seed one value.")

    table = _Table.of(trials, baseline, control)
    finite, family = table.finite, [a for a in table.family if table.finite[a]]
    blocked = all({s for s, _ in trials[a]} <= {s for s, _ in trials[baseline]} for a in table.family)
    fit = _fit(finite, family, blocked)
    if blocked and not fit.estimable:  # holes so placed that arms and seeds cannot be told apart
        blocked = False
    if not blocked:
        fit = _fit(finite, [*family, control] if control and finite[control] else family, False)
    largest = max((abs(v) for values in finite.values() for v in values.values()), default=0.0)
    spread = math.sqrt(fit.sse / fit.df) if fit.df else None
    spread = 0.0 if spread is not None and spread <= ROUNDING * largest else spread
    run_spread, run_df = _run_spread(finite, blocked, spread)
    uneven = _uneven_arms(finite, blocked, fit) if spread else {}
    comparisons, critical = _compare_all(table, fit, spread, uneven)
    return Study(
        baseline=baseline,
        design="blocked" if blocked else "one-way",
        spread=spread,
        df=fit.df,
        run_spread=run_spread,
        critical=critical,
        arms=tuple(_arm(a, finite[a], table.diverged[a], run_spread, run_df) for a in trials),
        comparisons=comparisons,
        control=_control(control, finite, baseline, blocked) if control else None,
        warnings=(*_warnings(table), *uneven.values()),
    )


@dataclass(frozen=True)
class _Table:
    family: list[str]  # the baseline first; without the A/A arm
    finite: dict[str, dict[int, float]]
    diverged: dict[str, tuple[int, ...]]

    @classmethod
    def of(cls, trials: Trials, baseline: str, control: str | None) -> _Table:
        finite = {a: {s: float(v) for s, v in pairs if _is_finite(v)} for a, pairs in trials.items()}
        diverged = {a: tuple(sorted(s for s, v in pairs if not _is_finite(v))) for a, pairs in trials.items()}
        return cls([baseline, *(a for a in trials if a not in (baseline, control))], finite, diverged)


@dataclass(frozen=True)
class _Fit:
    arms: list[str]
    effects: np.ndarray  # one an arm
    unscaled: np.ndarray  # covariance of the effects where the noise is 1
    sse: float
    df: int
    estimable: bool


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _named(seeds: Sequence[int], arm: str) -> str:
    return f"Seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))} of {arm}"


def _fit(finite: dict[str, dict[int, float]], arms: list[str], blocked: bool) -> _Fit:
    """Least squares on arm (and seed): effects, their covariance without the noise, residual sum and its freedom."""
    rows = [(i, seed, value) for i, a in enumerate(arms) for seed, value in finite[a].items()]
    arm, seed = np.array([i for i, _, _ in rows], dtype=int), np.array([s for _, s, _ in rows])
    value = np.array([v for _, _, v in rows], dtype=float)
    blocks = np.unique(seed)[1:] if blocked else np.array([])
    columns = [*(arm == i for i in range(len(arms))), *(seed == s for s in blocks)]
    design = np.array(columns, dtype=float).reshape(len(columns), len(rows)).T
    centred = value - value.mean() if len(rows) else value  # small spreads about large values keep their digits
    inverse = np.linalg.pinv(design)
    coefficients = inverse @ centred
    rank = int(np.linalg.matrix_rank(design)) if design.size else 0
    residual = centred - design @ coefficients
    unscaled = (inverse @ inverse.T)[: len(arms), : len(arms)]
    sse, df = float(residual @ residual), len(rows) - rank
    return _Fit(arms, coefficients[: len(arms)], unscaled, sse, df, rank == design.shape[1])


def _run_spread(finite: dict[str, dict[int, float]], blocked: bool, spread: float | None) -> tuple[float | None, float]:
    """Standard deviation of single runs within arms, pooled over all arms, and its effective degrees of freedom.

    Arms that share seeds rise and fall together, so their sum of squares says less than its count of values suggests:
    Satterthwaite (1946) with the two components of variance, tr(QV)² / tr(QVQV)."""
    rows = [(a, seed, value) for a, values in finite.items() for seed, value in values.items()]
    arm, seed = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    value = np.array([r[2] for r in rows], dtype=float)
    freedom = len(rows) - len(set(arm))
    if freedom == 0:
        return None, 0.0
    same = arm[:, None] == arm[None, :]
    within = np.eye(len(rows)) - same / same.sum(axis=1)
    centred = within @ (value - value.mean())
    variance = float(centred @ centred) / freedom
    if math.sqrt(variance) <= ROUNDING * np.abs(value).max():
        return 0.0, float(freedom)
    of_seed = max(0.0, variance - spread**2) if blocked and spread is not None else 0.0
    product = within @ (of_seed * (seed[:, None] == seed[None, :]) + (variance - of_seed) * np.eye(len(rows)))
    return math.sqrt(variance), float(np.trace(product) ** 2 / np.sum(product * product.T))


def _compare_all(
    table: _Table, fit: _Fit, spread: float | None, uneven: dict[str, str]
) -> tuple[tuple[Comparison, ...], float | None]:
    baseline, others = table.family[0], table.family[1:]
    n = {a: len(table.finite[a]) for a in table.family}
    judged = [a for a in others if n[a] and n[baseline]]
    if not judged:
        critical, unscaled, law = None, None, None
    else:
        contrast = np.array([[(b == a) - (b == baseline) for b in fit.arms] for a in judged], dtype=float)
        differences, unscaled = contrast @ fit.effects, contrast @ fit.unscaled @ contrast.T
        law = law_of(unscaled, fit.df) if spread else None
        critical = critical_value(law) if law else None

    comparisons = []
    for arm in others:
        difference = low = high = p = detectable = None
        if arm in judged:
            i = judged.index(arm)
            difference = float(differences[i])
            if law:
                error = spread * math.sqrt(unscaled[i, i])
                low, high = difference - critical * error, difference + critical * error
                p = exceeds(abs(difference) / error, law)
                detectable = error * shift_for_power(critical, fit.df)
        verdict, reason = _verdict(arm, difference, p, table, spread, uneven)
        comparisons.append(Comparison(arm, n[arm], n[baseline], difference, low, high, p, detectable, verdict, reason))
    return tuple(comparisons), critical


def _verdict(
    arm: str, difference: float | None, p: float | None, table: _Table, spread: float | None, uneven: dict[str, str]
) -> tuple[str, str]:
    """better, worse or inconclusive, and the one sentence that says why."""
    withheld, both = "inconclusive", (table.family[0], arm)
    for name in both:
        if not table.finite[name]:
            return withheld, f"{name} has no finite trial: there is no loss to compare."
    if spread is None:
        return withheld, "Too few seeds leave no spread to judge by; run more seeds an arm."
    if spread == 0:
        return withheld, "No spread between seeds: they do not reach the values, so chance cannot be judged."
    for name in both:
        if len(table.finite[name]) < 2:
            return withheld, f"{name} has one finite trial: nothing shows that its spread is that of the others."
        if name in uneven:
            return withheld, uneven[name]
    if p >= LEVEL:
        return withheld, f"The adjusted p is {p:.2g}, not below {LEVEL:g}."
    verdict, flattered = ("better", arm) if difference < 0 else ("worse", table.family[0])
    if table.diverged[flattered]:
        return withheld, f"{_named(table.diverged[flattered], flattered)} diverged; its survivors' mean flatters it."
    return verdict, f"The adjusted p is {p:.2g}, below {LEVEL:g}."


def _uneven_arms(finite: dict[str, dict[int, float]], blocked: bool, fit: _Fit) -> dict[str, str]:
    """Arms whose residuals are larger than the others' beyond chance, with the sentence that says so: what the residual
    sum loses when the arm is left out against what remains, an exact F test, Bonferroni over arms."""
    uneven = {}
    for arm in fit.arms:
        rest = _fit(finite, [a for a in fit.arms if a != arm], blocked)
        df = fit.df - rest.df
        if df < 1 or rest.df < 1 or rest.sse <= 0:
            continue
        own, others = max(0.0, fit.sse - rest.sse) / df, rest.sse / rest.df
        if stats.f.sf(own / others, df, rest.df) * len(fit.arms) < UNEVEN_LEVEL:
            ratio = math.sqrt(own / others)
            uneven[arm] = f"The spread of {arm} is {ratio:.1f} times that of the other arms, so theirs cannot judge it."
    return uneven


def _warnings(table: _Table) -> list[str]:
    found = [f"{_named(seeds, a)} diverged." for a, seeds in table.diverged.items() if seeds]
    if len(table.family) == 1:
        found.append("The baseline is the only arm: there is nothing to compare.")
    few = [a for a in table.family if len(table.finite[a]) < ENOUGH_SEEDS]
    if few:
        found.append(f"Fewer than {ENOUGH_SEEDS} finite seeds: {', '.join(few)}.")
    return found


def _arm(name: str, values: dict[int, float], diverged: tuple[int, ...], spread: float | None, df: float) -> Arm:
    n = len(values)
    mean = float(np.mean(list(values.values()))) if n else None
    if not n or spread is None:
        return Arm(name, n, mean, None, None, diverged)
    half = float(stats.t.ppf(0.975, df)) * spread / math.sqrt(n)
    return Arm(name, n, mean, mean - half, mean + half, diverged)


def _control(name: str, finite: dict[str, dict[int, float]], baseline: str, blocked: bool) -> Control:
    own, base = finite[name], finite[baseline]
    spread, df = _run_spread({baseline: base, name: own} if blocked else finite, False, None)
    why = ""
    if not own or not base:
        why = f"{name if not own else baseline} has no finite trial: there is no loss to compare."
    elif own.keys() & base.keys():
        why = "The A/A arm shares seeds with the baseline, so it repeats runs and shows no chance."
    elif not spread:
        why = "There is no spread between seeds to judge by."
    if why:
        return Control(name, len(own), len(base), None, None, None, None, None, why)
    difference = float(np.mean(list(own.values())) - np.mean(list(base.values())))
    error = spread * math.sqrt(1 / len(own) + 1 / len(base))
    half = float(stats.t.ppf(1 - LEVEL / 2, df)) * error
    p = float(2 * stats.t.sf(abs(difference) / error, df))
    reason = "The same configuration with other seeds differs no more than chance explains."
    if p < LEVEL:
        reason = "The same configuration with other seeds differs by more than chance explains in 95 studies of 100."
    return Control(name, len(own), len(base), difference, difference - half, difference + half, p, p >= LEVEL, reason)


def power(difference: float, spread: float, seeds: int, arms: int) -> float:
    """Probability that a true difference of one arm is found: `arms` comparisons with a baseline over shared seeds.

    Raises UserError for fewer than two seeds, no arm or a spread that is not positive."""
    if seeds < 2 or arms < 1 or not spread > 0:
        raise UserError(
            f"{seeds} seeds, {arms} arms, spread {spread}; give 2 seeds or more, an arm or more, a spread > 0."
        )
    df = arms * (seeds - 1)
    critical = critical_value(law_of((np.eye(arms) + 1) / seeds, df))
    return power_at(difference / (spread * math.sqrt(2 / seeds)), critical, df)


def equivalence(
    first: Sequence[tuple[int, float | None]], second: Sequence[tuple[int, float | None]], margin: float
) -> Equivalence:
    """Two one-sided paired t tests at 5% each (Schuirmann 1987): is |second - first| below the margin?

    "equivalent" where both reject, "different" where the 90% interval lies wholly outside the margin, else "not shown
    equivalent". A trial that diverged on either side forbids "equivalent". Raises UserError for a margin that is not
    positive."""
    if not margin > 0:
        raise UserError(f"The margin is {margin}; it must be above 0, in the unit of the values.")
    one, two = dict(first), dict(second)
    shared = sorted(one.keys() & two.keys())
    failed = [s for s in shared if not (_is_finite(one[s]) and _is_finite(two[s]))]
    pairs = np.array([[one[s], two[s]] for s in shared if s not in failed], dtype=float).reshape(-1, 2)
    differences = pairs[:, 1] - pairs[:, 0]
    n = len(differences)
    mean = float(differences.mean()) if n else None
    apart = f"{_named(failed, 'the pair')} diverged." if failed else ""

    def result(low: float | None, high: float | None, p: float | None, verdict: str, reason: str) -> Equivalence:
        if failed and verdict == "equivalent":
            verdict = "not shown equivalent"
        return Equivalence(n, margin, mean, low, high, p, verdict, " ".join(filter(None, (reason, apart))))

    if n < 2:
        count = "No seed has" if n == 0 else "One seed has"
        return result(None, None, None, "not shown equivalent", f"{count} finite values on both sides; two are needed.")
    deviation = float(differences.std(ddof=1))
    if deviation <= ROUNDING * np.abs(pairs).max():
        if not differences.any():
            return result(0.0, 0.0, 0.0, "equivalent", f"The two are identical to the bit in all {n} seeds.")
        reason = "The difference is the same in every seed: without spread chance cannot be judged."
        return result(None, None, None, "not shown equivalent", reason)
    error = deviation / math.sqrt(n)
    half = float(stats.t.ppf(1 - LEVEL, n - 1)) * error
    low, high = mean - half, mean + half
    p = float(stats.t.sf((margin - abs(mean)) / error, n - 1))
    if p < LEVEL:
        return result(low, high, p, "equivalent", f"The 90% interval lies within ±{margin:g}.")
    if low > margin or high < -margin:
        return result(low, high, p, "different", f"The 90% interval lies outside ±{margin:g}.")
    return result(low, high, p, "not shown equivalent", f"The 90% interval reaches beyond ±{margin:g}.")
