"""Latency code of values from 0 to 1, linear in time."""

from dataclasses import dataclass

import torch
from torch import Tensor

from snnexp.encoders import Encoder
from snnexp.errors import ConfigError
from snnexp.spec.annotations import Fraction, Steps


@dataclass(frozen=True)
class Ramp(Encoder):
    """A value x fires once, in step (1 - x) (T - 1); a value below ``floor`` never fires.

    Args:
        num_steps: length of the sequence.
        floor: value below which nothing fires.
    """

    stackable = True
    spikes = True
    num_steps: Steps
    floor: Fraction = 0.1

    def require_range(self, low: float, high: float) -> None:
        """Refuse data outside of 0 to 1."""
        if low < 0 or high > 1:
            raise ConfigError(f"encoder: ramp needs values from 0 to 1, got {low} to {high}")

    def __call__(self, values: Tensor) -> Tensor:
        """Spikes ``[T, B, *N]`` of values ``[B, *N]``."""
        step = torch.round((1 - values) * (self.num_steps - 1)).long()
        steps = torch.arange(self.num_steps, device=values.device).reshape(-1, *[1] * values.dim())
        return ((steps == step) & (values >= self.floor)).to(values.dtype)
