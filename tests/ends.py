"""Bit-exact comparison of runs, for tests and scripts."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def content(path: Path) -> str:
    """Return a hash of metrics.jsonl, and of tensors and counts in the last and the best checkpoint."""
    digest = hashlib.sha256((path / "metrics.jsonl").read_bytes())
    for name in ("last", "best"):
        checkpoint = torch.load(path / "checkpoints" / f"{name}.ckpt", weights_only=True)
        for tensor in _tensors(checkpoint):
            digest.update(tensor.numpy().tobytes())
        plain = {key: checkpoint[key] for key in ("epoch", "batch", "global_step", "lr_schedulers", "metrics")}
        digest.update(json.dumps(plain, sort_keys=True).encode())
    return digest.hexdigest()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)
