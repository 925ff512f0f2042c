"""File access in untrusted directories: regular files only, no links, no blocking; files are replaced atomically."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from snnexp.errors import CheckpointError


def open_for_append(path: Path, create: bool = True) -> int:
    """Open a regular file for appending; return its file descriptor.

    Raises:
        CheckpointError: it is not a regular file, but a link, pipe or device.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | (os.O_CREAT if create else 0)
    return open_regular_fd(path, flags)


def open_regular(path: Path, at_most: int | None = None, follow: bool = False) -> BinaryIO:
    """Open a regular file of at most ``at_most`` bytes for reading; links are followed only with ``follow``.

    Raises:
        CheckpointError: it is not a regular file, or is larger.
    """
    file = os.fdopen(open_regular_fd(path, os.O_RDONLY | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)), "rb")
    size = os.fstat(file.fileno()).st_size
    if at_most is not None and size > at_most:
        file.close()
        raise CheckpointError(f"{path}: {size} bytes, at most {at_most} are allowed")
    return file


def open_regular_fd(path: Path, flags: int) -> int:
    try:
        handle = os.open(path, flags, 0o644)
    except OSError as error:
        # a link, or a pipe without a reader
        if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise
        raise CheckpointError(f"{path}: not a regular file") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise CheckpointError(f"{path}: not a regular file")
    return handle


def read_regular(path: Path, at_most: int | None = None, last: int | None = None, follow: bool = False) -> bytes:
    """Return the content of a regular file, or its ``last`` bytes.

    Links in untrusted run directories could point to private files; they are followed only with ``follow``.
    """
    with open_regular(path, at_most, follow) as file:
        if last is not None:
            file.seek(max(0, os.fstat(file.fileno()).st_size - last))
        return file.read()


def reject_links(path: Path) -> None:
    """Check that ``path`` is a regular file or a folder.

    Raises:
        CheckpointError: it is a symbolic or hard link, a pipe or a device.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        # just replaced by the process that writes here
        return
    is_file = stat.S_ISREG(status.st_mode)
    if stat.S_ISLNK(status.st_mode) or (is_file and status.st_nlink > 1):
        raise CheckpointError(f"{path}: a link, which is not allowed in this directory; put the file here")
    if not is_file and not stat.S_ISDIR(status.st_mode):
        raise CheckpointError(f"{path}: neither a regular file nor a folder; delete it")


def write_atomically(path: Path, content: bytes | bytearray, mark: str = "") -> None:
    """Replace a file atomically: write a temporary file in its folder, flush it to disk, then rename it.

    Only one process may write a file at a time, unless each passes a different ``mark``; leftovers of a killed process
    are deleted. The existing file is never opened, since it may be a pipe or a link.
    """
    with replacing(path, mark) as handle:
        write_all(handle, content)


@contextmanager
def replacing(path: Path, mark: str = "") -> Iterator[int]:
    """Yield the descriptor of a temporary file that replaces ``path`` after the block, as :func:`write_atomically`.

    If the block raises, the temporary file is deleted and ``path`` is unchanged.
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
    """Flush the directory entries of a folder to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_figure(folder: Path, name: str, content: bytes) -> None:
    """Replace a file in a folder of figures, to which a run and its report may write at the same time.

    Raises:
        CheckpointError: the folder is a link.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if folder.is_symlink():
        raise CheckpointError(f"{folder}: a link, which is not allowed here; put a folder here")
    write_atomically(folder / name, content, f".{os.getpid()}")
