"""Callbacks of Lightning's that a model needs, whatever watches it: random numbers, and means of a split."""

import itertools
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from snnexp import metrics
from snnexp.isolation import random_states, restored
from snnexp.seeds import fold


class StatelessSeeding(Callback):
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


class EvaluateTestSplit(Callback):
    """After each epoch of training, log what the test split measures, as rows that nothing is chosen by.

    It comes before what writes the row of an epoch. Random numbers and modes are restored afterwards.

    Args:
        batches: of the test at most; None for all.
        random: seeds each batch of an evaluation; None where the task does so itself.
    """

    def __init__(self, batches: int | None, random: StatelessSeeding | None = None) -> None:
        self.batches, self.random = batches, random

    @classmethod
    def join(cls, trainer: Trainer, batches: int | None, random: StatelessSeeding | None = None) -> None:
        """Put one among the callbacks of a trainer, behind its :class:`LogMeans`; arguments as of the class."""
        place = [type(each) for each in trainer.callbacks].index(LogMeans) + 1  # type: ignore[attr-defined]
        trainer.callbacks.insert(place, cls(batches, random))  # type: ignore[attr-defined]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loader = cast(Any, trainer).datamodule.test_dataloader()
        modes = {module: module.training for module in pl_module.modules()}
        (means,) = (each for each in trainer.callbacks if isinstance(each, LogMeans))  # type: ignore[attr-defined]
        with restored(random_states()), torch.no_grad(), trainer.precision_plugin.forward_context():
            pl_module.eval()
            means.on_test_start(trainer, pl_module)
            for index, batch in enumerate(itertools.islice(loader, self.batches)):
                own = trainer.strategy.batch_to_device(batch)
                if self.random is not None:
                    self.random.on_test_batch_start(trainer, pl_module, own, index)
                pl_module.on_test_batch_start(own, index)
                pl_module.test_step(own, index)
            means.on_test_epoch_end(trainer, pl_module)
        for module, mode in modes.items():
            module.training = mode
