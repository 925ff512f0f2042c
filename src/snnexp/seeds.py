"""Derived seeds: random numbers of a place in a run do not depend on what was drawn before."""

import hashlib


def fold(seed: int, *place: int | str) -> int:
    """Return a 63-bit seed for a place in a run, such as an epoch: a hash of seed and place."""
    digest = hashlib.blake2b(repr((seed, *place)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1
