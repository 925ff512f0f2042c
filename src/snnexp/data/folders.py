"""Data from folders of images, or of npz files with one sample each."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from snnexp import files
from snnexp.data.description import Target
from snnexp.data.module import DataModule
from snnexp.data.prepare import prepared, split_files
from snnexp.data.sources import Source
from snnexp.errors import ConfigError, DataError
from snnexp.spec.annotations import Count, Given, InFile
from snnexp.spec.checked import checked
from snnexp.spec.parts import part
from snnexp.text import format_value, one_line, suggest

if TYPE_CHECKING:
    from PIL import Image

GRAYSCALE_MODES = ("1", "L", "LA")
DEEP_MODES = ("I", "F")
"""Prefixes of the modes of images with more than 8 bits per pixel."""
SPLITS = ("train", "val", "test")


@part(
    target=Given("target"),
    num_steps=InFile(("path", "train"), "x", "sequences", per_sample=True),
    validation=("val_fraction", "val"),
    splits_in_file=True,
    stackable=True,
)
@checked
def folder_data(
    path: str | None = None,
    train: str | None = None,
    val: str | None = None,
    test: str | None = None,
    size: Count | Sequence[Count] | None = None,
    grey: bool | None = None,
    x: str = "inputs",
    y: str = "labels",
    target: Target | None = None,
    sequences: bool | None = None,
    **options: Any,
) -> DataModule:
    """Make a data module from a folder with one subfolder of images or npz files per class, or with npz files only.

    A folder ``path`` with subfolders train and test, and optionally val, contains the splits. Images are ``[C, H, W]``
    from 0 to 1. An npz file contains the inputs of one sample, ``[F]``, ``[T, C]``, ``[C, H, W]`` or ``[T, C, H, W]``,
    and its target if there are no class folders.

    Args:
        path: folder of all samples.
        train: folder of the training samples, instead of ``path``.
        val: folder of the validation samples.
        test: folder of the test samples.
        size: height and width to which images are resized, or one number for both; null if all have the same size.
        grey: convert images to grayscale if true, to RGB if false; null to use the mode of the first image.
        x: name of the inputs in npz files.
        y: name of the target in npz files.
        target: kind of target; null to infer it from the dtype and the number of axes.
        sequences: whether the first axis of the inputs is time; null to infer true for two or four axes.
        options: see :func:`~snnexp.data.prepare.prepared`.

    Raises:
        ConfigError: the arguments contradict each other or the samples.
        DataError: a folder is missing or empty, or a file is damaged.
    """
    if isinstance(size, Sequence) and len(size) != 2:
        raise ConfigError(f"size: got {len(size)} numbers, must be height and width, or one number for both")
    given = split_files(path, train, val, test)
    folders = {split: _folder(Path(name)) for split, (_, name) in given.items()}
    if (inside := _split_folders(folders["train"])) and train is None:
        if len(folders) > 1:
            raise ConfigError(f"path: {format_value(path)} already contains split folders; remove the other paths")
        folders = inside
    classes = _classes(folders["train"])
    splits = {split: _SplitFolder(folder, classes) for split, folder in folders.items()}
    read = splits["train"].reader(size, grey, x, y)
    sources = {split: each.source(read, (str(size), grey, x, y)) for split, each in splits.items()}
    return prepared(sources, target=target, sequences=sequences, **options)


def _folder(path: Path) -> Path:
    path = files.absolute(path)
    if not path.is_dir():
        near = [each.name for each in _folders(path.parent)] if path.parent.is_dir() else []
        hint = f"; {suggest(path.name, near)}" if near else ""
        what = "is not a folder" if path.exists() else "does not exist"
        raise DataError(f"data: {path} {what}{hint}")
    return path


def _folders(path: Path) -> list[Path]:
    return sorted(each for each in path.iterdir() if each.is_dir() and not each.name.startswith("."))


def _split_folders(path: Path) -> dict[str, Path]:
    """Return the subfolders of splits, or an empty mapping if there is no folder train next to others."""
    splits = {each.name: each for each in _folders(path) if each.name in SPLITS}
    return splits if {"train"} < splits.keys() else {}


def _classes(path: Path) -> list[str]:
    return [each.name for each in _folders(path)]


class _SplitFolder:
    """The files of a split, sorted by name.

    Args:
        folder: folder of the split.
        classes: names of the class folders of the training split; empty without class folders.
    """

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        self.folder, self.classes = folder, [*classes]
        if classes and (others := [name for name in _classes(folder) if name not in classes]):
            raise DataError(
                f"data: {folder} has a class {format_value(others[0])} that the training split does not have"
            )
        self.paths: list[Path] = []
        self.targets: list[int] = []
        for label, name in enumerate(classes):
            paths = self._samples(folder / name) if (folder / name).is_dir() else []
            if not paths and (folder / name).is_dir():
                raise DataError(f"data: the folder {folder / name} has no images and no npz files")
            self.paths += paths
            self.targets += [label] * len(paths)
        beside = [path for path in self._samples(folder) if path.parent == folder] if classes else []
        if beside:
            raise DataError(f"data: {beside[0]} is not in a class folder")
        if not classes:
            self.paths = self._samples(folder)
        if not self.paths:
            raise DataError(f"data: the folder {folder} has no images by class and no npz files")
        self.are_images = self.paths[0].suffix.lower() != ".npz"
        if any((path.suffix.lower() != ".npz") != self.are_images for path in self.paths):
            raise DataError(f"data: the folder {folder} has images and npz files, must have only one kind")
        if self.are_images and not classes:
            raise DataError(f"data: the images in {folder} must be in a folder for each class")

    def _samples(self, folder: Path) -> list[Path]:
        # importing torchvision is slow
        from torchvision.datasets.folder import IMG_EXTENSIONS

        known = (*IMG_EXTENSIONS, ".npz")
        return sorted(
            path
            for path in folder.rglob("*")
            if path.suffix.lower() in known and not any(name.startswith(".") for name in path.relative_to(folder).parts)
        )

    def reader(self, size: int | Sequence[int] | None, grey: bool | None, x: str, y: str) -> "Callable[[Path], Any]":
        """Return the function that reads a file, with the size and mode of the first image as defaults."""
        if not self.are_images:
            return _NpzReader(x, None if self.classes else y)
        with _open_image(self.paths[0]) as image:
            first = (image.height, image.width)
            grayscale = image.mode in GRAYSCALE_MODES if grey is None else grey
        return _ImageReader(grayscale, grey is None, first, (size, size) if isinstance(size, int) else size)

    def source(self, read: "Callable[[Path], Any]", settings: tuple[Any, ...]) -> Source:
        dataset = FileDataset(self.paths, self.targets, self.classes, read)
        try:
            status = [path.stat() for path in self.paths]
        except OSError as error:
            raise DataError(f"data: {error.filename} cannot be read: {error.strerror}") from error
        key = tuple((str(path), each.st_size, each.st_mtime_ns) for path, each in zip(self.paths, status, strict=True))
        return Source(self.folder.name, dataset, key=(key, settings))


class FileDataset:
    """A dataset with one sample per file.

    Args:
        paths: the files.
        targets: label of each file; empty if files contain their targets.
        classes: names of the labels.
        read: reads the inputs of a file, or its inputs and target.
    """

    target_transform = None

    def __init__(
        self, paths: Sequence[Path], targets: Sequence[int], classes: Sequence[str], read: Callable[[Path], Any]
    ) -> None:
        self.paths, self.classes, self.read = paths, classes, read
        self.targets = np.asarray(targets) if targets else None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        content = self.read(self.paths[index])
        return content if self.targets is None else (content, int(self.targets[index]))


def _open_image(path: Path) -> "Image.Image":
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(path)
        image.load()
    except Image.DecompressionBombError as error:
        raise DataError(f"data: {path} cannot be read as an image: {one_line(str(error))}") from error
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise DataError(f"data: {path} cannot be read as an image") from error
    if image.mode.startswith(DEEP_MODES):
        raise DataError(f"data: {path} has more than 8 bits per pixel; save its values as npz")
    return image


class _ImageReader:
    """Reads images as ``[C, H, W]`` from 0 to 1.

    Args:
        grayscale: convert to one channel, otherwise to three.
        strict: raise an error for color images if ``grayscale``.
        first: height and width of the first image, required of all images if ``size`` is None.
        size: height and width to which images are resized.
    """

    def __init__(self, grayscale: bool, strict: bool, first: tuple[int, int], size: Sequence[int] | None) -> None:
        self.mode, self.first, self.size = "L" if grayscale else "RGB", first, size
        self.require_grayscale = strict and grayscale

    def __call__(self, path: Path) -> Tensor:
        from torchvision.transforms.v2 import functional

        with _open_image(path) as image:
            if self.require_grayscale and image.mode not in GRAYSCALE_MODES:
                reason = "is a color image, but the first image is grayscale"
                raise DataError(f"data: {path} {reason}; use data.grey=true or false")
            pixels: Tensor = functional.pil_to_tensor(image.convert(self.mode))
        if self.size is not None:
            pixels = functional.resize(pixels, [*self.size], antialias=True)
        elif pixels.shape[1:] != self.first:
            sizes = (
                f"{pixels.shape[1]} x {pixels.shape[2]} pixels, the first image has {self.first[0]} x {self.first[1]}"
            )
            raise DataError(f"data: {path} has {sizes}; use data.size")
        return pixels.to(torch.get_default_dtype()) / 255


class _NpzReader:
    """Reads the inputs of an npz file, and its target if ``y`` is not None."""

    def __init__(self, x: str, y: str | None) -> None:
        self.x, self.y = x, y

    def __call__(self, path: Path) -> Any:
        arrays = files.open_arrays(path)
        inputs = files.get_array(arrays, path, "x", self.x).load()
        return inputs if self.y is None else (inputs, self._target(arrays, path))

    def _target(self, arrays: Mapping[str, files.Array], path: Path) -> Any:
        assert self.y is not None
        array = arrays.get(self.y)
        # files.get_array rejects scalars, which are valid targets
        return files.get_array(arrays, path, "y", self.y).load() if array is None or array.shape else array.load()[()]
