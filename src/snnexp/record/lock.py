"""Exclusive locks on run and sweep directories."""

import errno
import fcntl
import os
import struct
import sys
import time
from pathlib import Path
from typing import ClassVar

from snnexp.errors import InUseError
from snnexp.record.files import open_regular_fd

BUSY = (errno.EACCES, errno.EAGAIN)
LOCK_ATTEMPTS, RETRY_S = 10, 0.02
"""Retries, and seconds between them, since a process that only queries the owner holds a shared lock briefly."""


class Lock:
    """An exclusive lock on a directory, held until :meth:`release` or the end of this process.

    It consists of a lock on the directory itself, which survives the deletion of files, and one on the file ``.lock``
    in it, which contains the process id and is checked by older versions and other machines.

    Raises:
        InUseError: another process, or this one, already holds the lock.
        CheckpointError: its ``.lock`` is not a regular file.
    """

    _held: ClassVar[set[tuple[int, int]]] = set()
    """Directories that this process has locked; POSIX file locks never conflict within one process."""
    _folders: ClassVar[set[int]] = set()
    """Descriptors of those directories, which forked processes inherit together with the lock."""

    def __init__(self, path: Path) -> None:
        self._id = _id(path)
        if self._id in self._held:
            raise InUseError(f"{path}: in use by this process")
        self._folder = _locked_folder(path)
        self._folders.add(self._folder)
        try:
            self._file = _locked_file(path / ".lock")
        except BaseException:
            self._close_folder()
            raise
        self._held.add(self._id)

    def release(self) -> None:
        """Release the lock."""
        self._held.discard(self._id)
        os.close(self._file)
        self._close_folder()

    def _close_folder(self) -> None:
        # a forked process has already closed it
        if self._folder in self._folders:
            self._folders.discard(self._folder)
            os.close(self._folder)

    @classmethod
    def owner(cls, path: Path) -> int | None:
        """Return the id of the process that holds the lock of a directory, 0 if it is unknown, or None if unlocked."""
        if not path.is_dir():
            return None
        if _id(path) in cls._held:
            # do not open the file here: closing it would release the lock of this process
            return os.getpid()
        try:
            handle = os.open(path / ".lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ELOOP):
                raise
        else:
            try:
                if (owner := _holder(handle)) is not None:
                    return owner
            finally:
                os.close(handle)
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return None if _flock(handle, fcntl.LOCK_SH) else 0
        finally:
            os.close(handle)

    @classmethod
    def _after_fork_in_child(cls) -> None:
        # a data worker may outlive a killed process
        for handle in cls._folders:
            os.close(handle)
        cls._folders.clear()
        cls._held.clear()


os.register_at_fork(after_in_child=Lock._after_fork_in_child)


def _id(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _locked_folder(path: Path) -> int:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for _ in range(LOCK_ATTEMPTS):
            if _flock(handle, fcntl.LOCK_EX):
                return handle
            time.sleep(RETRY_S)
        owner = Lock.owner(path)
        raise InUseError(f"{path}: in use by {f'process {owner}' if owner else 'another process'}")
    except BaseException:
        os.close(handle)
        raise


def _flock(handle: int, operation: int) -> bool:
    try:
        fcntl.flock(handle, operation | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in BUSY:
            raise
        return False
    return True


def _locked_file(path: Path) -> int:
    handle = open_regular_fd(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        # forked processes do not inherit this lock
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
    except OSError as error:
        owner = os.read(handle, 20).decode(errors="replace").strip()
        os.close(handle)
        if error.errno not in BUSY:
            raise
        raise InUseError(f"{path.parent}: in use by process {owner}") from error
    return handle


def _holder(handle: int) -> int | None:
    """Return the id of another process that has locked an open file, 0 if it is not visible, or None if unlocked."""
    # struct flock: type, whence, start, length, process; in reverse order on macOS
    layout, kind, process = ("qqihh", 3, 2) if sys.platform == "darwin" else ("hhqqi4x", 0, 4)
    query = [0, 0, 0, 0, 0]
    query[kind] = fcntl.F_WRLCK
    reply = struct.unpack(layout, fcntl.fcntl(handle, fcntl.F_GETLK, struct.pack(layout, *query)))
    return None if reply[kind] == fcntl.F_UNLCK else max(0, int(reply[process]))
