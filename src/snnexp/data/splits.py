"""Which samples are in which split: functions of the number of samples, a seed, and what samples have in common."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snnexp.errors import ConfigError
from snnexp.text import format_value

SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""The split that a word stands for."""


def split(
    length: int,
    fractions: Mapping[str, float],
    seed: int,
    groups: Sequence[Any] | None = None,
    labels: Sequence[int] | None = None,
) -> dict[str, list[int]]:
    """The indices of each split by name, in order; what is left is ``train``.

    Args:
        length: samples.
        fractions: of all samples, by split.
        seed: of the draw.
        groups: one id per sample; a split takes whole groups until it has its fraction.
        labels: one per sample; a split takes of each class its share of what the splits before have left, rounded down
            or up, as :class:`sklearn.model_selection.StratifiedShuffleSplit` does.

    Raises:
        ConfigError: a split would have no samples, or a class has fewer samples than there are splits.
    """
    _require_not_both(groups, labels)
    if labels is not None:
        _require_all_classes(labels, len(fractions) + 1)
    left = [*_by_id(_shuffled(length, seed), labels).values()] if labels is not None else _units(length, seed, groups)
    found: dict[str, list[int]] = {}
    for name, fraction in fractions.items():
        wanted = round(fraction * length)
        if not wanted:
            raise ConfigError(f"{name}_fraction: got {fraction:g}, which is none of the {length} samples")
        found[name], left = _take_units(left, wanted) if labels is None else _take_stratified(left, wanted)
    found["train"] = [*chain.from_iterable(left)]
    if not found["train"]:
        *_, key = fractions
        raise ConfigError(f"{key}_fraction: got {fractions[key]:g}, which leaves none of {length} samples to train on")
    return {name: sorted(indices) for name, indices in found.items()}


def fold(
    length: int,
    fold: int,
    folds: int,
    val_fraction: float | None,
    seed: int,
    groups: Sequence[Any] | None = None,
    labels: Sequence[int] | None = None,
) -> dict[str, list[int]]:
    """The indices of each split by name, in order, for one fold of a cross-validation.

    The samples are dealt into as many parts as there are folds, the same for each fold; one part is the test split.

    Args:
        length: samples.
        fold: the part that is the test split, from 0.
        folds: how many parts there are; their sizes differ by one sample at most, but for groups.
        val_fraction: of the other parts, set aside for validation; None for none.
        seed: of both draws.
        groups: one id per sample; whole groups are dealt, the largest first, each to the smallest part.
        labels: one per sample; the samples of a class are dealt as evenly as all samples.

    Raises:
        ConfigError: there is no such fold, there are too few samples, groups or samples of a class for so many folds,
            or a split would have no samples.
    """
    _require_not_both(groups, labels)
    if not 0 <= fold < folds:
        raise ConfigError(f"fold: got {fold}, must be {'0 or more' if fold < 0 else f'less than folds = {folds}'}")
    _require_folds(length, folds, groups, labels)
    test = {*_parts(length, folds, seed, groups, labels)[fold]}
    rest = [index for index in range(length) if index not in test]
    of_rest = [None if ids is None else [ids[index] for index in rest] for ids in (groups, labels)]
    fractions = {} if val_fraction is None else {"val": val_fraction}
    found = split(len(rest), fractions, seed, *of_rest)
    return {"test": sorted(test)} | {name: [rest[place] for place in places] for name, places in found.items()}


def from_names(words: Sequence[Any]) -> dict[str, list[int]]:
    """The indices of each split by name, in order, where each sample says its own.

    Args:
        words: one per sample, ``train``, ``val`` (or ``valid``, ``validation``) or ``test``, in any case.

    Raises:
        ConfigError: there are other words, or no sample is in the training or in the test split.
    """
    found: dict[str, list[int]] = {}
    for index, word in enumerate(words):
        # a column or an array may hold numbers
        found.setdefault(SPLIT_NAMES.get(str(word).lower(), ""), []).append(index)
    if "" in found:
        others = sorted({str(words[index]) for index in found[""]})
        raise ConfigError(f"split: got {format_value(', '.join(others))}, must be train, val or test for each sample")
    for name in ("train", "test"):
        if name not in found:
            raise ConfigError(f"split: none of the {len(words)} samples is in the {name} split, and every run needs it")
    return found


def class_counts(labels: Sequence[int] | Tensor, outputs: int) -> list[int]:
    """How many samples each class has."""
    counts: list[int] = np.bincount(np.asarray(labels, dtype=np.int64), minlength=outputs).tolist()
    return counts


def _shuffled(length: int, seed: int) -> list[int]:
    order: list[int] = torch.randperm(length, generator=torch.Generator().manual_seed(seed)).tolist()
    return order


def _by_id(indices: Sequence[int], ids: Sequence[Any]) -> dict[Any, list[int]]:
    found: dict[Any, list[int]] = {}
    for index in indices:
        found.setdefault(ids[index], []).append(index)
    return found


def _units(length: int, seed: int, groups: Sequence[Any] | None) -> list[list[int]]:
    """What stays together, shuffled: the samples of each group, or each sample alone."""
    members = [*_by_id(range(length), range(length) if groups is None else groups).values()]
    return [members[place] for place in _shuffled(len(members), seed)]


def _take_units(units: Sequence[list[int]], wanted: int) -> tuple[list[int], list[list[int]]]:
    """The first units that have so many samples together, and the other units."""
    sizes = np.cumsum([len(unit) for unit in units])
    count = int(np.searchsorted(sizes, wanted)) + 1
    return [*chain.from_iterable(units[:count])], [*units[count:]]


def _take_stratified(classes: Sequence[list[int]], wanted: int) -> tuple[list[int], list[list[int]]]:
    """So many samples, of each class in proportion, and what that leaves of each class."""
    total = sum(map(len, classes))
    shares = [divmod(wanted * len(members), total) for members in classes]
    # the remainders that are largest get one more; the order of classes is drawn, and with it who wins a tie
    by_remainder = sorted(range(len(classes)), key=lambda place: -shares[place][1])
    more = {*by_remainder[: wanted - sum(share for share, _ in shares)]}
    counts = [share + (place in more) for place, (share, _) in enumerate(shares)]
    taken = [members[:count] for members, count in zip(classes, counts, strict=True)]
    return [*chain.from_iterable(taken)], [members[count:] for members, count in zip(classes, counts, strict=True)]


def _parts(
    length: int, folds: int, seed: int, groups: Sequence[Any] | None, labels: Sequence[int] | None
) -> list[list[int]]:
    """The samples, dealt into as many parts as there are folds."""
    if groups is None:
        order = _shuffled(length, seed)
        # dealing goes on from class to class, so that the sizes of parts differ by one at most
        dealt = order if labels is None else [*chain.from_iterable(_by_id(order, labels).values())]
        return [dealt[part::folds] for part in range(folds)]
    parts: list[list[int]] = [[] for _ in range(folds)]
    for unit in sorted(_units(length, seed, groups), key=len, reverse=True):
        min(parts, key=len).extend(unit)
    return parts


def _require_not_both(groups: Sequence[Any] | None, labels: Sequence[int] | None) -> None:
    if groups is not None and labels is not None:
        raise ConfigError("stratify: got true beside data.groups; only one of the two is possible")


def _require_all_classes(labels: Sequence[int], splits: int) -> None:
    label, count = _smallest_class(labels)
    if count < splits:
        raise ConfigError(f"stratify: class {label} has {count} samples, too few for {splits} splits")


def _require_folds(length: int, folds: int, groups: Sequence[Any] | None, labels: Sequence[int] | None) -> None:
    most, what = length, "samples"
    if groups is not None:
        most, what = len({*groups}), "groups"
    if labels is not None:
        label, most = _smallest_class(labels)
        what = f"samples of class {label}"
    if not 2 <= folds <= most:
        must = "must be 2 or more" if folds < 2 else f"must be at most the {most} {what}"
        raise ConfigError(f"folds: got {folds}, {must}")


def _smallest_class(labels: Sequence[int]) -> tuple[int, int]:
    """The class that has the fewest samples, of those that have some, and its count."""
    counts = {label: len(indices) for label, indices in sorted(_by_id(range(len(labels)), labels).items())}
    return min(counts.items(), key=lambda item: item[1])
