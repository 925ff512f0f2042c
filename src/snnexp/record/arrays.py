"""Arrays of numbers and texts in a file, which may be anybody's."""

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
"""Of all arrays of a file together: figures take some hundred bytes for each."""


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Replace a file of arrays."""
    import numpy as np

    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    if buffer.tell() > MAX_ARRAYS_BYTES:
        raise ValueError(f"{buffer.tell()} bytes, at most {MAX_ARRAYS_BYTES} are kept")
    write_atomically(path, buffer.getvalue())


def read_arrays(path: Path) -> dict[str, Any]:
    """The arrays of a file.

    Raises:
        CheckpointError: it is damaged, or not what :func:`write_arrays` writes.
    """
    import numpy as np

    content = read_regular(path, at_most=MAX_ARRAYS_BYTES)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            _require_plain(archive, path, len(content))
        with np.load(io.BytesIO(content), allow_pickle=False) as found:
            return {key: found[key] for key in found.files}
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, KeyError, MemoryError) as error:
        raise CheckpointError(f"{path}: damaged") from error


def _require_plain(archive: zipfile.ZipFile, path: Path, size: int) -> None:
    """Refuse arrays that would take more memory than their file, or that are no numbers and texts."""
    from numpy.lib import format as npy

    members = archive.infolist()
    # what is packed may unpack to any size, and several entries may share one content
    packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if packed or sum(member.file_size for member in members) > size:
        raise CheckpointError(f"{path}: damaged, its arrays are packed")
    if len(members) > MAX_ARRAYS or len({member.filename for member in members}) < len(members):
        raise CheckpointError(f"{path}: damaged, more than {MAX_ARRAYS} arrays, or two of one name")
    values = 0
    for member in members:
        with archive.open(member) as file:
            if npy.read_magic(file) != (1, 0):
                raise CheckpointError(f"{path}: damaged, an array of another version")
            shape, _, dtype = npy.read_array_header_1_0(file)
            count = math.prod(shape)
            values += count * max(1, dtype.itemsize // 8)
            if dtype.kind not in "biufU" or file.tell() + count * dtype.itemsize != member.file_size:
                raise CheckpointError(f"{path}: damaged, an array that no run writes")
    if values > MAX_VALUES:
        raise CheckpointError(f"{path}: {values} values, at most {MAX_VALUES} can belong here")
