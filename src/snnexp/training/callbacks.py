"""Callbacks of Lightning's that a model needs, whatever watches it: random numbers, and means of a split."""

from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from snnexp import metrics
from snnexp.seeds import fold


class RandomNumbers(Callback):
    """Random numbers of a step depend on the seed and the place in the run alone, whatever was drawn before.

    Batches of all evaluations draw alike, so that an evaluation can be repeated by itself.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        torch.manual_seed(fold(self.seed, "train", trainer.current_epoch, batch_idx, trainer.global_rank))

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        torch.manual_seed(fold(self.seed, "evaluate", batch_idx, trainer.global_rank))

    on_test_batch_start = on_validation_batch_start


class LogMeans(Callback):
    """Log what an evaluation has added up, once at its end; before callbacks that read it."""

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # one before may have been interrupted
        cast(metrics.Totals, pl_module.means).clear()

    on_test_start = on_validation_start

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        means = cast(metrics.Totals, pl_module.means)
        found = means.take(
            lambda sums: cast(Tensor, trainer.strategy.reduce(sums, reduce_op="sum")),
            lambda state: [state] if trainer.world_size == 1 else gather_all_tensors(state),
        )
        for name, value in found.items():
            # equal on all processes, as Lightning is told
            pl_module.log(name, value, sync_dist=True)

    on_test_epoch_end = on_validation_epoch_end
