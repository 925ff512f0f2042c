"""Statistics of runs: closed forms, comparison with scipy, and invariants."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given
from hypothesis import strategies as st

from snnexp.report.statistics import Importance, Summary, importance, paired, summary

NUMBERS = st.floats(-1e3, 1e3).map(lambda value: round(value, 3))
SAMPLES = st.lists(NUMBERS, min_size=2, max_size=12).filter(lambda values: len(set(values)) > 1)


def test_summary_in_closed_form() -> None:
    result = summary([1.0, 2.0, 3.0])
    # t(0.975, 2) = 4.30265
    half = 4.30265 / math.sqrt(3)
    assert (result.n, result.mean, result.std) == (3, 2.0, 1.0)
    assert (result.low, result.high) == pytest.approx((2 - half, 2 + half), rel=1e-5)


@given(SAMPLES)
def test_interval_equals_scipy(values: list[float]) -> None:
    result = summary(values)
    low, high = scipy.stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (result.low, result.high) == pytest.approx((low, high))


def test_coverage_of_the_interval() -> None:
    random = np.random.default_rng(0)
    draws = [summary(list(random.normal(5.0, 2.0, 4))) for _ in range(2000)]
    hits = sum(draw.low <= 5.0 <= draw.high for draw in draws)
    assert hits / 2000 == pytest.approx(0.95, abs=0.02)


def test_too_few_values_have_no_spread() -> None:
    assert summary([]) == Summary(0, None, None, None, None)
    assert summary([4.0]) == Summary(1, 4.0, None, None, None)


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=3, max_size=10))
def test_paired_tests_equal_scipy(pairs: list[tuple[float, float]]) -> None:
    first, second = (np.array(column) for column in zip(*pairs, strict=True))
    d = np.round(second - first, 3)
    assume(len(set(d)) > 1)
    result = paired(dict(enumerate(first)), dict(enumerate(second)))
    expected = scipy.stats.ttest_rel(second, first)
    low, high = expected.confidence_interval(0.95)
    assert (result.difference, result.low, result.high) == pytest.approx((d.mean(), low, high), abs=1e-9)
    assert result.p == pytest.approx(expected.pvalue, abs=1e-9)
    assert result.missing == ""
    sizes = np.abs(d[d != 0])
    if len(set(sizes)) == len(sizes):
        exact = scipy.stats.wilcoxon(d[d != 0], method="exact")
        assert result.p_ranks == pytest.approx(exact.pvalue)


def test_ties_are_tested_exactly() -> None:
    # of the 2^4 sign patterns of ranks 1.5, 1.5, 3.5, 3.5, three have a sum of at most 1.5
    result = paired(dict.fromkeys(range(4), 0.0), {0: -1.0, 1: 1.0, 2: 2.0, 3: 2.0})
    assert result.p_ranks == pytest.approx(2 * 3 / 16)


def test_unpaired_seeds_are_ignored() -> None:
    result = paired({0: 1.0, 1: 2.0, 7: 100.0}, {1: 4.0, 0: 2.0, 8: -50.0})
    assert (result.n, result.difference) == (2, 1.5)


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=8))
def test_swapped_groups_flip_the_sign(pairs: list[tuple[float, float]]) -> None:
    first, second = (dict(enumerate(column)) for column in zip(*pairs, strict=True))
    result, swapped = paired(first, second), paired(second, first)
    assert result.difference == -swapped.difference
    assert (result.p, result.p_ranks, result.missing) == pytest.approx((swapped.p, swapped.p_ranks, swapped.missing))
    if result.low is not None:
        assert (result.low, result.high) == pytest.approx((-swapped.high, -swapped.low))


@pytest.mark.parametrize(
    ("first", "second", "n", "difference", "word"),
    [
        ({0: 1.0}, {1: 2.0}, 0, None, "no seed in common"),
        ({0: 1.0}, {0: 2.0}, 1, 1.0, "one common seed"),
        ({0: 1.0, 1: 5.0}, {0: 1.0, 1: 5.0}, 2, 0.0, "all common seeds have equal values"),
        # 0.3 - 0.1 and 0.4 - 0.2 differ only in the last digit
        ({0: 0.1, 1: 0.2}, {0: 0.3, 1: 0.4}, 2, pytest.approx(0.2), "all differences are equal"),
    ],
)
def test_reasons_for_no_test(first: dict, second: dict, n: int, difference: float | None, word: str) -> None:
    result = paired(first, second)
    assert (result.n, result.difference, result.p) == (n, difference, None)
    assert word in result.missing


def test_importance_in_closed_form() -> None:
    # SSW = 4, SST = 20, N = 4, k = 2
    assert importance(["a", "a", "b", "b"], [0.0, 2.0, 4.0, 6.0]).share == pytest.approx(1 - (4 / 2) / (20 / 3))
    assert importance(["a", "a", "b", "b"], [1.0, 1.0, 2.0, 2.0]).share == 1.0
    assert importance(["a", "a", "b", "b"], [1.0, 2.0, 1.0, 2.0]).share == pytest.approx(1 - (1 / 2) / (1 / 3))


def test_importance_of_continuous_values() -> None:
    # the two lower and the two higher values, SSW = 4, SST = 20
    assert importance([0.1, 9.0, 3.0, 0.7], [0.0, 6.0, 4.0, 2.0]) == Importance(pytest.approx(1 - 2 / (20 / 3)), 2)
    x = np.random.default_rng(0).uniform(-3, 3, 100)
    hill = importance(list(x), list(-(x**2)))
    assert hill.ranges == 5
    assert hill.share > 0.7, "an optimum in the middle is detected"


@pytest.mark.parametrize("levels", [[0, 1, 2] * 4, list(range(12))], ids=["levels", "ranges"])
def test_importance_of_noise_is_zero_on_average(levels: list[int]) -> None:
    random = np.random.default_rng(1)
    shares = [importance(levels, list(random.normal(size=12))).share for _ in range(3000)]
    assert np.mean(shares) == pytest.approx(0.0, abs=4 * np.std(shares) / math.sqrt(3000))
    assert min(shares) < 0, "values below chance are not clipped"


@given(
    SAMPLES.flatmap(
        lambda y: st.tuples(st.just(y), st.lists(st.sampled_from("abc"), min_size=len(y), max_size=len(y)))
    ),
    st.integers(-1000, 1000),
    st.integers(1, 50),
)
def test_importance_is_invariant_to_scale_and_shift(
    drawn: tuple[list[float], list[str]], shift: int, scale: int
) -> None:
    y, levels = drawn
    result, moved = importance(levels, y), importance(levels, [scale * value + shift for value in y])
    assert result.share == (None if moved.share is None else pytest.approx(moved.share, rel=1e-6, abs=1e-6))


@pytest.mark.parametrize(
    ("levels", "metric"),
    [(["a", "a"], [1.0, 2.0]), (["a", "b"], [1.0, 2.0]), ([1, 2], [1.0, 2.0]), (["a", "a", "b"], [3.0] * 3), ([], [])],
    ids=["one level", "no replicate", "two points", "no variance", "nothing"],
)
def test_undefined_importance(levels: list, metric: list[float]) -> None:
    assert importance(levels, metric).share is None
