"""What can be said of a few runs: means with intervals, a paired comparison, and which parameter mattered.

Pure functions of numbers. Where too few are given to say something, the answer is None, or a sentence that says so.
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
"""How often the interval of a repeated experiment holds what it estimates."""
EQUAL = 1e-12
"""Differences that differ by less than this share of the values are equal but for rounding."""
MAX_RANGES = 5

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Summary:
    """A sample.

    Args:
        n: how many values.
        mean: their mean; None without any.
        std: their standard deviation, over n - 1; None for fewer than two.
        low: where the 95 % confidence interval of the mean begins.
        high: where it ends.
    """

    n: int
    mean: float | None
    std: float | None
    low: float | None
    high: float | None


def summary(values: Sequence[float]) -> Summary:
    """Mean, standard deviation and the 95 % confidence interval of the mean, mean -+ t(0.975, n - 1) std / sqrt(n).

    The interval takes the values for independent draws from a normal distribution (Student, 1908).
    """
    n = len(values)
    if n < 2:
        return Summary(n, float(values[0]) if n else None, None, None, None)
    mean, std = float(np.mean(values)), float(np.std(values, ddof=1))
    half = _t(n - 1) * std / math.sqrt(n)
    return Summary(n, mean, std, mean - half, mean + half)


def _t(freedom: int) -> float:
    """The quantile of Student's t distribution that an interval on both sides needs."""
    return float(stdtrit(freedom, (1 + LEVEL) / 2))


@dataclass(frozen=True)
class Paired:
    """Two groups, compared over the seeds that both have.

    Args:
        n: common seeds.
        difference: mean of second - first; None without a common seed.
        low: where its 95 % confidence interval begins.
        high: where it ends.
        p: of Student's paired t-test, on both sides: how often a difference at least this large comes by chance if
            there is none; takes the differences for normally distributed.
        p_ranks: of Wilcoxon's signed-rank test, exact, on both sides; takes them for symmetric only.
        missing: what could not be computed and why; empty if all was.
    """

    n: int
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    p_ranks: float | None
    missing: str = ""


def paired(first: Mapping[Any, float], second: Mapping[Any, float]) -> Paired:
    """Compare two groups over their common seeds: what a seed has in common for both drops out of the difference.

    t = mean(d) / (std(d) / sqrt(n)) with n - 1 degrees of freedom (Student, 1908); the signed ranks of d (Wilcoxon,
    1945) check it where the differences may not be normal.

    Args:
        first: seed to value.
        second: seed to value.
    """
    common = [seed for seed in first if seed in second]
    n = len(common)
    if not common:
        return Paired(0, None, None, None, None, None, "the two groups have no seed in common")
    before, after = np.array([first[seed] for seed in common]), np.array([second[seed] for seed in common])
    d: Vector = after - before
    mean = float(d.mean())
    if n < 2:
        return Paired(n, mean, None, None, None, None, "one common seed gives neither an interval nor a test")
    noise = EQUAL * float(np.abs([before, after]).max())
    d[np.abs(d) <= noise] = 0
    if not d.any():
        return Paired(n, 0.0, 0.0, 0.0, None, None, "no seed shows a difference, so there is nothing to test")
    p_ranks = _signed_ranks(d)
    if float(np.ptp(d)) <= noise:
        reason = "all differences are equal, so that they have no spread to compare their mean with"
        return Paired(n, mean, mean, mean, None, p_ranks, reason)
    found = summary([float(value) for value in d])
    assert found.std is not None
    t = mean / (found.std / math.sqrt(n))
    return Paired(n, mean, found.low, found.high, float(2 * stdtr(n - 1, -abs(t))), p_ranks)


def _signed_ranks(d: Vector) -> float:
    """The exact p value of Wilcoxon's signed-rank test, on both sides; zeros are left out, ties share their ranks.

    Without a difference every rank is as likely in the sum of the positive ones as not: its distribution is built up
    rank by rank.
    """
    d = d[d != 0]
    # doubled, shared ranks are whole numbers
    doubled = np.rint(2 * _ranks(np.abs(d))).astype(int)
    chances = np.zeros(doubled.sum() + 1)
    chances[0] = 1.0
    for rank in doubled:
        moved = np.zeros_like(chances)
        moved[rank:] = chances[: len(chances) - rank]
        chances = (chances + moved) / 2
    positive = doubled[d > 0].sum()
    tail = min(chances[: positive + 1].sum(), chances[positive:].sum())
    return float(min(1.0, 2 * tail))


def _ranks(values: Vector) -> Vector:
    """Ranks from 1; equal values share the mean of theirs."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Vector = (last - (counts - 1) / 2)[which]
    return ranks


@dataclass(frozen=True)
class Importance:
    """How much of a metric's variance one parameter explains.

    Args:
        share: at most 1; around 0, also below it, for a parameter that explains no more than chance would. None where
            it cannot be computed.
        ranges: into how many ranges its values were sorted; None where each value stands for itself.
    """

    share: float | None
    ranges: int | None = None


def importance(levels: Sequence[Any], metric: Sequence[float]) -> Importance:
    """The share of the metric's variance that a parameter explains alone, less what chance would.

    Of N runs with k levels, SSW is the sum of squares around the levels' means, SST that around the mean of all:

        epsilon^2 = 1 - (SSW / (N - k)) / (SST / (N - 1))

    (Kelley, 1935; the adjusted R^2 of a one-way model). Numbers of which fewer than two runs share one, as in a random
    search, are first sorted into ranges with equally many runs: a correlation would not see an optimum in the middle.

    It is 0 on average for a parameter that does nothing, and so negative at times: it explained less than chance does
    on average. Nothing is said of how parameters act together.

    Args:
        levels: the parameter's value in each run.
        metric: the metric in each run.
    """
    y = np.array(metric, float)
    n, own = len(y), dict.fromkeys(levels)
    if 2 * len(own) > n and all(is_number(level) for level in own):
        wanted = max(2, min(MAX_RANGES, n // 4))
        places = np.floor((_ranks(np.array(levels, float)) - 1) * wanted / n)
    else:
        order = {level: index for index, level in enumerate(own)}
        places = np.array([order[level] for level in levels], float)
        wanted = None
    _, which = np.unique(places, return_inverse=True)
    k = int(which.max(initial=-1)) + 1
    if k < 2 or n <= k or float(np.ptp(y)) <= EQUAL * float(np.abs(y).max()):
        return Importance(None)
    means = np.bincount(which, y) / np.bincount(which)
    within, total = float(((y - means[which]) ** 2).sum()), float(((y - y.mean()) ** 2).sum())
    return Importance(1 - (within / (n - k)) / (total / (n - 1)), wanted)


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a parameter's value has a place on an axis; true and false have not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
