"""Data from map-style PyTorch datasets."""

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
    """Make a data module from a map-style dataset whose samples are pairs (x, y) without a batch axis.

    x is a tensor, an array or a number, ``[*N]``, or ``[T, *N]`` with ``sequences``. A number is a vector of length 1.

    Args:
        dataset: training samples, from which splits by fraction are taken.
        val: validation samples, instead of a fraction.
        test: test samples, instead of a fraction.
        groups: attribute of the dataset with one id per sample; samples of a group stay in the same split.
        sequences: whether the first axis of x is time; null to infer true for two or four axes.
        in_memory: read all samples once; false to read samples per batch, which redraws random ones every epoch; null
            to read all if they fit into half of the memory.
        options: see :func:`~snnexp.data.prepare.prepared`.

    Raises:
        ConfigError: the arguments contradict each other or the first sample.
        DataError: a sample is unsupported.
    """
    given = {"train": ("dataset", dataset), "val": ("val", val), "test": ("test", test)}
    sources = {split: _source(name, each, groups) for split, (name, each) in given.items() if each is not None}
    return prepared(sources, sequences=sequences, in_memory=in_memory, **options)


def _source(name: str, dataset: Any, groups: str | None) -> Source:
    """Wrap a dataset as a source.

    Raises:
        ConfigError: the dataset is not map-style, or has no such groups.
    """
    kind = type(dataset)
    if isinstance(dataset, IterableDataset) or not (hasattr(kind, "__len__") and hasattr(kind, "__getitem__")):
        raise ConfigError(f"{name}: got a {kind.__name__}, must have a length and a sample for each index")
    return Source(name, dataset, None if groups is None else _group_ids(name, dataset, groups))


def _group_ids(name: str, dataset: Any, attribute: str) -> list[Any]:
    """Return the group ids of all samples.

    Raises:
        ConfigError: the dataset has no such attribute, or not one id per sample.
    """
    value: Any = getattr(dataset, attribute, None)
    value = value.tolist() if hasattr(value, "tolist") else value
    ids: list[Any] | None = [*value] if isinstance(value, Sequence) else None
    if ids is None:
        raise ConfigError(f"groups: got {attribute}, but {name} has no such attribute with one id for each sample")
    if len(ids) != len(dataset):
        raise ConfigError(f"groups: got {attribute}, but {name} has {len(ids)} group ids for {len(dataset)} samples")
    return ids
