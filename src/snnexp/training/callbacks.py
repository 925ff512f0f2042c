"""Lightning callbacks that every model needs: seeding, and metrics averaged over a split."""

import itertools
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from snnexp import metrics
from snnexp.isolation import random_states, restored
from snnexp.seeds import fold, seed_all


class StatelessSeeding(Callback):
    """Seed every step from the run's seed and its position in the run, independent of earlier draws.

    All evaluations draw the same numbers for a batch, so evaluations are reproducible.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        seed_all(fold(self.seed, "train", trainer.current_epoch, batch_idx, trainer.global_rank))

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        seed_all(fold(self.seed, "evaluate", batch_idx, trainer.global_rank))

    on_test_batch_start = on_validation_batch_start


class LogMeans(Callback):
    """Log the accumulated metrics once, at the end of an evaluation; must precede callbacks that read them."""

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # a previous evaluation may have been interrupted
        cast(metrics.Totals, pl_module.means).clear()

    on_test_start = on_validation_start

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        means = cast(metrics.Totals, pl_module.means)
        values = means.take(
            lambda sums: cast(Tensor, trainer.strategy.reduce(sums, reduce_op="sum")),
            lambda state: [state] if trainer.world_size == 1 else gather_all_tensors(state),
        )
        for name, value in values.items():
            # already equal on all processes; sync_dist silences Lightning's warning
            pl_module.log(name, value, sync_dist=True)

    on_test_epoch_end = on_validation_epoch_end


class EvaluateTestSplit(Callback):
    """Evaluate the test split after each training epoch and log its metrics; for logging only.

    Must precede the callback that writes an epoch's row. Random states and module modes are restored afterwards.

    Args:
        batches: maximum number of test batches; None for all.
        random: seeds each batch; None if the task does so itself.
    """

    def __init__(self, batches: int | None, random: StatelessSeeding | None = None) -> None:
        self.batches, self.random = batches, random

    @classmethod
    def join(cls, trainer: Trainer, batches: int | None, random: StatelessSeeding | None = None) -> None:
        """Insert an instance into the callbacks of a trainer, after its :class:`LogMeans`."""
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
