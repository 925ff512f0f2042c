"""Image classification datasets of torchvision."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snnexp import files
from snnexp.data.module import DataModule
from snnexp.data.prepare import prepared
from snnexp.data.sources import ArrayDataset, Source
from snnexp.errors import ConfigError, DataError
from snnexp.spec.annotations import Object
from snnexp.spec.checked import checked
from snnexp.spec.parts import part
from snnexp.text import format_value, one_line, suggest

Splits = Mapping[str, Mapping[str, Any]]


def _split_argument(*, val: str | None = None, train: str = "train", test: str = "test") -> Splits:
    words = {"train": train, "val": val, "test": test}
    return {split: {"split": word} for split, word in words.items() if word is not None}


TRAIN_FLAG: Splits = {"train": {"train": True}, "test": {"train": False}}
NO_SPLITS: Splits = {"train": {}}
"""Arguments of a dataset without predefined splits."""
SETS: dict[str, Splits] = {
    **dict.fromkeys(("CIFAR10", "CIFAR100", "EMNIST", "FashionMNIST", "KMNIST", "MNIST", "QMNIST", "USPS"), TRAIN_FLAG),
    **dict.fromkeys(("Food101", "GTSRB", "STL10", "StanfordCars", "SVHN"), _split_argument()),
    **dict.fromkeys(("DTD", "FGVCAircraft", "Flowers102", "PCAM", "RenderedSST2"), _split_argument(val="val")),
    "Country211": _split_argument(val="valid"),
    "OxfordIIITPet": _split_argument(train="trainval"),
    **dict.fromkeys(("ImageNet", "Imagenette"), _split_argument(test="val")),
    "Places365": _split_argument(train="train-standard", test="val"),
    **dict.fromkeys(("Caltech101", "Caltech256", "EuroSAT", "SEMEION", "SUN397"), NO_SPLITS),
}
"""Arguments that select each split, by dataset."""
NOT_DOWNLOADABLE = ("ImageNet", "StanfordCars")
"""Datasets that torchvision cannot download."""


@part(target="labels", sequences=False, validation=("val_fraction",), splits_in_file=True, stackable=True)
@checked
def torchvision_data(
    root: str,
    name: str | None = None,
    variant: str | None = None,
    download: bool = False,
    transform: Object | Sequence[Object] | None = None,
    **options: Any,
) -> DataModule:
    """Make a data module from a torchvision dataset with its splits: images ``[C, H, W]`` from 0 to 1.

    A dataset without predefined splits is split by fractions. torchvision verifies checksums, if it knows them.

    Args:
        root: folder that contains the folder of the dataset.
        name: name of the dataset, such as FashionMNIST, KMNIST or CIFAR10.
        variant: split of EMNIST, such as letters or balanced.
        download: download missing files with torchvision.
        transform: transform of the PIL images, one or a list; null to convert them to tensors.
        options: see :func:`~snnexp.data.prepare.prepared`.

    Raises:
        ConfigError: there is no such dataset, or torchvision cannot download it.
        DataError: its files are missing or damaged.
    """
    if name not in SETS:
        raise ConfigError(f"name: got {format_value(name)}, {suggest(str(name), sorted(SETS))}")
    # importing torchvision is slow
    from torchvision import datasets

    if (name == "EMNIST") != (variant is not None):
        known = ", ".join(datasets.EMNIST.splits)
        must = f"must be one of {known}" if name == "EMNIST" else "must be null; only EMNIST has variants"
        raise ConfigError(f"variant: got {format_value(variant)}, {must}")
    if download and name in NOT_DOWNLOADABLE:
        raise ConfigError(f"download: got true, but torchvision cannot download {name}")
    more = {} if variant is None else {"split": variant}
    folder = files.absolute(root)
    sources = {}
    for split, arguments in SETS[name].items():
        loaded = _load(name, folder, {**arguments, **more}, download)
        dataset = loaded if transform is not None else _with_tensors(loaded)
        signature = _signature(loaded, folder)
        sources[split] = Source(f"{name} {split}", dataset, key=signature and (name, variant, split, signature))
    return prepared(sources, target="labels", sequences=False, transform=transform, **options)


def _load(name: str, root: Path, arguments: Mapping[str, Any], download: bool) -> Any:
    from torchvision import datasets

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = getattr(datasets, name)(str(root), **arguments, **({"download": True} if download else {}))
    except ModuleNotFoundError as error:
        raise ConfigError(f"name: {name} needs the package {error.name}") from error
    except (OSError, RuntimeError, ValueError, TypeError, LookupError, EOFError, AssertionError) as error:
        reason = one_line(str(error)).partition(". ")[0].removesuffix(".") or "its files have another format"
        if download:
            raise DataError(f"data: {name} could not be downloaded into {root}: {reason}") from error
        hint = "set data.root to the folder above it"
        if name not in NOT_DOWNLOADABLE:
            hint += ", or pass data.download=true"
        raise DataError(f"data: {name} cannot be read below {root}: {reason}; {hint}") from error
    labels = getattr(dataset, "targets", getattr(dataset, "labels", None))
    if labels is not None and len(labels) != len(dataset):
        raise DataError(f"data: {name} below {root} has {len(dataset)} images and {len(labels)} labels in a split")
    return dataset


def _signature(dataset: Any, root: Path) -> tuple[Any, ...] | None:
    """Return a signature of the dataset's files that changes with them, or None if their folder is unknown."""
    inside = getattr(dataset, "base_folder", None)
    folder = getattr(dataset, "raw_folder", inside and root / inside)
    if folder is None:
        return None
    status = [(str(path), path.stat()) for path in sorted(Path(folder).rglob("*"))]
    return tuple((path, each.st_ino, each.st_size, each.st_mtime_ns) for path, each in status)


def image_tensor(image: Any) -> Tensor:
    """Convert a PIL image to ``[C, H, W]`` from 0 to 1."""
    from torchvision.transforms.v2 import functional

    pixels: Tensor = functional.pil_to_tensor(image)
    return pixels.to(torch.get_default_dtype()) / 255


def _with_tensors(dataset: Any) -> Any:
    """Return the samples with tensors for images, as an :class:`ArrayDataset` if the dataset is in memory."""
    samples = _ImageSamples(dataset)
    pixels = _in_memory(dataset)
    labels = samples.targets
    if pixels is None or labels is None or not all(torch.equal(samples[at][0], pixels[[at]][0]) for at in (0, -1)):
        return samples
    return ArrayDataset(pixels, labels, samples.classes)


class _ImageSamples:
    """The samples of a dataset, with tensors for images."""

    target_transform = None

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.classes = getattr(dataset, "classes", None)
        targets = getattr(dataset, "targets", getattr(dataset, "labels", None))
        array = np.asarray(targets) if targets is not None else np.zeros(())
        self.targets = array.astype(np.int64) if array.shape == (len(dataset),) and array.dtype.kind in "iu" else None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.dataset[index if index >= 0 else len(self) + index]
        return image_tensor(image), int(label)


class _Pixels:
    """8-bit images in memory; ``pixels[indices]`` is ``[B, C, H, W]`` from 0 to 1."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __getitem__(self, indices: Sequence[int]) -> Tensor:
        return self.images[indices].to(torch.get_default_dtype()) / 255


def _in_memory(dataset: Any) -> _Pixels | None:
    """Return the images of a dataset if they are 8-bit and in memory."""
    data = getattr(dataset, "data", None)
    if isinstance(data, np.ndarray):
        data = torch.from_numpy(data) if data.dtype == np.uint8 else None
    if (
        not isinstance(data, Tensor)
        or data.dtype != torch.uint8
        or data.ndim not in (3, 4)
        or len(data) != len(dataset)
    ):
        return None
    if data.ndim == 3:
        return _Pixels(data.unsqueeze(1))
    return _Pixels(data if data.shape[1] in (1, 3) else data.permute(0, 3, 1, 2))
