"""MNIST: 70,000 handwritten digits, 28 x 28 pixels with 8 bits (LeCun, Cortes and Burges, 1998)."""

import functools
import hashlib
import warnings
from copy import copy
from pathlib import Path

import torch
from torch import Tensor

from snnexp.data.module import DataModule
from snnexp.errors import ConfigError, DataError
from snnexp.spec.annotations import Count, Index, Positive, Seed, Stackable, Workers
from snnexp.spec.checked import checked
from snnexp.spec.parts import part

SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
"""Checksums of the four files in ``<root>/MNIST/raw/``, the layout of torchvision."""


class MNIST:
    """Digits in memory; ``mnist[indices]`` is a batch ``[B, 1, 28, 28]`` of (x / 255 - mean) / std, and labels ``[B]``.

    Args:
        root: folder that contains ``MNIST/raw/``.
        train: load the 60,000 training images if true, the 10,000 test images if false.
        mean: mean that is subtracted from each pixel.
        std: standard deviation by which each pixel is divided.
        download: download missing files with torchvision.

    Raises:
        DataError: a file is missing or does not match its checksum.
    """

    inputs = (1, 28, 28)
    classes = 10

    @checked
    def __init__(
        self, root: str | Path, train: bool = True, mean: float = 0.0, std: Positive = 1.0, download: bool = False
    ) -> None:
        prefix = "train" if train else "t10k"
        folder = raw_folder(root, download)
        # skip the headers of 16 and 8 bytes; the checksums verify the content
        self.images = _read(folder / f"{prefix}-images-idx3-ubyte")[16:].view(-1, *self.inputs)
        self.labels = _read(folder / f"{prefix}-labels-idx1-ubyte")[8:].long()
        self.mean, self.std = mean, std

    @property
    def limits(self) -> tuple[float, float]:
        """The lowest and the highest value of a pixel."""
        return (0 - self.mean) / self.std, (1 - self.mean) / self.std

    @property
    def targets(self) -> Tensor:
        """The labels of all images."""
        return self.labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: int | list[int] | Tensor) -> tuple[Tensor, Tensor]:
        images = self.images[indices].to(torch.get_default_dtype()).div_(255)
        if (self.mean, self.std) != (0, 1):
            images.sub_(self.mean).div_(self.std)
        return images, self.labels[indices]

    def split(self, size: int, seed: int) -> "tuple[MNIST, MNIST]":
        """Split off ``size`` random samples; return the remaining samples and the random ones."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self._subset(order[size:].sort().values), self._subset(order[:size].sort().values)

    def to(self, device: torch.device) -> "MNIST":
        """Return a copy on a device."""
        return self._with(self.images.to(device), self.labels.to(device))

    def _subset(self, indices: Tensor) -> "MNIST":
        return self._with(self.images[indices], self.labels[indices])

    def _with(self, images: Tensor, labels: Tensor) -> "MNIST":
        other = copy(self)
        other.images, other.labels = images, labels
        return other


@part(target="labels", sequences=False, inputs=(1, 28, 28), outputs=10, samples=60_000, stackable=True)
@checked
def mnist_data(
    root: str,
    download: bool = False,
    mean: float = 0.0,
    std: Positive = 1.0,
    val_size: Index = 0,
    batch_size: Count = 128,
    drop_last: bool = True,
    num_workers: Workers = 0,
    seed: Stackable[Seed] = 0,
) -> DataModule:
    """Make the data module of MNIST; ``val_size`` random training images, drawn with ``seed``, are for validation."""
    train = MNIST(root, train=True, mean=mean, std=std, download=download)
    if val_size >= len(train):
        raise ConfigError(f"val_size: got {val_size}, must be less than the {len(train)} training samples")
    val = None
    if val_size:
        train, val = train.split(val_size, seed)
    return DataModule(
        train,
        MNIST(root, train=False, mean=mean, std=std),
        inputs=MNIST.inputs,
        outputs=MNIST.classes,
        target="labels",
        val=val,
        batch_size=batch_size,
        drop_last=drop_last,
        num_workers=num_workers,
        seed=seed,
    )


def raw_folder(root: str | Path, download: bool = False) -> Path:
    """Return the folder of the four files; download missing ones if ``download``.

    Raises:
        DataError: a file is missing.
    """
    folder = Path(root).expanduser() / "MNIST" / "raw"
    missing = [name for name in SHA256 if not (folder / name).is_file()]
    if missing and download:
        _download(root)
        missing = [name for name in SHA256 if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"MNIST is missing: no {missing[0]} in {folder.absolute()}; "
            "set SNNEXP_DATA_DIR or data.root to the folder above MNIST/raw, or pass data.download=true"
        )
    return folder


def _download(root: str | Path) -> None:
    from torchvision import datasets

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            datasets.MNIST(str(root), download=True)
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise DataError(
            f"MNIST could not be downloaded into {Path(root).absolute()}: {reason}; "
            "place the four files of MNIST in its subfolder MNIST/raw"
        ) from error


def _read(path: Path) -> Tensor:
    try:
        status = path.stat()
        content = _read_verified(
            path.absolute(), (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        )
    except OSError as error:
        raise DataError(f"MNIST cannot be read: {path.absolute()}: {error.strerror}") from error
    # copy on write: the cached tensor is shared by all runs of the process
    return content._lazy_clone()


@functools.lru_cache(maxsize=len(SHA256))
def _read_verified(path: Path, signature: tuple[int, ...]) -> Tensor:
    """Read a file and verify its checksum; cached until the file changes."""
    content = torch.empty(path.stat().st_size, dtype=torch.uint8)
    with path.open("rb") as file:
        length = file.readinto(content.numpy().data)
    if hashlib.sha256(content.numpy().data).hexdigest() != SHA256[path.name]:
        raise DataError(
            f"MNIST is damaged: {path.absolute()} has {length} bytes and does not match the published checksum; "
            "delete it and pass data.download=true, or copy it again"
        )
    return content
