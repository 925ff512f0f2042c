"""Read arrays from npz, pt, mat and h5 files, and from folders of npy files. Nothing is unpickled.

Arrays are memory-mapped or read lazily where the format allows. PyTorch is imported only for its own files.
"""

import functools
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from snnexp.errors import ConfigError, DataError
from snnexp.text import format_value, suggest

NDArray = np.ndarray[Any, Any]
DTYPE_KINDS = "biufUS"
"""NumPy kinds of the supported dtypes: numbers and text."""
MAX_FLOAT_BYTES = 8
"""Size of the largest float that PyTorch supports."""
SUFFIXES = (".npz", ".pt", ".pth", ".mat", ".h5", ".hdf5")
HINTS = {
    ".csv": "use data=csv",
    ".npy": "it contains a single array; use the folder of inputs.npy and labels.npy",
    ".pkl": "a pickle may run code and is not read; save its arrays as npz",
    ".pickle": "a pickle may run code and is not read; save its arrays as npz",
}


class Array:
    """An array in a file, read on demand.

    Args:
        shape: shape of the array.
        dtype: dtype of the array.
        open_: returns the array, or an object that reads parts of it from disk when indexed.
        mapped: True if indexing reads only the requested samples from disk.
    """

    def __init__(self, shape: tuple[int, ...], dtype: Any, open_: Callable[[], Any], mapped: bool) -> None:
        self.shape, self.dtype, self.mapped = tuple(shape), np.dtype(dtype), mapped
        self._open = open_

    def __getitem__(self, indices: Any) -> NDArray:
        """Return the samples with these indices along the first axis."""
        return _native(np.asarray(self._open()[indices]))

    def load(self) -> NDArray:
        """Return the whole array."""
        return _native(np.asarray(self._open()[...]))

    @classmethod
    def of(cls, array: NDArray) -> "Array":
        """Wrap an array in memory, or a memory map."""
        return cls(array.shape, array.dtype, lambda: array, True)


def _native(array: NDArray) -> NDArray:
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def open_arrays(path: Path, key: str = "path") -> dict[str, Array]:
    """Return the arrays of a file by name, or those of the npy files in a folder by file stem.

    Args:
        path: the file or folder.
        key: its key in the config, for messages.

    Raises:
        ConfigError: the suffix is not supported, or the package that reads the format is not installed.
        DataError: the file is missing or corrupt.
    """
    if path.is_dir():
        return _folder(path)
    if path.suffix.lower() not in SUFFIXES:
        *others, last = SUFFIXES
        hint = HINTS.get(path.suffix.lower())
        why = f"; {hint}" if hint else ""
        raise ConfigError(f"{key}: got {format_value(path.name)}, must end in {', '.join(others)} or {last}{why}")
    require_file(path)
    with _read_errors(path):
        if path.suffix.lower() == ".npz":
            return _npz(path)
        if path.suffix.lower() in (".pt", ".pth"):
            return _pt(path)
        if path.suffix.lower() == ".mat" and not _starts_with(path, b"MATLAB 7.3"):
            return _mat(path)
        return _h5(path, key, path.suffix.lower() == ".mat")


def get_array(arrays: Mapping[str, Array], path: Path, key: str, name: str) -> Array:
    """Return the array of that name.

    Args:
        arrays: the arrays of the file.
        path: the file.
        key: key in the config that names the array, for messages.
        name: name of the array.

    Raises:
        DataError: there is no such array, or it contains neither numbers nor text.
    """
    if name not in arrays:
        has = ", ".join(map(_describe, arrays.items())) or "nothing"
        hint = f"set data.{key} to one of its arrays: {has}" if any(arrays) else f"it has one without a name: {has}"
        raise DataError(f"data: {path.name} has no array {format_value(name)}; {hint}")
    array = arrays[name]
    if not array.shape:
        raise DataError(f"data: {path.name} has a single value in {format_value(name)}, must be one for each sample")
    if array.dtype.kind not in DTYPE_KINDS or (array.dtype.kind == "f" and array.dtype.itemsize > MAX_FLOAT_BYTES):
        what = "Python objects" if array.dtype.kind == "O" else f"{array.dtype}"
        raise DataError(f"data: {path} has {what} in {format_value(name)}, must be numbers or text")
    return array


def _describe(item: tuple[str, Array]) -> str:
    name, array = item
    return f"{name} {[*array.shape]} {array.dtype}".strip()


def require_file(path: Path) -> None:
    """Check that ``path`` is a file and not empty.

    Raises:
        DataError: it is not.
    """
    if not path.exists():
        others = (
            [each.name for each in path.parent.glob("*") if each.suffix == path.suffix] if path.parent.is_dir() else []
        )
        hint = f"; {suggest(path.name, others)}" if others else ""
        raise DataError(f"data: there is no file {path}{hint}")
    if path.is_dir():
        raise DataError(f"data: {path} is a folder, must be a file")
    if not path.stat().st_size:
        raise DataError(f"data: {path} is empty, 0 bytes")


@contextmanager
def _read_errors(path: Path) -> Iterator[None]:
    """Convert the errors of libraries that read ``path`` to :class:`DataError`."""
    try:
        yield
    except (ConfigError, DataError, MemoryError):
        raise
    except PermissionError as error:
        raise DataError(f"data: {path} cannot be read: {os.strerror(error.errno or 0)}") from error
    except Exception as error:
        raise DataError(f"data: {path} is damaged, or not a {path.suffix} file") from error


def _starts_with(path: Path, prefix: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(prefix)) == prefix


def absolute(path: str | Path) -> Path:
    """Return the absolute path; a ``~`` that cannot be expanded is kept."""
    return Path(os.path.expanduser(path)).absolute()


def signature(path: Path) -> tuple[Any, ...]:
    """Return a value that changes whenever the file, or an npy file in the folder, changes."""
    files = sorted(path.glob("*.npy")) if path.is_dir() else [path]
    status = [(str(file), file.stat()) for file in files]
    return tuple((name, each.st_ino, each.st_size, each.st_mtime_ns, each.st_ctime_ns) for name, each in status)


def _folder(path: Path) -> dict[str, Array]:
    arrays = {}
    for file in sorted(path.glob("*.npy")):
        require_file(file)
        with _read_errors(file):
            arrays[file.stem] = Array.of(np.load(file, mmap_mode="r", allow_pickle=False))
    if not arrays:
        raise DataError(f"data: the folder {path} has no npy files; for a folder of images use data=folder")
    return arrays


def _npz(path: Path) -> dict[str, Array]:
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.filename.endswith(".npy"):
                arrays[member.filename.removesuffix(".npy")] = _member(path, archive, member)
    return arrays


def _member(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Array:
    with archive.open(member) as file:
        version = npy.read_magic(file)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, is_fortran, dtype = read_header(file)
        header = file.tell()
    name = member.filename.removesuffix(".npy")
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if dtype.hasobject or member.compress_type != zipfile.ZIP_STORED or not size:
        return Array(shape, dtype, partial(_load, path, name), False)
    if header + size != member.file_size:
        raise DataError(
            f"data: {path} is damaged: {format_value(name)} has {member.file_size - header} bytes instead of {size}"
        )
    with path.open("rb") as file:
        # name and extra field of the local header may differ in length from those in the central directory
        file.seek(member.header_offset + 26)
        lengths = np.frombuffer(file.read(4), "<u2")
    offset = member.header_offset + 30 + int(lengths.sum()) + header
    return Array.of(np.memmap(path, dtype, "r", offset, shape, "F" if is_fortran else "C"))


def _load(path: Path, name: str) -> NDArray:
    with _read_errors(path), np.load(path, allow_pickle=False) as archive:
        array: NDArray = archive[name]
        return array


def _pt(path: Path) -> dict[str, Array]:
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:
        if "weights_only" not in str(error) and "Weights only" not in str(error):
            raise
        raise DataError(
            f"data: {path} contains objects other than tensors, which may run code, so it is not read"
        ) from error
    tensors = content if isinstance(content, dict) else {"": content}
    dense = {
        name: each.detach()
        for name, each in tensors.items()
        if isinstance(name, str) and isinstance(each, torch.Tensor) and each.layout == torch.strided
    }
    if not dense:
        raise DataError(f"data: {path} must contain a tensor, or a mapping from names to tensors")
    # NumPy lacks these dtypes
    low_precision = (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
    converted = {name: each.float() if each.dtype in low_precision else each for name, each in dense.items()}
    return {name: Array.of(each.numpy()) for name, each in converted.items()}


def _mat(path: Path) -> dict[str, Array]:
    from scipy import io

    kinds = {
        "double": "f8",
        "single": "f4",
        "logical": "?",
        "char": "U1",
        **dict.fromkeys(("cell", "struct", "sparse"), "O"),
    }

    @functools.cache
    def load(name: str) -> NDArray:
        with _read_errors(path):
            array: NDArray = io.loadmat(path, variable_names=[name])[name]
        if array.dtype.kind not in DTYPE_KINDS:
            raise DataError(f"data: {path.name} has {array.dtype} in {format_value(name)}, must be numbers or text")
        return array

    return {
        name: Array(shape, kinds.get(kind, kind), partial(load, name), False)
        for name, shape, kind in io.whosmat(path)
        if not name.startswith("__")
    }


class _HDF5Dataset:
    """A dataset of an HDF5 file, which each process opens separately."""

    def __init__(self, path: Path, name: str, reversed_: bool) -> None:
        self.path, self.name, self.reversed = path, name, reversed_
        self.opened: tuple[int, Any] | None = None

    def __call__(self) -> "_HDF5Dataset":
        return self

    def __reduce__(self) -> Any:
        return _HDF5Dataset, (self.path, self.name, self.reversed)

    def __getitem__(self, indices: Any) -> NDArray:
        import h5py

        if self.opened is None or self.opened[0] != os.getpid():
            self.opened = os.getpid(), h5py.File(self.path, "r")
        dataset = self.opened[1][self.name]
        if h5py.check_string_dtype(dataset.dtype):
            dataset = dataset.asstr()
        if indices is ... or self.reversed:
            whole = np.asarray(dataset[...])
            whole = whole.astype(str) if whole.dtype.kind == "O" else whole
            # MATLAB stores the axes in reverse order
            return whole.T[indices] if self.reversed else whole
        # h5py needs ascending indices without repeats
        order, inverse = np.unique(np.asarray(indices), return_inverse=True)
        samples: NDArray = np.asarray(dataset[order])[inverse]
        return samples.astype(str) if samples.dtype.kind == "O" else samples


def _h5(path: Path, key: str, is_matlab: bool) -> dict[str, Array]:
    try:
        import h5py
    except ImportError as error:
        need = "is an HDF5 file, which needs the package h5py; pip install 'snnexp[events]'"
        raise ConfigError(f"{key}: {format_value(path.name)} {need}") from error
    arrays: dict[str, Array] = {}

    def visit(name: str, item: Any) -> None:
        # MATLAB stores the elements of cells in #refs#, and text as numbers
        if isinstance(item, h5py.Dataset) and not name.startswith("#refs#"):
            if item.attrs.get("MATLAB_class") == b"char":
                return
            dtype = "U1" if h5py.check_string_dtype(item.dtype) else item.dtype
            shape = item.shape[::-1] if is_matlab else item.shape
            arrays[name] = Array(shape, dtype, _HDF5Dataset(path, name, is_matlab), not is_matlab)

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return arrays
