"""The law of the largest |t| among comparisons with one baseline (Dunnett 1955), integrated, not sampled."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy import optimize, special, stats

LEVEL = 0.05  # chance of one false verdict or more in a study
POWER = 0.8  # at which the minimum detectable effect is stated


class Law(NamedTuple):
    """Of the largest |t| of comparisons with one baseline: T_i = (u_i·sqrt(1 - l_i²) + l_i·z) / s, z the baseline's
    part, s the estimated over the true spread (Dunnett 1955). Balanced: l² = 1/2."""

    correlation: tuple[tuple[float, ...], ...]
    loadings: tuple[float, ...] | None  # None where the comparisons share more than the baseline: blocks with holes
    df: int


def law_of(covariance: np.ndarray, df: int) -> Law:
    scale = np.sqrt(np.diag(covariance))
    shared = covariance[~np.eye(len(scale), dtype=bool)]
    loadings = None
    if len(scale) == 1:
        loadings = (0.0,)
    elif np.ptp(shared) < 1e-9 and shared.min() > 0:
        loadings = tuple((math.sqrt(shared.mean()) / scale).round(10).tolist())
    correlation = (covariance / np.outer(scale, scale)).round(10)
    return Law(tuple(map(tuple, correlation.tolist())), loadings, df)


@lru_cache(maxsize=64)
def _scales(df: int) -> tuple[np.ndarray, np.ndarray]:
    """Estimated over true spread, sqrt(chi²/df), on a grid even in its logarithm, and the weights of an integral over
    it: the density dies off at either end, where the trapezoid rule converges fastest."""
    ends = np.log(stats.chi.ppf(1e-13, df)), np.log(stats.chi.isf(1e-13, df))
    chi = np.exp(np.linspace(*ends, 129))
    weights = stats.chi.pdf(chi, df) * chi
    return chi / math.sqrt(df), weights / weights.sum()


def exceeds(t: float, law: Law) -> float:
    """P(largest |T| > t)."""
    if law.loadings is None:
        k = len(law.correlation)
        many = stats.multivariate_t(np.zeros(k), np.array(law.correlation), df=law.df)
        inside = many.cdf(np.full(k, t), lower_limit=np.full(k, -t), random_state=0, maxpts=20_000 * k)
    else:
        s, weight_s = _scales(law.df)
        z = np.linspace(-8.5, 8.5, 129)
        weight_z = stats.norm.pdf(z) * (z[1] - z[0])
        within = np.ones((len(s), len(z)))
        for loading, count in zip(*np.unique(law.loadings, return_counts=True), strict=True):
            rest, bound = math.sqrt(1 - loading**2), t * s[:, None]
            one = special.ndtr((bound - loading * z) / rest) - special.ndtr((-bound - loading * z) / rest)
            within *= one**count
        inside = weight_s @ within @ weight_z
    return float(min(1.0, max(0.0, 1 - inside)))


@lru_cache(maxsize=256)
def critical_value(law: Law) -> float:
    """The |t| that chance exceeds somewhere in the family with probability LEVEL: above one comparison's, below
    Bonferroni's."""
    k = len(law.correlation)
    alone, bonferroni = stats.t.isf(LEVEL / 2, law.df), stats.t.isf(LEVEL / (2 * k), law.df)
    ends = alone * 0.99, bonferroni * 1.01
    return float(optimize.brentq(lambda t: exceeds(t, law) - LEVEL, *ends, xtol=1e-9))


@lru_cache(maxsize=256)
def shift_for_power(critical: float, df: int) -> float:
    """True difference in standard errors that |t| > critical finds with probability POWER."""
    return float(optimize.brentq(lambda shift: power_at(shift, critical, df) - POWER, 0, 50 * critical, xtol=1e-9))


def power_at(shift: float, critical: float, df: int) -> float:
    """P(|t| > critical) of the noncentral t, integrated here: scipy's nct is NaN at large shifts and few degrees."""
    s, weight = _scales(df)
    return float(weight @ (special.ndtr(shift - critical * s) + special.ndtr(-shift - critical * s)))
