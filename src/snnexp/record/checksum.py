"""Checkpoints as bytes, each with its checksum beside it."""

import hashlib
from pathlib import Path

from snnexp.errors import CheckpointError
from snnexp.record.files import read_regular, write_atomically


def write_checkpoint(path: Path, content: bytes, keep: Path | None = None) -> None:
    """Replace a checkpoint and its checksum, in the format of ``sha256sum``.

    While one is replaced, the checksum's file vouches for the old and the new content, so that whatever a kill leaves
    is a whole checkpoint with its checksum.

    Args:
        path: the checkpoint.
        content: its new content.
        keep: where the content before goes, if it is undamaged.

    Raises:
        CheckpointError: its checksum is no plain file.
    """
    digest = hashlib.sha256(content).hexdigest()
    vouched = _vouched(path)
    if keep is not None and vouched:
        before = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(before).hexdigest() in vouched:
            write_checkpoint(keep, before)
    _vouch(path, digest, *vouched)
    write_atomically(path, content)
    _vouch(path, digest)


def read_checkpoint(path: Path, at_most: int | None = None, foreign: bool = False) -> bytes:
    """The bytes of a checkpoint that has its checksum.

    Args:
        path: the checkpoint.
        at_most: bytes that it may have.
        foreign: it may come without a checksum.

    Raises:
        CheckpointError: it is missing, or is not the file that was written.
    """
    try:
        vouched, content = _vouched(path), read_regular(path, at_most, follow=foreign)
        if vouched and hashlib.sha256(content).hexdigest() not in vouched:
            # its run may have replaced it just now
            vouched, content = _vouched(path), read_regular(path, at_most, follow=foreign)
    except OSError as error:
        raise CheckpointError(f"{path}: checkpoint cannot be read: {error.strerror}") from error
    if not vouched and not foreign:
        raise CheckpointError(f"{path}: checkpoint has no checksum beside it, or a damaged one")
    if vouched and hashlib.sha256(content).hexdigest() not in vouched:
        raise CheckpointError(f"{path}: checkpoint is damaged, its checksum differs")
    return content


def _checksum(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _vouch(path: Path, *digests: str) -> None:
    write_atomically(_checksum(path), "".join(f"{digest}  {path.name}\n" for digest in digests).encode())


def _vouched(path: Path) -> list[str]:
    try:
        return read_regular(_checksum(path), at_most=4096, follow=True).decode("ascii").split()[::2]
    except (FileNotFoundError, UnicodeDecodeError):
        return []
