"""Splits: each sample is in one split, sizes are correct, and results are reproducible."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from snnexp.data import splits
from snnexp.errors import ConfigError

SEEDS = st.integers(0, 2**32)
CHECKS = settings(max_examples=40, deadline=None, derandomize=True)


@st.composite
def classes(draw: st.DrawFn, least: int = 3) -> list[int]:
    """Labels of up to 6 classes with at least ``least`` samples each."""
    counts = draw(st.lists(st.integers(least, 25), min_size=1, max_size=6))
    return draw(st.permutations([label for label, count in enumerate(counts) for _ in range(count)]))


def is_partition(found: Mapping[str, Sequence[int]], length: int) -> bool:
    return sorted(index for indices in found.values() for index in indices) == [*range(length)]


class TestStratified:
    @given(labels=classes(), test=st.floats(0.1, 0.45), val=st.floats(0.1, 0.45), seed=SEEDS)
    @CHECKS
    def test_each_split_has_its_share_of_each_class(
        self, labels: list[int], test: float, val: float, seed: int
    ) -> None:
        length, fractions = len(labels), {"test": test, "val": val}
        assume(all(round(fraction * length) for fraction in fractions.values()))
        found = splits.split(length, fractions, seed, labels=labels)
        assert is_partition(found, length)
        left = Counter(labels)
        for name, fraction in fractions.items():
            wanted, total = round(fraction * length), left.total()
            assert len(found[name]) == wanted
            counts = Counter(labels[index] for index in found[name])
            assert all(abs(counts[label] - wanted * count / total) < 1 for label, count in left.items())
            left -= counts
        assert splits.split(length, fractions, seed, labels=labels) == found
        assert splits.split(length, {"test": test}, seed, labels=labels)["test"] == found["test"]

    def test_is_exact_if_possible(self) -> None:
        labels = [0] * 60 + [1] * 30 + [2] * 10
        found = splits.split(100, {"test": 0.2, "val": 0.1}, 0, labels=labels)
        counts = {name: splits.class_counts([labels[index] for index in found[name]], 4) for name in found}
        assert counts == {"test": [12, 6, 2, 0], "val": [6, 3, 1, 0], "train": [42, 21, 7, 0]}

    def test_ties_are_broken_at_random(self) -> None:
        labels = [0, 1] * 5
        more = {
            tuple(labels[i] for i in splits.split(10, {"test": 0.1}, seed, labels=labels)["test"]) for seed in range(9)
        }
        assert more == {(0,), (1,)}

    def test_a_class_with_too_few_samples_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"^stratify: class 7 has 2 samples, too few for 3 splits$"):
            splits.split(12, {"test": 0.2, "val": 0.2}, 0, labels=[3] * 10 + [7] * 2)

    def test_groups_and_stratify_are_exclusive(self) -> None:
        with pytest.raises(ConfigError, match=r"^stratify: got true, but data.groups is set"):
            splits.split(4, {"test": 0.5}, 0, groups=[0, 0, 1, 1], labels=[0, 1, 0, 1])
        with pytest.raises(ConfigError, match=r"^stratify: got true, but data.groups is set"):
            splits.fold(4, 0, 2, None, 0, groups=[0, 0, 1, 1], labels=[0, 1, 0, 1])


class TestGroups:
    @given(groups=st.lists(st.integers(0, 9), min_size=20, max_size=60), seed=SEEDS)
    @CHECKS
    def test_groups_stay_whole_and_fill_the_fraction(self, groups: list[int], seed: int) -> None:
        sizes, wanted = Counter(groups), round(0.2 * len(groups))
        assume(len(groups) - max(sizes.values()) >= wanted)
        found = splits.split(len(groups), {"test": 0.2}, seed, groups)
        assert is_partition(found, len(groups))
        assert not {groups[index] for index in found["test"]} & {groups[index] for index in found["train"]}
        assert wanted <= len(found["test"]) < wanted + max(sizes.values())


def dealt(length: int, folds: int, seed: int, **ids: Any) -> list[list[int]]:
    """Return the test split of each fold, after checks with and without a validation split."""
    found = []
    for number in range(folds):
        whole = splits.fold(length, number, folds, None, seed, **ids)
        assert is_partition(whole, length)
        assert {*whole} == {"test", "train"}
        found.append(whole["test"])
    assert sorted(index for part in found for index in part) == [*range(length)], "each sample is tested once"
    return found


def spread(counts: Sequence[int]) -> int:
    return max(counts) - min(counts)


class TestFolds:
    @given(length=st.integers(12, 60), folds=st.integers(2, 6), val=st.floats(0.15, 0.5), seed=SEEDS)
    @CHECKS
    def test_share_the_samples_equally(self, length: int, folds: int, val: float, seed: int) -> None:
        tests = dealt(length, folds, seed)
        assert spread([len(part) for part in tests]) <= 1
        found = splits.fold(length, 1, folds, val, seed)
        assert is_partition(found, length)
        assert found["test"] == tests[1], "independent of the validation split"
        assert len(found["val"]) == round(val * (length - len(tests[1])))

    @given(labels=classes(least=6), folds=st.integers(2, 6), seed=SEEDS)
    @CHECKS
    def test_share_each_class_equally(self, labels: list[int], folds: int, seed: int) -> None:
        tests = dealt(len(labels), folds, seed, labels=labels)
        assert spread([len(part) for part in tests]) <= 1
        for label in {*labels}:
            assert spread([sum(labels[index] == label for index in part) for part in tests]) <= 1

    @given(groups=st.lists(st.integers(0, 30), min_size=20, max_size=60), folds=st.integers(2, 5), seed=SEEDS)
    @CHECKS
    def test_keep_groups_whole(self, groups: list[int], folds: int, seed: int) -> None:
        sizes = Counter(groups)
        assume(len(sizes) >= folds)
        tests = dealt(len(groups), folds, seed, groups=groups)
        ids = [{groups[index] for index in part} for part in tests]
        assert sum(map(len, ids)) == len(sizes), "no group is in two folds"
        assert spread([len(part) for part in tests]) <= max(sizes.values())

    @given(seed=SEEDS)
    @CHECKS
    def test_large_groups_are_balanced(self, seed: int) -> None:
        tests = dealt(8, 2, seed, groups="aaaabbcc")
        assert [len(part) for part in tests] == [4, 4]

    def test_depend_on_the_seed(self) -> None:
        groups = [index // 2 for index in range(40)]
        for ids in ({}, {"groups": groups}, {"labels": [index % 3 for index in range(40)]}):
            drawn = [splits.fold(40, 0, 4, 0.2, seed, **ids) for seed in (0, 0, 1)]
            assert drawn[0] == drawn[1]
            assert drawn[0]["test"] != drawn[2]["test"]

    @pytest.mark.parametrize(
        ("arguments", "ids", "message"),
        [
            ((10, 5, 5), {}, "fold: got 5, must be less than folds = 5"),
            ((10, -1, 5), {}, "fold: got -1, must be 0 or more"),
            ((10, 0, 1), {}, "folds: got 1, must be 2 or more"),
            ((10, 0, 11), {}, "folds: got 11, must be at most the 10 samples"),
            ((4, 0, 3), {"groups": "aabb"}, "folds: got 3, must be at most the 2 groups"),
            ((5, 0, 3), {"labels": [0, 0, 0, 4, 4]}, "folds: got 3, must be at most the 2 samples of class 4"),
        ],
    )
    def test_invalid_arguments_are_refused(self, arguments: tuple[int, int, int], ids: Any, message: str) -> None:
        with pytest.raises(ConfigError) as raised:
            splits.fold(*arguments, None, 0, **ids)
        assert str(raised.value) == message


class TestGiven:
    def test_names_of_splits(self) -> None:
        names = ["train", "VAL", "Test", "valid", "Train", "validation"]
        assert splits.from_names(names) == {"train": [0, 4], "val": [1, 3, 5], "test": [2]}

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (["train", "dev", "test", "b"], "split: got b, dev, must be train, val or test for each sample"),
            (["train", "val"], "split: none of the 2 samples is in the test split, which every run requires"),
        ],
    )
    def test_other_names_are_refused(self, names: list[str], message: str) -> None:
        with pytest.raises(ConfigError) as raised:
            splits.from_names(names)
        assert str(raised.value) == message
