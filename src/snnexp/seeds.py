"""Derived seeds, which make random numbers independent of earlier draws."""

import hashlib


def fold(seed: int, *key: int | str) -> int:
    """Return a 63-bit hash of a seed and a key, such as a split and an epoch."""
    digest = hashlib.blake2b(repr((seed, *key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def seed_all(seed: int) -> None:
    """Seed the generators of all devices, like :func:`torch.manual_seed`.

    Without an accelerator, :func:`torch.manual_seed` takes almost a millisecond, because it records the call stack for
    devices that may be initialized later.
    """
    import torch

    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)
