"""Prepare samples for a run: infer their shapes, split, scale and augment them, and read them into memory."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Interval

from snnexp import limits
from snnexp.config import user_parts
from snnexp.data import scaling, splits
from snnexp.data.description import Description, Target
from snnexp.data.module import DataModule, Sampling
from snnexp.data.reading import (
    AugmentedSamples,
    InMemorySamples,
    LazySamples,
    SampleShapes,
    iterate_inputs,
    seed_generators,
)
from snnexp.data.sources import Source, is_image
from snnexp.errors import ConfigError, DataError
from snnexp.isolation import cpu_random_states, restored
from snnexp.spec.annotations import AtMost, BelowOne, Count, Index, Object, Seed, Stackable, Workers
from snnexp.spec.checked import checked
from snnexp.text import format_value

TEST_FRACTION = 0.2
"""Default of ``test_fraction``."""
MEMORY_SHARE = 0.5
"""Share of the machine's memory up to which samples are read into memory."""
TO_TENSOR = "'data.transform={_target_: torchvision.transforms.ToTensor}'"
_cache: dict[Hashable, "_Prepared"] = {}
"""Cache of the last samples in memory, shared by the members of a stack and the points of a sweep."""


@checked
def prepared(
    sources: Mapping[str, Source],
    val_fraction: BelowOne | None = None,
    test_fraction: Annotated[float, Interval(ge=0, lt=1), AtMost("1 - val_fraction")] | None = None,
    stratify: bool = False,
    fold: Index | None = None,
    folds: Annotated[int, Ge(2)] = 5,
    split_seed: Seed = 0,
    sequences: bool | None = None,
    target: Target | None = None,
    outputs: Count | None = None,
    transform: Object | Sequence[Object] | None = None,
    target_transform: Object | Sequence[Object] | None = None,
    augment: Object | Sequence[Object] | None = None,
    scale: scaling.Method | scaling.Numbers | None = None,
    in_memory: bool | None = None,
    sampling: Sampling = "shuffled",
    batch_size: Count = 128,
    drop_last: bool = False,
    num_workers: Workers = 0,
    seed: Stackable[Seed] = 0,
) -> DataModule:
    """Make a data module from sources.

    Args:
        sources: by split: ``train``, and optionally ``val`` and ``test``; splits by fraction are taken from ``train``.
        val_fraction: fraction of the samples for validation; null for none.
        test_fraction: fraction of the samples for the test; null for 0.2, or for none with data.test.
        stratify: keep the proportions of the classes in each split by fraction or fold.
        fold: index of the test fold in a cross-validation; null for none.
        folds: number of folds.
        split_seed: seed of the splits, independent of the seed of the run.
        sequences: whether the first axis of the inputs is time, ``[T, *N]``; null to infer true for two or four axes.
        target: kind of target; null to infer it from the first sample: an integer is a label, an integer per step is
            step_labels, a float or a vector of floats is values, a matrix is a trace.
        outputs: number of classes; null for the number of class names, or the highest label plus one.
        transform: transform of x, one or a list.
        target_transform: transform of y, one or a list.
        augment: random transform of x in training that keeps its shape, one or a list.
        scale: standard (mean 0 and standard deviation 1) or minmax (0 to 1) for each feature or channel, fitted on the
            training split; or numbers for (x - shift) / scale.
        in_memory: read all samples once; false to read samples per batch, which redraws random ones every epoch; null
            to read all if they fit into half of the memory.
        sampling: shuffled for all samples once per epoch; balanced to draw samples with replacement so that all classes
            are equally frequent on average.
        batch_size: samples per optimizer step.
        drop_last: drop the last batch of an epoch if it is not full.
        num_workers: number of processes that read samples.
        seed: seed of the order of batches, and of random transforms.

    Raises:
        ConfigError: the arguments contradict each other or the samples.
        DataError: a sample is unsupported.
    """
    steps = (_as_list("transform", transform), _as_list("target_transform", target_transform))
    changes = _as_list("augment", augment)
    sources = {name: source.with_transforms(*steps) for name, source in sources.items()}
    for source in sources.values():
        with user_parts.wrap_errors("data"):
            length = len(source)
        if not length:
            raise DataError(f"data: {source.name} has no samples")
    shapes = _infer_shapes(sources["train"], sequences, target, seed)
    known = _known_outputs(sources, shapes, outputs)
    places = _Splitting(val_fraction, test_fraction, stratify, fold, folds, split_seed).places(sources, shapes)
    if shapes.kind == "labels":
        _require_two_classes(sources["train"], places["train"][1])
    if in_memory is None:
        in_memory = sum(map(len, sources.values())) * shapes.bytes < MEMORY_SHARE * limits.memory()

    given = scaling.Scaling.of(scale, shapes.features) if isinstance(scale, Mapping) else None

    def make() -> _Prepared:
        samples: dict[str, Any] = {
            name: LazySamples(sources[origin], indices, shapes, seed, known)
            for name, (origin, indices) in places.items()
        }
        if in_memory:
            samples = {name: InMemorySamples.read(each) for name, each in samples.items()}
        fitted = given
        if isinstance(scale, str):
            fitted = scaling.fit(scale, iterate_inputs(samples["train"]), shapes.axes[0] + 1)
        if fitted is not None:
            # augmented samples are scaled after augmentation
            unscaled = {"train"} if changes else set()
            samples = {name: each if name in unscaled else each.scaled(fitted) for name, each in samples.items()}
        return samples, fitted

    keys = tuple(source.key for source in sources.values())
    chosen = tuple((name, origin, tuple(indices)) for name, (origin, indices) in places.items())
    settings = (shapes, known, given or scale, bool(changes), torch.get_default_dtype())
    # samples that are random or not in memory cannot be shared
    samples, fitted = _cached(None if None in keys or not in_memory else (keys, chosen, settings), make)
    if known is None:
        known = _count_classes(samples)
    if changes:
        samples["train"] = AugmentedSamples(samples["train"], changes, shapes, seed, fitted)
    description = Description(
        inputs=shapes.inputs[int(shapes.sequences) :],
        outputs=known,
        target=shapes.kind,
        sequences=shapes.sequences,
        num_steps=shapes.inputs[0] if shapes.sequences else None,
        classes=sources["train"].classes if shapes.is_classified else None,
        features=getattr(sources["train"].dataset, "features", None),
        groups=_groups(sources, places),
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
        sampling=sampling,
        scaling=fitted,
    )


def split_files(path: str | None, train: str | None, val: str | None, test: str | None) -> dict[str, tuple[str, str]]:
    """Return the argument name and the file of each split; ``train`` is the file of all samples if ``path`` is set.

    Raises:
        ConfigError: not exactly one of ``path`` and ``train`` is set.
    """
    if (path is None) == (train is None):
        got = "neither is set" if path is None else "both are set"
        raise ConfigError(f"path: set either data.path, the file of all samples, or data.train; {got}")
    by_split = {
        "train": ("path", path) if train is None else ("train", train),
        "val": ("val", val),
        "test": ("test", test),
    }
    return {split: (key, file) for split, (key, file) in by_split.items() if file is not None}


def _as_list(key: str, transform: Any) -> list[Any]:
    transforms = [] if transform is None else [*transform] if isinstance(transform, (list, tuple)) else [transform]
    for each in transforms:
        if not callable(each):
            raise ConfigError(f"{key}: got a {type(each).__name__}, must be a function of a sample")
    return transforms


SplitIndices = Mapping[str, tuple[str, list[int]]]
"""By split: the name of the source of its samples, and their indices in it."""


_Prepared = tuple[dict[str, Any], scaling.Scaling | None]
"""Samples by split, and the scaling of their inputs."""


def _cached(key: Hashable, make: Callable[[], _Prepared]) -> _Prepared:
    """Return ``make()``, or its last result if ``key`` is the same and not None."""
    if key is None:
        return make()
    if key not in _cache:
        _cache.clear()
        _cache[key] = make()
    samples, fitted = _cache[key]
    return dict(samples), fitted


@dataclass(frozen=True)
class _Splitting:
    """Split settings; the fields are arguments of :func:`prepared`."""

    val_fraction: float | None
    test_fraction: float | None
    stratify: bool
    fold: int | None
    folds: int
    seed: int

    def places(self, sources: Mapping[str, Source], shapes: SampleShapes) -> SplitIndices:
        whole = sources["train"]
        own = self._by_name(sources) if whole.split is not None else self._at_random(sources, shapes)
        places = {name: ("train", indices) for name, indices in own.items()}
        return places | {name: (name, [*range(len(each))]) for name, each in sources.items() if name != "train"}

    def _by_name(self, sources: Mapping[str, Source]) -> dict[str, list[int]]:
        """Return the splits defined by the samples."""
        others: dict[str, Any] = {"val_fraction": self.val_fraction, "test_fraction": self.test_fraction}
        others |= {"fold": self.fold, "stratify": self.stratify or None}
        others |= {name: source.name for name, source in sources.items() if name != "train"}
        for key, value in others.items():
            if value is not None:
                reason = f"but {sources['train'].name} defines the split of each sample"
                raise ConfigError(f"{key}: got {format_value(value)}, {reason}")
        return splits.from_names(sources["train"].split or ())

    def _at_random(self, sources: Mapping[str, Source], shapes: SampleShapes) -> dict[str, list[int]]:
        whole, labels = sources["train"], None
        if self.val_fraction and "val" in sources:
            raise ConfigError(f"val_fraction: got {self.val_fraction:g}, but data.val is set; use only one")
        if self.stratify:
            if shapes.kind != "labels":
                raise ConfigError(f"stratify: got true, but the targets are {shapes.kind}, not labels")
            labels = _all_labels(whole)
        if self.fold is None:
            return splits.split(len(whole), self._fractions(sources), self.seed, whole.groups, labels)
        for key, value in (("test_fraction", self.test_fraction), ("test", "test" in sources or None)):
            if value is not None:
                raise ConfigError(f"fold: got {self.fold}, but data.{key} is set; the fold is the test split")
        return splits.fold(
            len(whole), self.fold, self.folds, self.val_fraction or None, self.seed, whole.groups, labels
        )

    def _fractions(self, sources: Mapping[str, Source]) -> dict[str, float]:
        """Return the fractions by split; the test comes first, so that it does not depend on the validation split."""
        test_fraction = self.test_fraction
        if test_fraction is None and "test" not in sources:
            test_fraction = TEST_FRACTION
        if test_fraction and "test" in sources:
            raise ConfigError(f"test_fraction: got {test_fraction:g}, but data.test is set; use only one")
        if not test_fraction and "test" not in sources:
            raise ConfigError("test_fraction: got 0, but every run requires a test split; use data.test")
        fractions = {"test": test_fraction, "val": self.val_fraction}
        return {name: fraction for name, fraction in fractions.items() if fraction}


def _all_labels(source: Source) -> list[int]:
    known = source.labels()
    if known is not None:
        return known.tolist()  # type: ignore[no-any-return]
    with user_parts.wrap_errors("data"), restored(cpu_random_states()):
        return [int(source.read(index)[1]) for index in range(len(source))]


def _groups(sources: Mapping[str, Source], places: SplitIndices) -> dict[str, list[Any]] | None:
    if sources["train"].groups is None:
        return None
    for source in sources.values():
        if source.groups is None:
            raise ConfigError(f"groups: the samples of data.{source.name} have no groups, but the others do")
    ids = {name: source.groups or () for name, source in sources.items()}
    return {name: [ids[origin][index] for index in indices] for name, (origin, indices) in places.items()}


def _infer_shapes(source: Source, sequences: bool | None, target: Target | None, seed: int) -> SampleShapes:
    """Infer the shapes from the first sample, which must be the same each time it is read."""
    with user_parts.wrap_errors("data"), restored(cpu_random_states()):
        seed_generators(seed)
        x, _ = source.raw(0)
        if is_image(x):
            raise ConfigError(f"transform: the inputs are PIL images, must be tensors; use {TO_TENSOR}")
        seed_generators(seed)
        first = source.read(0)
        # a dataset with its own generator returns a different sample after this read
        source.read(len(source) - 1)
        seed_generators(seed)
        again = source.read(0)
    if not all(torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)) for a, b in zip(first, again, strict=True)):
        raise source.error(
            0, "differs when it is read twice; use the global random generators of torch, NumPy or random"
        )
    if sequences is None:
        sequences = first[0].ndim in (2, 4)
    return SampleShapes.infer(*first, sequences=sequences, kind=target)


def _known_outputs(sources: Mapping[str, Source], shapes: SampleShapes, outputs: int | None) -> int | None:
    """Return the number of target features or classes, or None if it is unknown before all samples are read.

    Raises:
        ConfigError: it contradicts ``outputs``.
    """
    if not shapes.is_classified:
        if outputs not in (None, shapes.targets[-1]):
            raise ConfigError(f"outputs: got {outputs}, but targets have {shapes.targets[-1]} features")
        return shapes.targets[-1]
    names = sources["train"].classes
    if names and outputs not in (None, len(names)):
        raise ConfigError(f"outputs: got {outputs}, but the dataset has {len(names)} class names")
    outputs = outputs or (len(names) if names else None)
    axes = 1 + len(shapes.targets)
    labels = {name: found for name, source in sources.items() if (found := source.labels(axes)) is not None}
    for name, each in labels.items():
        sources[name].require_labels(torch.tensor(each), range(len(each)), outputs)
    if len(labels) < len(sources) or outputs is not None:
        return outputs
    highest, count = max(int(each.max()) for each in labels.values()), sum(map(len, sources.values()))
    if highest >= max(count, 2):
        reason = f"labels go up to {highest} for {count} samples"
        raise ConfigError(f"target: {reason}; use data.target=values, or set data.outputs")
    return highest + 1


def _require_two_classes(source: Source, indices: Sequence[int]) -> None:
    """Raise an error for a training split with a single class, if labels are known before samples are read."""
    labels = source.labels()
    classes = set() if labels is None else {*labels[indices].tolist()}
    if len(classes) == 1:
        count = f"all {len(indices)} training samples have" if len(indices) > 1 else "the only training sample has"
        raise DataError(f"data: {count} the label {classes.pop()}; there must be at least two classes")


def _count_classes(samples: Mapping[str, Any]) -> int:
    """Return the highest label of the samples in memory plus one."""
    stored = [each for each in samples.values() if isinstance(each, InMemorySamples)]
    if not stored:
        raise ConfigError(
            "outputs: the number of classes is unknown until all samples are read; "
            "set it, add an attribute classes with their names to the dataset, or use data.in_memory=true"
        )
    return max(int(each.targets.max()) for each in stored) + 1
