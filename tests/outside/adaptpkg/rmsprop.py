"""RMSprop with a warm-up of the learning rate."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Interval

from snnexp.optimizers import OptimizerFactory
from snnexp.spec.annotations import BelowOne, NonNegative, Positive, Stackable


@dataclass(frozen=True)
class RMSprop(OptimizerFactory):
    """RMSprop; in the first quarter of the training the learning rate rises linearly.

    Args:
        lr: learning rate after the warm-up.
        decay: decay of the running mean square of the gradient, per step.
        weight_decay: L2 penalty of the weights of synapses.
        start: the learning rate of the first step, as a fraction of ``lr``.
    """

    stackable = True
    lr: Stackable[Positive] = 1e-2
    decay: Stackable[BelowOne] = 0.99
    weight_decay: Stackable[NonNegative] = 0.0
    start: Annotated[float, Interval(gt=0, le=1)] = 0.5

    def __call__(self, parameters: Iterable[Any], total_steps: int) -> dict[str, Any]:
        """Return the optimizer, and its schedule per step."""
        optimizer = torch.optim.RMSprop(parameters, lr=self.lr, alpha=self.decay, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, self.start, 1.0, max(total_steps // 4, 1))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
