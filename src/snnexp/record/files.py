"""Files in directories that others may have written: opened without waiting or following links, replaced whole."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from snnexp.errors import CheckpointError


def open_for_append(path: Path, create: bool = True) -> int:
    """A handle that appends to a plain file.

    Raises:
        CheckpointError: it is something else; a pipe would wait for ever, and a link lead elsewhere.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | (os.O_CREAT if create else 0)
    return open_regular_fd(path, flags)


def open_regular(path: Path, at_most: int | None = None, follow: bool = False) -> BinaryIO:
    """A plain file to read from, which may have ``at_most`` bytes; a link is followed only if told so.

    Raises:
        CheckpointError: it is something else, or is longer.
    """
    file = os.fdopen(open_regular_fd(path, os.O_RDONLY | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)), "rb")
    size = os.fstat(file.fileno()).st_size
    if at_most is not None and size > at_most:
        file.close()
        raise CheckpointError(f"{path}: {size} bytes, at most {at_most} can belong here")
    return file


def open_regular_fd(path: Path, flags: int) -> int:
    try:
        handle = os.open(path, flags, 0o644)
    except OSError as error:
        # a link, or a pipe that nobody reads
        if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise
        raise CheckpointError(f"{path}: not a plain file") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise CheckpointError(f"{path}: not a plain file")
    return handle


def read_regular(path: Path, at_most: int | None = None, last: int | None = None, follow: bool = False) -> bytes:
    """The content of a plain file, or its last bytes: a pipe would wait for ever, a device never end.

    A link in a run directory of others may lead to what is nobody's business, and is followed only if told so.
    """
    with open_regular(path, at_most, follow) as file:
        if last is not None:
            file.seek(max(0, os.fstat(file.fileno()).st_size - last))
        return file.read()


def reject_links(part: Path) -> None:
    """Refuse a part of a directory that leads elsewhere, or that is neither a plain file nor a folder.

    Raises:
        CheckpointError: it is a link, also a hard one, a pipe or a device.
    """
    try:
        status = part.lstat()
    except FileNotFoundError:
        # replaced just now by the process that writes here
        return
    file = stat.S_ISREG(status.st_mode)
    if stat.S_ISLNK(status.st_mode) or (file and status.st_nlink > 1):
        raise CheckpointError(f"{part}: a link, and this directory may not lead elsewhere; put the file here")
    if not file and not stat.S_ISDIR(status.st_mode):
        raise CheckpointError(f"{part}: neither a plain file nor a folder; delete it")


def write_atomically(path: Path, content: bytes | bytearray, mark: str = "") -> None:
    """Write beside the target, flush to the disk, then replace: a reader sees the old file or the new one.

    One process writes a file at a time, so what a killed one has left is deleted by the next; where several may, each
    has a ``mark`` of its own. Nothing that is there is written to: it may be a pipe, or a link to what is elsewhere.
    """
    with replacing(path, mark) as handle:
        write_all(handle, content)


@contextmanager
def replacing(path: Path, mark: str = "") -> Iterator[int]:
    """A handle of a file that takes the place of ``path`` at the end of the block, as :func:`write_atomically` says.

    A block that raises leaves nothing behind, and ``path`` as it was.
    """
    temporary = path.with_name(f".{path.name}{mark}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
        try:
            yield handle
            os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def write_all(handle: int, content: bytes | bytearray) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(handle, rest) :]


def fsync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_figure(folder: Path, name: str, content: bytes) -> None:
    """Replace a file of a folder of figures, which a run and a report about it may write at the same time.

    Raises:
        CheckpointError: the folder leads elsewhere.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if folder.is_symlink():
        raise CheckpointError(f"{folder}: a link, and figures are not written elsewhere; put a folder here")
    write_atomically(folder / name, content, f".{os.getpid()}")
