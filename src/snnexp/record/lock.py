"""One process at a time writes to a directory."""

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
LOOKS, LOOK_S = 10, 0.02
"""How often and how long to wait for a process that only looks whether a directory is locked."""


class Lock:
    """Keeps others from writing to a directory until :meth:`release`, or until this process ends in whatever way.

    The directory itself is locked, which no deleted file frees, and the file ``.lock`` in it, which names the process,
    and which older versions and other machines look at.

    Raises:
        InUseError: another process writes there, or another part of this one.
        CheckpointError: its ``.lock`` is not a plain file.
    """

    _held: ClassVar[set[tuple[int, int]]] = set()
    """Directories that this process has locked: to the system, it does not stand in its own way at a file."""
    _folders: ClassVar[set[int]] = set()
    """Handles of those, which a process that is forked gets too, and with them the lock."""

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
        """Let others write."""
        self._held.discard(self._id)
        os.close(self._file)
        self._close_folder()

    def _close_folder(self) -> None:
        # a process that was forked has let go of it
        if self._folder in self._folders:
            self._folders.discard(self._folder)
            os.close(self._folder)

    @classmethod
    def owner(cls, path: Path) -> int | None:
        """The process that has locked a directory, 0 where it is not known; None where there is none."""
        if not path.is_dir():
            return None
        if _id(path) in cls._held:
            # nor is the file opened here: closing it again would let go of the lock that this process has
            return os.getpid()
        try:
            handle = os.open(path / ".lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ELOOP):
                raise
        else:
            try:
                if (found := _holder(handle)) is not None:
                    return found
            finally:
                os.close(handle)
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return None if _flocked(handle, fcntl.LOCK_SH) else 0
        finally:
            os.close(handle)

    @classmethod
    def _after_fork_in_child(cls) -> None:
        # a data worker may outlive a process that is killed
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
        for _ in range(LOOKS):
            if _flocked(handle, fcntl.LOCK_EX):
                return handle
            time.sleep(LOOK_S)
        owner = Lock.owner(path)
        raise InUseError(f"{path}: in use by {f'process {owner}' if owner else 'another process'}")
    except BaseException:
        os.close(handle)
        raise


def _flocked(handle: int, how: int) -> bool:
    try:
        fcntl.flock(handle, how | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in BUSY:
            raise
        return False
    return True


def _locked_file(path: Path) -> int:
    handle = open_regular_fd(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        # not inherited either
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
    """The other process that has locked an open file; None where there is none, 0 where it is out of sight."""
    # struct flock: type, whence, start, length, process; macOS has it the other way round
    layout, kind, process = ("qqihh", 3, 2) if sys.platform == "darwin" else ("hhqqi4x", 0, 4)
    asked = [0, 0, 0, 0, 0]
    asked[kind] = fcntl.F_WRLCK
    answer = struct.unpack(layout, fcntl.fcntl(handle, fcntl.F_GETLK, struct.pack(layout, *asked)))
    return None if answer[kind] == fcntl.F_UNLCK else max(0, int(answer[process]))
