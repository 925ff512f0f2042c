"""Which samples make which split."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch

from snnexp.errors import ConfigError


def split(
    length: int, fractions: Mapping[str, float], seed: int, groups: Sequence[Any] | None = None
) -> dict[str, list[int]]:
    """The indices of each split by name, in order; what is left is ``train``.

    Args:
        length: samples.
        fractions: of all samples, by split.
        seed: of the draw.
        groups: one id per sample; a split takes whole groups until it has its fraction.

    Raises:
        ConfigError: a split would have no samples.
    """
    units: dict[Any, list[int]] = {}
    for index in range(length):
        units.setdefault(index if groups is None else groups[index], []).append(index)
    order = torch.randperm(len(units), generator=torch.Generator().manual_seed(seed)).tolist()
    members = [*units.values()]
    left = iter([members[place] for place in order])
    found: dict[str, list[int]] = {}
    for name, fraction in fractions.items():
        wanted, found[name] = round(fraction * length), []
        if not wanted:
            raise ConfigError(f"{name}_fraction: got {fraction:g}, which is none of the {length} samples")
        while len(found[name]) < wanted and (unit := next(left, None)) is not None:
            found[name] += unit
    found["train"] = [*chain.from_iterable(left)]
    if not found["train"]:
        *_, key = fractions
        raise ConfigError(f"{key}_fraction: got {fractions[key]:g}, which leaves none of {length} samples to train on")
    return {name: sorted(indices) for name, indices in found.items()}
