"""RMSprop with a linear fall of the learning rate."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from snnexp.optimizers import OptimizerFactory
from snnexp.spec.annotations import BelowOne, NonNegative, Positive, Stackable


@dataclass(frozen=True)
class RMSprop(OptimizerFactory):
    """RMSprop; the learning rate falls linearly to ``end`` times its start.

    Args:
        lr: learning rate of the first step.
        decay: of the mean square of the gradient, per step.
        weight_decay: of the weights of synapses.
        end: what is left of the learning rate at the last step.
    """

    stackable = True
    lr: Stackable[Positive] = 1e-2
    decay: BelowOne = 0.99
    weight_decay: NonNegative = 0.0
    end: Positive = 0.1

    def __call__(self, parameters: Iterable[Any], total_steps: int) -> dict[str, Any]:
        """The optimiser, and its schedule per step."""
        optimizer = torch.optim.RMSprop(parameters, lr=self.lr, alpha=self.decay, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, self.end, max(total_steps, 1))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
