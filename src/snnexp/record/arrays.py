"""Read and write npz files of numbers and strings; files are not trusted."""

import io
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from snnexp.errors import CheckpointError
from snnexp.record.files import read_regular, write_atomically

MAX_ARRAYS_BYTES, MAX_ARRAYS = 2**26, 2**12
MAX_VALUES = 2**22
"""Maximum number of values in all arrays of a file; a figure takes a few hundred bytes per value."""


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays to an npz file atomically."""
    import numpy as np

    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    if buffer.tell() > MAX_ARRAYS_BYTES:
        raise ValueError(f"{buffer.tell()} bytes, at most {MAX_ARRAYS_BYTES} are allowed")
    write_atomically(path, buffer.getvalue())


def read_arrays(path: Path) -> dict[str, Any]:
    """Return the arrays of an npz file.

    Raises:
        CheckpointError: it is corrupt, or could not be written by :func:`write_arrays`.
    """
    import numpy as np

    content = read_regular(path, at_most=MAX_ARRAYS_BYTES)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            _require_plain(archive, path, len(content))
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, KeyError, MemoryError) as error:
        raise CheckpointError(f"{path}: damaged") from error


def _require_plain(archive: zipfile.ZipFile, path: Path, size: int) -> None:
    """Raise for arrays that take more memory than their file, or that are not numbers or strings."""
    from numpy.lib import format as npy

    members = archive.infolist()
    # compressed entries may expand to any size, and several entries may share one content
    is_compressed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if is_compressed or sum(member.file_size for member in members) > size:
        raise CheckpointError(f"{path}: damaged, its arrays are compressed")
    if len(members) > MAX_ARRAYS or len({member.filename for member in members}) < len(members):
        raise CheckpointError(f"{path}: damaged, more than {MAX_ARRAYS} arrays, or duplicate names")
    values = 0
    for member in members:
        with archive.open(member) as file:
            if npy.read_magic(file) != (1, 0):
                raise CheckpointError(f"{path}: damaged, an array has an unsupported npy version")
            shape, _, dtype = npy.read_array_header_1_0(file)
            count = math.prod(shape)
            values += count * max(1, dtype.itemsize // 8)
            if dtype.kind not in "biufU" or file.tell() + count * dtype.itemsize != member.file_size:
                raise CheckpointError(f"{path}: damaged, an array has an invalid dtype or size")
    if values > MAX_VALUES:
        raise CheckpointError(f"{path}: {values} values, at most {MAX_VALUES} are allowed")
