"""Loggers of a run: metrics.jsonl, TensorBoard, and other Lightning loggers named in a config."""

import inspect
import logging
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from snnexp import config
from snnexp.config import factory, targets
from snnexp.config.loggers import without_secrets
from snnexp.isolation import cpu_random_states, restored
from snnexp.record.run import Run
from snnexp.text import one_line

LOG = logging.getLogger(__name__)


class RunLogger(Logger):
    """Write logged metrics to the run's metrics.jsonl."""

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
        """Do nothing: the run stores its whole config."""

    def finalize(self, status: str) -> None:
        # called after training and again after the test
        self.run.close_metrics()


class RunTensorBoard(TensorBoardLogger):
    """Write TensorBoard events to a run directory, without the epoch, which TensorBoard would show first.

    Args:
        run: the run directory.
        purge_step: step of a resumed run; TensorBoard drops earlier events from this step on.
    """

    def __init__(self, run: Run, purge_step: int | None) -> None:
        super().__init__(run.path, name="", version="tensorboard", default_hp_metric=False, purge_step=purge_step)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics({name: value for name, value in metrics.items() if name != "epoch"}, step)


class Tracker(Logger):
    """An additional Lightning logger; if it fails, it is disabled and the run continues.

    Random numbers that it draws do not affect the run.

    Args:
        name: its key below ``logger.also``.
        node: its config.
        run: the run directory, the default folder of its files; the id of the run is the name of the tracked run.
    """

    def __init__(self, name: str, node: Mapping[str, Any], run: Run) -> None:
        super().__init__()
        self.key, self.run = f"logger.also.{name}", run
        self.logger: Logger | None = None
        with self._attempted():
            offered = {"save_dir": str(run.path), **dict.fromkeys(("name", "run_name", "id"), run.path.name)}
            make, supplied = _maker(self.key, node)
            self.logger = make(**{name: offered[name] for name in supplied})

    @property
    def name(self) -> str:
        return self.key

    @property
    def version(self) -> str:
        return self.run.path.name

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        with self._attempted():
            if self.logger is not None:
                self.logger.log_metrics(dict(metrics), step)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        with self._attempted():
            if self.logger is not None:
                self.logger.log_hyperparams(params)

    def save(self) -> None:
        with self._attempted():
            if self.logger is not None:
                self.logger.save()

    def finalize(self, status: str) -> None:
        with self._attempted():
            if self.logger is not None:
                self.logger.finalize(status)

    def close(self) -> None:
        """End the tracked run if the logger requires it, such as Weights & Biases."""
        with self._attempted():
            finish = getattr(getattr(self.logger, "experiment", None), "finish", None)
            if callable(finish):
                finish()
        self.logger = None

    @contextmanager
    def _attempted(self) -> Iterator[None]:
        with restored(cpu_random_states()):
            try:
                yield
            except Exception as error:
                self.logger = None
                LOG.warning("%s failed and is disabled: %s: %s", self.key, type(error).__name__, one_line(str(error)))


def require(also: Mapping[str, Mapping[str, Any]]) -> None:
    """Check that loggers exist and accept their arguments.

    Args:
        also: their configs by name.

    Raises:
        ConfigError: a logger does not exist, or does not take an argument.
        PartError: a user-defined module cannot be imported.
    """
    for name, node in also.items():
        _maker(f"logger.also.{name}", node)


def _maker(key: str, node: Mapping[str, Any]) -> tuple[Callable[..., Logger], list[str]]:
    """Return a factory of a logger, and the names of the arguments that the run supplies."""
    taken = inspect.signature(targets.resolve(str(node["_target_"]), key)).parameters
    supplied = [name for name in ("save_dir", "name", "run_name", "id") if name in taken and name not in node]
    return factory(node, key, given=supplied), supplied


def make_loggers(run: Run, cfg: DictConfig, purge_step: int | None, main: bool = True) -> list[Any]:
    """Return the loggers of a run, metrics.jsonl first.

    Args:
        run: the run directory.
        cfg: the config.
        purge_step: the step that the run resumes from; None for a new run.
        main: True for rank 0, the only process with trackers.
    """
    loggers: list[Any] = [RunLogger(run)]
    if cfg.logger.tensorboard:
        loggers.append(RunTensorBoard(run, purge_step))
    plain = config.plain(cfg)
    for name, node in plain["logger"].get("also", {}).items() if main else ():
        tracker = Tracker(name, node, run)
        tracker.log_hyperparams(hyperparameters(plain))
        loggers.append(tracker)
    return loggers


def hyperparameters(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hyperparameters for trackers: the config without loggers and secrets."""
    result: dict[str, Any] = without_secrets({key: value for key, value in plain.items() if key != "logger"})
    return result


def log_result(loggers: Sequence[Any], hyperparameters: Mapping[str, Any], measured: Mapping[str, float]) -> None:
    """Add a finished run to TensorBoard's table of hyperparameters and metrics."""
    for board in loggers:
        if isinstance(board, RunTensorBoard):
            board.log_hyperparams(dict(hyperparameters), dict(measured))


def close(loggers: Sequence[Any], status: Literal["success", "failed"]) -> None:
    """Close all loggers of a run except metrics.jsonl."""
    for logger in loggers[1:]:
        logger.finalize(status)
        if isinstance(logger, Tracker):
            logger.close()
