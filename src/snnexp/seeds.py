"""Seeds for places in a run: what is drawn there depends on the place alone, never on what was drawn before."""

import hashlib


def fold(seed: int, *place: int | str) -> int:
    """A seed of 63 bits for one place in a run, such as an epoch: a hash, so that no two places share a stream."""
    digest = hashlib.blake2b(repr((seed, *place)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1
