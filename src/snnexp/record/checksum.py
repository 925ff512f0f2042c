"""Read and write checkpoint files, each with a SHA-256 checksum file."""

import hashlib
from pathlib import Path

from snnexp.errors import CheckpointError
from snnexp.record.files import read_regular, write_atomically


def write_checkpoint(path: Path, content: bytes, keep: Path | None = None) -> None:
    """Replace a checkpoint and its checksum file, which has the format of ``sha256sum``.

    While the checkpoint is being replaced, the checksum file lists the digests of the old and the new content, so that
    a kill at any time leaves a whole checkpoint with a valid checksum.

    Args:
        path: the checkpoint.
        content: the new content.
        keep: where to save the old content, if it is intact.

    Raises:
        CheckpointError: the checksum file is not a regular file.
    """
    digest = hashlib.sha256(content).hexdigest()
    valid = _read_digests(path)
    if keep is not None and valid:
        old = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(old).hexdigest() in valid:
            write_checkpoint(keep, old)
    _write_digests(path, digest, *valid)
    write_atomically(path, content)
    _write_digests(path, digest)


def read_checkpoint(path: Path, at_most: int | None = None, foreign: bool = False) -> bytes:
    """Return the bytes of a checkpoint after verifying its checksum.

    Args:
        path: the checkpoint.
        at_most: maximum size in bytes.
        foreign: allow a missing checksum.

    Raises:
        CheckpointError: the checkpoint or its checksum is missing, or they do not match.
    """
    try:
        valid, content = _read_digests(path), read_regular(path, at_most, follow=foreign)
        if valid and hashlib.sha256(content).hexdigest() not in valid:
            # its run may have just replaced it
            valid, content = _read_digests(path), read_regular(path, at_most, follow=foreign)
    except OSError as error:
        raise CheckpointError(f"{path}: checkpoint cannot be read: {error.strerror}") from error
    if not valid and not foreign:
        raise CheckpointError(f"{path}: checkpoint has no checksum file, or a damaged one")
    if valid and hashlib.sha256(content).hexdigest() not in valid:
        raise CheckpointError(f"{path}: checkpoint is damaged, its checksum differs")
    return content


def _checksum(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _write_digests(path: Path, *digests: str) -> None:
    write_atomically(_checksum(path), "".join(f"{digest}  {path.name}\n" for digest in digests).encode())


def _read_digests(path: Path) -> list[str]:
    try:
        return read_regular(_checksum(path), at_most=4096, follow=True).decode("ascii").split()[::2]
    except (FileNotFoundError, UnicodeDecodeError):
        return []
