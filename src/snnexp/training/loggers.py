"""Where logged values go: metrics.jsonl, and TensorBoard."""

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from snnexp.record.run import Run


class RunLogger(Logger):
    """Logged metrics go to the run's metrics.jsonl."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    @property
    def name(self) -> str:
        return "run"

    @property
    def version(self) -> str:
        return self.run.path.name

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        values = dict(metrics)
        epoch = values.pop("epoch", None)
        self.run.log_metrics({"step": step, "epoch": None if epoch is None else int(epoch), **values})

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The run keeps its whole config already."""

    def finalize(self, status: str) -> None:
        # called after training and after the test; the run itself goes on
        self.run.close_metrics()


class Board(TensorBoardLogger):
    """TensorBoard's events in a run directory; without the epoch, which would be the first card.

    Args:
        run: its directory.
        purge_step: what was drawn from this step on is drawn again.
    """

    def __init__(self, run: Run, purge_step: int | None) -> None:
        super().__init__(run.path, name="", version="tensorboard", default_hp_metric=False, purge_step=purge_step)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics({name: value for name, value in metrics.items() if name != "epoch"}, step)
