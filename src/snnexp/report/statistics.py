"""Statistics for few samples: confidence intervals, paired tests, and parameter importance.

Pure functions of numbers. A result that needs more samples is None, possibly with a reason.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

LEVEL = 0.95
"""Confidence level of the intervals."""
EQUAL = 1e-12
"""Relative tolerance below which differences are attributed to rounding."""
MAX_RANGES = 5

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Summary:
    """Summary statistics of a sample.

    Args:
        n: number of values.
        mean: mean; None for an empty sample.
        std: standard deviation with n - 1 degrees of freedom; None for fewer than two values.
        low: lower bound of the 95 % confidence interval of the mean.
        high: upper bound of the interval.
    """

    n: int
    mean: float | None
    std: float | None
    low: float | None
    high: float | None


def summary(values: Sequence[float]) -> Summary:
    """Return mean, standard deviation and the 95 % confidence interval mean -+ t(0.975, n - 1) std / sqrt(n).

    The interval assumes independent samples of a normal distribution (Student, 1908).
    """
    n = len(values)
    if n < 2:
        return Summary(n, float(values[0]) if n else None, None, None, None)
    mean, std = float(np.mean(values)), float(np.std(values, ddof=1))
    half = _t(n - 1) * std / math.sqrt(n)
    return Summary(n, mean, std, mean - half, mean + half)


def _t(freedom: int) -> float:
    """Return the quantile of Student's t distribution for a two-sided interval."""
    return float(stdtrit(freedom, (1 + LEVEL) / 2))


@dataclass(frozen=True)
class Paired:
    """A paired comparison of two groups over their common seeds.

    Args:
        n: number of common seeds.
        difference: mean of second - first; None without a common seed.
        low: lower bound of its 95 % confidence interval.
        high: upper bound of the interval.
        p: p-value of the two-sided paired t-test, which assumes normally distributed differences.
        p_ranks: exact p-value of the two-sided Wilcoxon signed-rank test, which assumes symmetric differences only.
        missing: reason why a value could not be computed; empty otherwise.
    """

    n: int
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    p_ranks: float | None
    missing: str = ""


def paired(first: Mapping[Any, float], second: Mapping[Any, float]) -> Paired:
    """Compare two groups over their common seeds, so that the variation between seeds cancels.

    t = mean(d) / (std(d) / sqrt(n)) with n - 1 degrees of freedom (Student, 1908). The signed-rank test (Wilcoxon,
    1945) does not assume normal differences.

    Args:
        first: seed to value.
        second: seed to value.
    """
    common = [seed for seed in first if seed in second]
    n = len(common)
    if not common:
        return Paired(0, None, None, None, None, None, "the two groups have no seed in common")
    x, y = np.array([first[seed] for seed in common]), np.array([second[seed] for seed in common])
    d: Vector = y - x
    mean = float(d.mean())
    if n < 2:
        return Paired(n, mean, None, None, None, None, "one common seed gives neither an interval nor a test")
    noise = EQUAL * float(np.abs([x, y]).max())
    d[np.abs(d) <= noise] = 0
    if not d.any():
        return Paired(n, 0.0, 0.0, 0.0, None, None, "all common seeds have equal values, so there is nothing to test")
    p_ranks = _signed_ranks(d)
    if float(np.ptp(d)) <= noise:
        reason = "all differences are equal, so their variance is zero and there is no t-test"
        return Paired(n, mean, mean, mean, None, p_ranks, reason)
    differences = summary([float(value) for value in d])
    assert differences.std is not None
    t = mean / (differences.std / math.sqrt(n))
    return Paired(n, mean, differences.low, differences.high, float(2 * stdtr(n - 1, -abs(t))), p_ranks)


def _signed_ranks(d: Vector) -> float:
    """Return the exact two-sided p-value of the Wilcoxon signed-rank test; zeros are dropped, ties get mean ranks.

    Under the null hypothesis each rank is positive with probability 1/2, so the distribution of the sum of positive
    ranks is the convolution over the ranks.
    """
    d = d[d != 0]
    # doubled mean ranks are integers
    doubled = np.rint(2 * _ranks(np.abs(d))).astype(int)
    probabilities = np.zeros(doubled.sum() + 1)
    probabilities[0] = 1.0
    for rank in doubled:
        shifted = np.zeros_like(probabilities)
        shifted[rank:] = probabilities[: len(probabilities) - rank]
        probabilities = (probabilities + shifted) / 2
    positive = doubled[d > 0].sum()
    tail = min(probabilities[: positive + 1].sum(), probabilities[positive:].sum())
    return float(min(1.0, 2 * tail))


def _ranks(values: Vector) -> Vector:
    """Return ranks from 1; ties get their mean rank."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Vector = (last - (counts - 1) / 2)[which]
    return ranks


@dataclass(frozen=True)
class Importance:
    """Importance of one parameter for a metric.

    Args:
        share: explained share of the variance, at most 1; around 0, possibly negative, for a parameter without effect.
            None if it cannot be computed.
        ranges: number of bins that the values were grouped into; None if they were not binned.
    """

    share: float | None
    ranges: int | None = None


def importance(levels: Sequence[Any], metric: Sequence[float]) -> Importance:
    """Return the share of a metric's variance that a parameter explains alone, epsilon squared.

    For N runs with k levels, with SSW the sum of squares within levels and SST the total sum of squares:

        epsilon^2 = 1 - (SSW / (N - k)) / (SST / (N - 1))

    (Kelley, 1935; the adjusted R^2 of a one-way ANOVA). Numeric values with fewer than two runs each, as in a random
    search, are first binned into ranges with equal numbers of runs, which detects an optimum inside the range.

    The expected value is 0 for a parameter without effect, so negative values occur. Interactions between parameters
    are not considered.

    Args:
        levels: the parameter's value in each run.
        metric: the metric in each run.
    """
    y = np.array(metric, float)
    n, unique = len(y), dict.fromkeys(levels)
    if 2 * len(unique) > n and all(is_number(level) for level in unique):
        ranges = max(2, min(MAX_RANGES, n // 4))
        bins = np.floor((_ranks(np.array(levels, float)) - 1) * ranges / n)
    else:
        order = {level: index for index, level in enumerate(unique)}
        bins = np.array([order[level] for level in levels], float)
        ranges = None
    _, group = np.unique(bins, return_inverse=True)
    k = int(group.max(initial=-1)) + 1
    if k < 2 or n <= k or float(np.ptp(y)) <= EQUAL * float(np.abs(y).max()):
        return Importance(None)
    means = np.bincount(group, y) / np.bincount(group)
    within, total = float(((y - means[group]) ** 2).sum()), float(((y - y.mean()) ** 2).sum())
    return Importance(1 - (within / (n - k)) / (total / (n - 1)), ranges)


def is_number(value: Any) -> TypeGuard[float]:
    """Return True for an int or float in the range of floats; bool does not count."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
