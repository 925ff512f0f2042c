"""Any map-style dataset of PyTorch's as the data of a run."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch.utils.data import IterableDataset

from snnexp.config import user_parts
from snnexp.data import scaling
from snnexp.data.description import Description, Target
from snnexp.data.module import DataModule
from snnexp.data.reading import Form, Indexed, Source, Stored, inputs_of, is_image, seed_generators
from snnexp.data.splits import split
from snnexp.errors import ConfigError, DataError
from snnexp.isolation import cpu_random_states, restored
from snnexp.spec.annotations import AtMost, BelowOne, Count, Given, Object, Seed, Stackable, Workers
from snnexp.spec.checked import checked
from snnexp.spec.parts import part

TEST_FRACTION = 0.2
"""Where nothing else is said."""
TO_TENSOR = "'data.transform={_target_: torchvision.transforms.ToTensor}' with SNNEXP_ALLOW_TARGETS=torchvision"


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
    val_fraction: BelowOne | None = None,
    test_fraction: Annotated[float, Interval(ge=0, lt=1), AtMost("1 - val_fraction")] | None = None,
    split_seed: Seed = 0,
    groups: str | None = None,
    sequences: bool = False,
    target: Target | None = None,
    outputs: Count | None = None,
    transform: Object | Sequence[Object] | None = None,
    target_transform: Object | Sequence[Object] | None = None,
    scale: scaling.Method | None = None,
    in_memory: bool = False,
    batch_size: Count = 128,
    drop_last: bool = False,
    num_workers: Workers = 0,
    seed: Stackable[Seed] = 0,
) -> DataModule:
    """The data module of a map-style dataset, whose samples are pairs (x, y) without a batch axis.

    x is a tensor, an array or a number, ``[*N]``, or with ``sequences`` ``[T, *N]``; a number is a vector of one.

    Args:
        dataset: the training samples, and those of splits by fraction.
        val: the validation samples, in place of a fraction.
        test: the test samples, in place of a fraction.
        val_fraction: of the dataset, set aside for validation; null for none.
        test_fraction: of the dataset, set aside for the test; null for 0.2, or for none beside data.test.
        split_seed: draws the splits, whatever the seed of the run.
        groups: an attribute of the dataset with one id per sample; samples of a group stay in one split.
        sequences: whether x begins with time.
        target: what y is; null to tell it from the first sample: a whole number is a label, and one for each step are
            step_labels; a real number or a vector is values; a matrix is a trace.
        outputs: how many classes; null for those named in the attribute classes of the dataset, or those in memory.
        transform: applied to x, one or a list.
        target_transform: applied to y, one or a list.
        scale: each feature or channel to mean 0 and deviation 1, or from 0 to 1, as the training split has it.
        in_memory: read all samples once; else each is read when its batch is made, and random ones are drawn anew.
        batch_size: samples of an optimiser step.
        drop_last: leave out an epoch's last batch where it is not full.
        num_workers: processes that read samples.
        seed: of the order of batches, and of what samples draw.

    Raises:
        ConfigError: the arguments contradict each other or the first sample.
        DataError: a sample cannot be used.
    """
    steps = (_as_list("transform", transform), _as_list("target_transform", target_transform))
    given = {"dataset": dataset, "val": val, "test": test}
    sources = {name: Source(name, found, *steps) for name, found in given.items() if found is not None}
    for source in sources.values():
        _require_map(source)
    fractions = _fractions(sources, val_fraction, test_fraction)
    form = _form(sources["dataset"], sequences, target, seed)
    ids = {name: _group_ids(source, groups) for name, source in sources.items()} if groups else {}
    chosen = split(len(sources["dataset"]), fractions, split_seed, ids.get("dataset"))
    places = {name: ("dataset", indices) for name, indices in chosen.items()}
    places |= {name: (name, list(range(len(source)))) for name, source in sources.items() if name != "dataset"}
    names = _classes(dataset)
    if form.is_classified and names and outputs not in (None, len(names)):
        raise ConfigError(f"outputs: got {outputs}, and the dataset has names of {len(names)} classes")
    known = form.targets[-1] if not form.is_classified else outputs or (len(names) if names else None)
    samples: dict[str, Any] = {
        name: Indexed(sources[origin], indices, form, seed, known) for name, (origin, indices) in places.items()
    }
    if in_memory:
        samples = {name: Stored.read(each) for name, each in samples.items()}
    if scale is not None:
        inputs_at = form.axes[0] + 1
        fitted = scaling.fit(scale, inputs_of(samples["train"], batch_size), inputs_at)
        samples = {name: each.scaled(fitted) for name, each in samples.items()}
    description = Description(
        inputs=form.inputs[int(sequences) :],
        outputs=_outputs(samples, known, outputs),
        target=form.kind,
        sequences=sequences,
        num_steps=form.inputs[0] if sequences else None,
        classes=names if form.is_classified else None,
        groups={name: [ids[origin][index] for index in indices] for name, (origin, indices) in places.items()}
        if groups
        else None,
    )
    return DataModule(
        samples["train"],
        samples["test"],
        val=samples.get("val"),
        description=description,
        batch_size=batch_size,
        drop_last=drop_last,
        num_workers=num_workers,
        seed=seed,
    )


def _as_list(key: str, transform: Any) -> list[Any]:
    found = [] if transform is None else [*transform] if isinstance(transform, (list, tuple)) else [transform]
    for each in found:
        if not callable(each):
            raise ConfigError(f"{key}: got a {type(each).__name__}, must be a function of a sample")
    return found


def _require_map(source: Source) -> None:
    """Refuse what is no map-style dataset, or has no samples."""
    kind = type(source.dataset)
    if isinstance(source.dataset, IterableDataset) or not (hasattr(kind, "__len__") and hasattr(kind, "__getitem__")):
        raise ConfigError(f"{source.name}: got a {kind.__name__}, must have a length and a sample for each index")
    with user_parts.running("data"):
        length = len(source)
    if not length:
        raise DataError(f"data: {source.name} has no samples")


def _fractions(
    sources: Mapping[str, Source], val_fraction: float | None, test_fraction: float | None
) -> dict[str, float]:
    """By split, the test first, which then stays the same whatever is set aside for validation."""
    if test_fraction is None and "test" not in sources:
        test_fraction = TEST_FRACTION
    fractions = {"test": test_fraction, "val": val_fraction}
    for name, fraction in fractions.items():
        if fraction and name in sources:
            raise ConfigError(f"{name}_fraction: got {fraction:g} beside data.{name}; give one of them")
    if not test_fraction and "test" not in sources:
        raise ConfigError("test_fraction: got 0, and every run needs a test split; use data.test")
    return {name: fraction for name, fraction in fractions.items() if fraction}


def _form(source: Source, sequences: bool, target: Target | None, seed: int) -> Form:
    """What the first sample has, which is the same each time that it is read."""
    with user_parts.running("data"), restored(cpu_random_states()):
        seed_generators(seed)
        x, _ = source.raw(0)
        if is_image(x):
            raise ConfigError(f"transform: the inputs are images of PIL, must be tensors; use {TO_TENSOR}")
        seed_generators(seed)
        first = source.read(0)
        # what a dataset draws from a generator of its own depends on what was read before
        source.read(len(source) - 1)
        seed_generators(seed)
        again = source.read(0)
    if not all(torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)) for a, b in zip(first, again, strict=True)):
        raise source.error(
            0, "is not the same when it is read twice; draw from the global generators of torch, NumPy or random"
        )
    return Form.of(*first, sequences=sequences, kind=target)


def _group_ids(source: Source, name: str) -> list[Any]:
    """The ids of the groups of all samples.

    Raises:
        ConfigError: the dataset has no such attribute, or not one id per sample.
    """
    found: Any = getattr(source.dataset, name, None)
    found = found.tolist() if hasattr(found, "tolist") else found
    ids: list[Any] | None = [*found] if isinstance(found, Sequence) else None
    if ids is None:
        raise ConfigError(f"groups: got {name}, and {source.name} has no such attribute with one id for each sample")
    if len(ids) != len(source):
        raise ConfigError(f"groups: got {name}, and {source.name} has {len(ids)} of them for {len(source)} samples")
    return ids


def _classes(dataset: Any) -> list[str] | None:
    """The names of classes, under the name that datasets of torchvision have for them."""
    found = getattr(dataset, "classes", None)
    if not isinstance(found, (list, tuple)) or not found or not all(isinstance(name, str) for name in found):
        return None
    return list(found)


def _outputs(samples: Mapping[str, Any], known: int | None, outputs: int | None) -> int:
    """How many classes or features there are.

    Raises:
        ConfigError: that is not known, or contradicts what was given.
    """
    if known is None:
        stored = [each for each in samples.values() if isinstance(each, Stored)]
        if not stored:
            raise ConfigError(
                "outputs: the number of classes is not known before all samples are read; "
                "set it, give the dataset a list of names as its attribute classes, or use data.in_memory=true"
            )
        return 1 + max(int(each.targets.max()) for each in stored)
    if outputs is not None and outputs != known:
        raise ConfigError(f"outputs: got {outputs}, and targets have {known} features")
    return known
