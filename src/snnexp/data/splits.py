"""Splits as lists of indices: random, grouped, stratified, cross-validation folds, or given by name."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snnexp.errors import ConfigError
from snnexp.text import format_value

SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Accepted names of splits."""


def split(
    length: int,
    fractions: Mapping[str, float],
    seed: int,
    groups: Sequence[Any] | None = None,
    labels: Sequence[int] | None = None,
) -> dict[str, list[int]]:
    """Return the sorted indices of each split; the remaining samples are ``train``.

    Args:
        length: number of samples.
        fractions: fraction of all samples, by split.
        seed: seed of the split.
        groups: one id per sample; a split takes whole groups until it has its fraction.
        labels: one label per sample; a split takes its share of the remaining samples of each class, rounded down or
            up as in :class:`sklearn.model_selection.StratifiedShuffleSplit`.

    Raises:
        ConfigError: a split would be empty, or a class has fewer samples than there are splits.
    """
    _require_not_both(groups, labels)
    if labels is not None:
        _require_all_classes(labels, len(fractions) + 1)
    left = [*_by_id(_shuffled(length, seed), labels).values()] if labels is not None else _units(length, seed, groups)
    result: dict[str, list[int]] = {}
    for name, fraction in fractions.items():
        count = round(fraction * length)
        if not count:
            raise ConfigError(f"{name}_fraction: got {fraction:g}, which is less than one of the {length} samples")
        result[name], left = _take_units(left, count) if labels is None else _take_stratified(left, count)
    result["train"] = [*chain.from_iterable(left)]
    if not result["train"]:
        *_, key = fractions
        raise ConfigError(f"{key}_fraction: got {fractions[key]:g}, which leaves none of {length} samples for training")
    return {name: sorted(indices) for name, indices in result.items()}


def fold(
    length: int,
    fold: int,
    folds: int,
    val_fraction: float | None,
    seed: int,
    groups: Sequence[Any] | None = None,
    labels: Sequence[int] | None = None,
) -> dict[str, list[int]]:
    """Return the sorted indices of each split for one fold of a cross-validation.

    The samples are partitioned into ``folds`` parts, independent of ``fold``; part ``fold`` is the test split.

    Args:
        length: number of samples.
        fold: index of the test fold, from 0.
        folds: number of folds; without groups, their sizes differ by at most one sample.
        val_fraction: fraction of the other folds for validation; None for none.
        seed: seed of the folds and of the validation split.
        groups: one id per sample; each group, the largest first, is added to the smallest part.
        labels: one label per sample; the samples of each class are distributed evenly over the parts.

    Raises:
        ConfigError: there is no such fold, there are fewer samples, groups or samples of a class than folds, or a split
            would be empty.
    """
    _require_not_both(groups, labels)
    if not 0 <= fold < folds:
        raise ConfigError(f"fold: got {fold}, must be {'0 or more' if fold < 0 else f'less than folds = {folds}'}")
    _require_folds(length, folds, groups, labels)
    test = {*_parts(length, folds, seed, groups, labels)[fold]}
    rest = [index for index in range(length) if index not in test]
    of_rest = [None if ids is None else [ids[index] for index in rest] for ids in (groups, labels)]
    fractions = {} if val_fraction is None else {"val": val_fraction}
    others = split(len(rest), fractions, seed, *of_rest)
    return {"test": sorted(test)} | {name: [rest[index] for index in indices] for name, indices in others.items()}


def from_names(names: Sequence[Any]) -> dict[str, list[int]]:
    """Return the indices of each split, given the name of the split of each sample.

    Args:
        names: one per sample, ``train``, ``val`` (or ``valid``, ``validation``) or ``test``, case-insensitive.

    Raises:
        ConfigError: there are other names, or the training or the test split is empty.
    """
    result: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        # names from a column or an array may be numbers
        result.setdefault(SPLIT_NAMES.get(str(name).lower(), ""), []).append(index)
    if "" in result:
        others = sorted({str(names[index]) for index in result[""]})
        raise ConfigError(f"split: got {format_value(', '.join(others))}, must be train, val or test for each sample")
    for split in ("train", "test"):
        if split not in result:
            raise ConfigError(
                f"split: none of the {len(names)} samples is in the {split} split, which every run requires"
            )
    return result


def class_counts(labels: Sequence[int] | Tensor, outputs: int) -> list[int]:
    """Return the number of samples per class."""
    counts: list[int] = np.bincount(np.asarray(labels, dtype=np.int64), minlength=outputs).tolist()
    return counts


def _shuffled(length: int, seed: int) -> list[int]:
    order: list[int] = torch.randperm(length, generator=torch.Generator().manual_seed(seed)).tolist()
    return order


def _by_id(indices: Sequence[int], ids: Sequence[Any]) -> dict[Any, list[int]]:
    by_id: dict[Any, list[int]] = {}
    for index in indices:
        by_id.setdefault(ids[index], []).append(index)
    return by_id


def _units(length: int, seed: int, groups: Sequence[Any] | None) -> list[list[int]]:
    """Return the indivisible units in random order: groups, or single samples."""
    members = [*_by_id(range(length), range(length) if groups is None else groups).values()]
    return [members[index] for index in _shuffled(len(members), seed)]


def _take_units(units: Sequence[list[int]], size: int) -> tuple[list[int], list[list[int]]]:
    """Take the first units with at least ``size`` samples in total; return their samples, and the other units."""
    sizes = np.cumsum([len(unit) for unit in units])
    count = int(np.searchsorted(sizes, size)) + 1
    return [*chain.from_iterable(units[:count])], [*units[count:]]


def _take_stratified(classes: Sequence[list[int]], size: int) -> tuple[list[int], list[list[int]]]:
    """Take ``size`` samples in proportion to the classes; return them, and the other samples of each class."""
    total = sum(map(len, classes))
    shares = [divmod(size * len(members), total) for members in classes]
    # classes with the largest remainders get one more sample; ties are broken by the random order of the classes
    by_remainder = sorted(range(len(classes)), key=lambda index: -shares[index][1])
    more = {*by_remainder[: size - sum(share for share, _ in shares)]}
    counts = [share + (index in more) for index, (share, _) in enumerate(shares)]
    taken = [members[:count] for members, count in zip(classes, counts, strict=True)]
    return [*chain.from_iterable(taken)], [members[count:] for members, count in zip(classes, counts, strict=True)]


def _parts(
    length: int, folds: int, seed: int, groups: Sequence[Any] | None, labels: Sequence[int] | None
) -> list[list[int]]:
    """Partition the samples into folds."""
    if groups is None:
        order = _shuffled(length, seed)
        # sort by class and distribute round-robin, so that the sizes of folds differ by at most one
        order = order if labels is None else [*chain.from_iterable(_by_id(order, labels).values())]
        return [order[part::folds] for part in range(folds)]
    parts: list[list[int]] = [[] for _ in range(folds)]
    for unit in sorted(_units(length, seed, groups), key=len, reverse=True):
        min(parts, key=len).extend(unit)
    return parts


def _require_not_both(groups: Sequence[Any] | None, labels: Sequence[int] | None) -> None:
    if groups is not None and labels is not None:
        raise ConfigError("stratify: got true, but data.groups is set; use only one")


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
    """Return the smallest class that has samples, and its number of samples."""
    counts = {label: len(indices) for label, indices in sorted(_by_id(range(len(labels)), labels).items())}
    return min(counts.items(), key=lambda item: item[1])
