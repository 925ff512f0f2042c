"""Folders of images by class, or of npz files with a sample each, as the data of a run."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from snnexp import files
from snnexp.data.description import Target
from snnexp.data.module import DataModule
from snnexp.data.prepare import files_of, prepared
from snnexp.data.sources import Source
from snnexp.errors import ConfigError, DataError
from snnexp.spec.annotations import Count, Given, InFile
from snnexp.spec.checked import checked
from snnexp.spec.parts import part
from snnexp.text import format_value, one_line, suggest

if TYPE_CHECKING:
    from PIL import Image

GREY = ("1", "L", "LA")
DEEP = ("I", "F")
"""Modes of images, which begin so, with more than 8 bits for a pixel."""
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
    """The data module of a folder, with a folder of images or npz files for each class, or npz files beside each other.

    A folder ``path`` with folders train and test, and perhaps val, has the splits in these. Images are ``[C, H, W]``
    from 0 to 1. An npz file holds the inputs of a sample, ``[F]``, ``[T, C]``, ``[C, H, W]`` or ``[T, C, H, W]``, and
    without folders for classes its target too.

    Args:
        path: the folder of all samples.
        train: the folder of the training samples, in place of ``path``.
        val: the folder of the validation samples.
        test: the folder of the test samples.
        size: of images, height and width, or one number for both; null for images of one size.
        grey: whether images have one channel and not three; null as the first image has it.
        x: the name of the inputs in npz files.
        y: the name of the target.
        target: what targets are; null to tell it from their number type and axes.
        sequences: whether inputs begin with time; null where they have two axes or four.
        options: as of :func:`~snnexp.data.prepare.prepared`.

    Raises:
        ConfigError: the arguments contradict each other or the samples.
        DataError: a folder is missing or empty, or a file is damaged.
    """
    if isinstance(size, Sequence) and len(size) != 2:
        raise ConfigError(f"size: got {len(size)} numbers, must be height and width, or one number for both")
    given = files_of(path, train, val, test)
    folders = {split: _folder(Path(name)) for split, (_, name) in given.items()}
    if (inside := _inside(folders["train"])) and train is None:
        if len(folders) > 1:
            raise ConfigError(f"path: {format_value(path)} has folders for its splits, and others are given")
        folders = inside
    classes = _classes(folders["train"])
    found = {split: _Files(folder, classes) for split, folder in folders.items()}
    read = found["train"].reader(size, grey, x, y)
    sources = {split: each.source(read, (str(size), grey, x, y)) for split, each in found.items()}
    return prepared(sources, target=target, sequences=sequences, **options)


def _folder(path: Path) -> Path:
    path = files.absolute(path)
    if not path.is_dir():
        near = [each.name for each in _folders(path.parent)] if path.parent.is_dir() else []
        hint = f"; {suggest(path.name, near)}" if near else ""
        what = "is no folder" if path.exists() else "is not there"
        raise DataError(f"data: the folder {path} {what}{hint}")
    return path


def _folders(path: Path) -> list[Path]:
    return sorted(each for each in path.iterdir() if each.is_dir() and not each.name.startswith("."))


def _inside(path: Path) -> dict[str, Path]:
    """The folders of splits in a folder, where there are some."""
    found = {each.name: each for each in _folders(path) if each.name in SPLITS}
    return found if {"train"} < found.keys() else {}


def _classes(path: Path) -> list[str]:
    return [each.name for each in _folders(path)]


class _Files:
    """The files of a split, in the order of their names.

    Args:
        folder: of the split.
        classes: the folders in that of the training split; none where files are beside each other.
    """

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        self.folder, self.classes = folder, [*classes]
        if classes and (others := [name for name in _classes(folder) if name not in classes]):
            raise DataError(
                f"data: {folder} has a class {format_value(others[0])}, and the training split has none of it"
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
            raise DataError(f"data: {beside[0]} is beside the folders of classes, must be in one of them")
        if not classes:
            self.paths = self._samples(folder)
        if not self.paths:
            raise DataError(f"data: the folder {folder} has no images by class and no npz files")
        self.are_images = self.paths[0].suffix.lower() != ".npz"
        if any((path.suffix.lower() != ".npz") != self.are_images for path in self.paths):
            raise DataError(f"data: the folder {folder} has images and npz files, must be one of them")
        if self.are_images and not classes:
            raise DataError(f"data: the images in {folder} must be in a folder for each class")

    def _samples(self, folder: Path) -> list[Path]:
        # which takes a while, here as below
        from torchvision.datasets.folder import IMG_EXTENSIONS

        known = (*IMG_EXTENSIONS, ".npz")
        return sorted(
            path
            for path in folder.rglob("*")
            if path.suffix.lower() in known and not any(name.startswith(".") for name in path.relative_to(folder).parts)
        )

    def reader(self, size: int | Sequence[int] | None, grey: bool | None, x: str, y: str) -> "Callable[[Path], Any]":
        """What reads a file: as the first of the training split is."""
        if not self.are_images:
            return _Npz(x, None if self.classes else y)
        with _opened(self.paths[0]) as image:
            wanted = (image.height, image.width)
            found = image.mode in GREY if grey is None else grey
        return _Images(found, grey is None, wanted, (size, size) if isinstance(size, int) else size)

    def source(self, read: "Callable[[Path], Any]", settings: tuple[Any, ...]) -> Source:
        dataset = FileDataset(self.paths, self.targets, self.classes, read)
        try:
            status = [path.stat() for path in self.paths]
        except OSError as error:
            raise DataError(f"data: {error.filename} cannot be read: {error.strerror}") from error
        key = tuple((str(path), each.st_size, each.st_mtime_ns) for path, each in zip(self.paths, status, strict=True))
        return Source(self.folder.name, dataset, key=(key, settings))


class FileDataset:
    """A sample for each file.

    Args:
        paths: of the files.
        targets: the label of each; none where a file holds its target.
        classes: the names of labels.
        read: a file, to its inputs, or to inputs and target.
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
        found = self.read(self.paths[index])
        return found if self.targets is None else (found, int(self.targets[index]))


def _opened(path: Path) -> "Image.Image":
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(path)
        image.load()
    except Image.DecompressionBombError as error:
        raise DataError(f"data: {path} cannot be read as an image: {one_line(str(error))}") from error
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise DataError(f"data: {path} cannot be read as an image") from error
    if image.mode.startswith(DEEP):
        raise DataError(f"data: {path} has more than 8 bits for a pixel; save its values as npz")
    return image


class _Images:
    """Reads images as ``[C, H, W]`` from 0 to 1.

    Args:
        grey: whether C is 1, else 3.
        alike: whether all images must be grey where the first is.
        first: height and width of the first image, and of all where these are not resized.
        size: to resize to, or None.
    """

    def __init__(self, grey: bool, alike: bool, first: tuple[int, int], size: Sequence[int] | None) -> None:
        self.mode, self.first, self.size = "L" if grey else "RGB", first, size
        self.alike = alike and grey

    def __call__(self, path: Path) -> Tensor:
        from torchvision.transforms.v2 import functional

        with _opened(path) as image:
            if self.alike and image.mode not in GREY:
                raise DataError(f"data: {path} has colours, and the first image is grey; use data.grey=true or false")
            pixels: Tensor = functional.pil_to_tensor(image.convert(self.mode))
        if self.size is not None:
            pixels = functional.resize(pixels, [*self.size], antialias=True)
        elif pixels.shape[1:] != self.first:
            sizes = (
                f"{pixels.shape[1]} x {pixels.shape[2]} pixels, and the first image {self.first[0]} x {self.first[1]}"
            )
            raise DataError(f"data: {path} has {sizes}; use data.size")
        return pixels.to(torch.get_default_dtype()) / 255


class _Npz:
    """Reads inputs from an npz file, and its target where that has a name there."""

    def __init__(self, x: str, y: str | None) -> None:
        self.x, self.y = x, y

    def __call__(self, path: Path) -> Any:
        found = files.open_arrays(path)
        inputs = files.get_array(found, path, "x", self.x).load()
        if self.y is None:
            return inputs
        # a target may be a single value
        return inputs, self._target(found, path)

    def _target(self, found: Mapping[str, files.Array], path: Path) -> Any:
        assert self.y is not None
        array = found.get(self.y)
        return files.get_array(found, path, "y", self.y).load() if array is None or array.shape else array.load()[()]
