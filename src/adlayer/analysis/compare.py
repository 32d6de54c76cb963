"""Comparing sets of structures, with what chance alone could explain.

- **Proportions** k/n carry Wilson's score interval (E. B. Wilson, J. Am. Stat. Assoc. 22, 209 (1927)),
  ``(p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n)``: sound for k = 0 and small n, where p ± σ is not.
- **Medians and distances** carry the percentile bootstrap interval (B. Efron, Ann. Stat. 7, 1 (1979)).
- **Distributions** of energies differ by the Wasserstein-1 distance ``∫ |F_a − F_b| dE`` in eV: the mean energy by
  which one must be shifted to become the other; beside it the two-sample Kolmogorov–Smirnov p-value.
- **Success** of independent tries that hit with probability p and cost c force calls each:
  ``P(C) = 1 − (1 − p)^(C/c)`` after C calls, so that ``C = c ln(1 − P)/ln(1 − p)`` calls reach P.

All intervals are 95 % unless asked otherwise. Energies in eV; compare them within one calculator setting only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from numpy.typing import ArrayLike
from scipy import stats

from adlayer.analysis.records import row_values
from adlayer.errors import UserError


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


@dataclass(frozen=True)
class DistributionDistance:
    """Wasserstein-1 distance (eV) and the Kolmogorov–Smirnov p-value of equal distributions."""

    wasserstein: Interval
    ks_p_value: float


@dataclass(frozen=True)
class RelaxationCost:
    """Median relaxation steps and force calls (``None`` if not recorded) and how many structures converged."""

    n: int
    n_converged: int
    n_steps: Interval | None
    n_force_calls: Interval | None


@dataclass(frozen=True)
class SuccessCurve:
    """Probability (m,) of at least one hit against force calls (m,), with its interval ``low``, ``high`` (m,)."""

    force_calls: np.ndarray
    probability: np.ndarray
    low: np.ndarray
    high: np.ndarray


def _sample(values: ArrayLike, name: str) -> np.ndarray:
    sample = np.asarray(values, dtype=float).ravel()
    if len(sample) == 0 or not np.isfinite(sample).all():
        raise UserError(f"{name} are empty or not finite: give at least one number")
    return sample


def bootstrap_interval(
    values: ArrayLike,
    statistic: Callable[[np.ndarray], float] = np.median,
    seed: int = 0,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
) -> Interval:
    """Percentile bootstrap interval of ``statistic`` over ``values`` (n,).

    Raises
    ------
    UserError
        If there are no values or they are not finite.
    """
    sample = _sample(values, "values")
    rng = np.random.default_rng(seed)
    drawn = sample[rng.integers(len(sample), size=(resamples, len(sample)))]
    low, high = np.quantile([statistic(row) for row in drawn], [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(statistic(sample)), float(low), float(high))


def wilson_interval(k: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of the proportion k/n; the whole of [0, 1] (estimate ``nan``) for n = 0.

    >>> str(wilson_interval(0, 32))
    '0 [0, 0.107]'
    """
    if not 0 <= k <= n:
        raise UserError(f"{k} hits of {n} is no proportion: give 0 ≤ k ≤ n")
    if n == 0:
        return Interval(math.nan, 0.0, 1.0)
    z = float(stats.norm.ppf((1 + confidence) / 2))
    p = k / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return Interval(p, 0.0 if k == 0 else (centre - half) / scale, 1.0 if k == n else (centre + half) / scale)


def distribution_distance(a: ArrayLike, b: ArrayLike, seed: int = 0, *, resamples: int = 2000) -> DistributionDistance:
    """How far two sets of energies are apart.

    The bootstrap resamples both sets; for small equal ones the interval lies above the true distance, since
    the Wasserstein distance of finite samples does not vanish: read it beside the p-value.

    Parameters
    ----------
    a, b
        Energies (n,) and (m,), eV.
    """
    first, second = _sample(a, "energies of the first set"), _sample(b, "energies of the second set")
    rng = np.random.default_rng(seed)
    drawn = [
        stats.wasserstein_distance(rng.choice(first, len(first)), rng.choice(second, len(second)))
        for _ in range(resamples)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    distance = float(stats.wasserstein_distance(first, second))
    return DistributionDistance(
        Interval(distance, float(low), float(high)), float(stats.ks_2samp(first, second).pvalue)
    )


def relaxation_cost(structures: Sequence[Atoms], seed: int = 0) -> RelaxationCost:
    """Medians of relaxation steps and calculator force calls over a set, with bootstrap intervals."""

    def median(key: str) -> Interval | None:
        values = row_values(structures, key)
        return bootstrap_interval(values, np.median, seed) if len(values) else None

    converged = int(row_values(structures, "converged").sum())
    return RelaxationCost(len(structures), converged, median("n_steps"), median("n_force_calls"))


def success_curve(
    hits: ArrayLike, force_calls: ArrayLike, *, budget: float | None = None, points: int = 200
) -> SuccessCurve:
    """Cumulative success probability of independent tries against calculator force calls.

    Parameters
    ----------
    hits
        (n,) whether each try found its target, such as ``energies < lowest + 0.1``.
    force_calls
        (n,) calls that each try took, failed ones included.
    budget
        Calls at the end of the curve; default: all that were spent.
    points
        Points of the curve.

    Raises
    ------
    UserError
        If the two differ in length or are empty.
    """
    found, calls = np.asarray(hits, dtype=bool).ravel(), _sample(force_calls, "force calls")
    if len(found) != len(calls):
        raise UserError(f"{len(found)} hits and {len(calls)} force calls do not belong together: give one for each try")
    interval = wilson_interval(int(found.sum()), len(found))
    grid = np.linspace(0.0, float(calls.sum() if budget is None else budget), points)
    tries = grid / calls.mean()
    curves = [1 - (1 - p) ** tries for p in (interval.value, interval.low, interval.high)]
    return SuccessCurve(grid, *curves)


def calls_for_success(p_hit: float, calls_per_try: float, probability: float = 0.95) -> float:
    """Force calls that reach ``probability`` of at least one hit; at least one try, ``inf`` if none ever hits.

    >>> round(calls_for_success(0.5, 100, 0.75))
    200
    """
    if not (0 <= p_hit <= 1 and 0 < probability < 1):
        raise UserError(f"hit probability {p_hit:g} and target {probability:g} must lie between 0 and 1: mend them")
    if p_hit == 0:
        return math.inf
    if p_hit == 1:
        return float(calls_per_try)
    return calls_per_try * max(1.0, math.log1p(-probability) / math.log1p(-p_hit))
