"""Derived seeds, which make random numbers independent of earlier draws."""

import hashlib


def fold(seed: int, *key: int | str) -> int:
    """Return a 63-bit hash of a seed and a key, such as a split and an epoch."""
    digest = hashlib.blake2b(repr((seed, *key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1
