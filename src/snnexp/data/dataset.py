"""Any map-style dataset of PyTorch's as the data of a run."""

from collections.abc import Sequence
from typing import Any

from torch.utils.data import IterableDataset

from snnexp.data.module import DataModule
from snnexp.data.prepare import prepared
from snnexp.data.sources import Source
from snnexp.errors import ConfigError
from snnexp.spec.annotations import Given, Object
from snnexp.spec.checked import checked
from snnexp.spec.parts import part


@part(
    target=Given("target"),
    sequences=Given("sequences"),
    outputs=Given("outputs"),
    validation=("val_fraction", "val"),
    stackable=True,
)
@checked
def from_dataset(
    dataset: Object,
    val: Object | None = None,
    test: Object | None = None,
    groups: str | None = None,
    sequences: bool = False,
    in_memory: bool | None = False,
    **options: Any,
) -> DataModule:
    """The data module of a map-style dataset, whose samples are pairs (x, y) without a batch axis.

    x is a tensor, an array or a number, ``[*N]``, or with ``sequences`` ``[T, *N]``; a number is a vector of one.

    Args:
        dataset: the training samples, and those of splits by fraction.
        val: the validation samples, in place of a fraction.
        test: the test samples, in place of a fraction.
        groups: an attribute of the dataset with one id per sample; samples of a group stay in one split.
        sequences: whether x begins with time; null where it has two axes or four.
        in_memory: read all samples once; false to read each when its batch is made, and to draw random ones anew; null
            to read all where they take less than half of the memory.
        options: as of :func:`~snnexp.data.prepare.prepared`.

    Raises:
        ConfigError: the arguments contradict each other or the first sample.
        DataError: a sample cannot be used.
    """
    given = {"train": ("dataset", dataset), "val": ("val", val), "test": ("test", test)}
    sources = {split: _source(name, each, groups) for split, (name, each) in given.items() if each is not None}
    return prepared(sources, sequences=sequences, in_memory=in_memory, **options)


def _source(name: str, dataset: Any, groups: str | None) -> Source:
    """A map-style dataset as a source.

    Raises:
        ConfigError: it is none, or has no such groups.
    """
    kind = type(dataset)
    if isinstance(dataset, IterableDataset) or not (hasattr(kind, "__len__") and hasattr(kind, "__getitem__")):
        raise ConfigError(f"{name}: got a {kind.__name__}, must have a length and a sample for each index")
    return Source(name, dataset, None if groups is None else _group_ids(name, dataset, groups))


def _group_ids(name: str, dataset: Any, attribute: str) -> list[Any]:
    """The ids of the groups of all samples.

    Raises:
        ConfigError: the dataset has no such attribute, or not one id per sample.
    """
    found: Any = getattr(dataset, attribute, None)
    found = found.tolist() if hasattr(found, "tolist") else found
    ids: list[Any] | None = [*found] if isinstance(found, Sequence) else None
    if ids is None:
        raise ConfigError(f"groups: got {attribute}, and {name} has no such attribute with one id for each sample")
    if len(ids) != len(dataset):
        raise ConfigError(f"groups: got {attribute}, and {name} has {len(ids)} of them for {len(dataset)} samples")
    return ids
