"""Median pruning of the points of a search."""

import logging
import math

import optuna
from lightning.pytorch import Trainer
from optuna.exceptions import UpdateFinishedTrialError
from optuna.pruners import MedianPruner
from optuna.study import StudyDirection

from snnexp.errors import ConfigError, PrunedError
from snnexp.record.measures import higher_is_better
from snnexp.search.storage import open_storage, translated_errors
from snnexp.text import format_number
from snnexp.training.members import Member, Observer

LOG = logging.getLogger(__name__)
REPORTS = 30
"""Maximum number of values that a run reports, each of which is written to the database."""


class Pruning(Observer):
    """Report the metric of a search after epochs, and raise :class:`PrunedError` if it is worse than the median.

    The best value so far is compared with the values of finished points after the same epoch. A metric of the test
    split is not available during training; ``train/epoch_loss`` is used instead. Distributed runs are never pruned,
    since only one of their processes would stop.

    Args:
        storage: URL of the database.
        study: name of the study.
        trial: number of this point's trial.
        metric: the objective of the search.
        startup_trials: number of points that must finish before any is pruned.
        warmup_epochs: number of epochs before a point may be pruned.

    Raises:
        ConfigError: the database is unreachable.
    """

    def __init__(
        self, storage: str, study: str, trial: int, metric: str, startup_trials: int = 5, warmup_epochs: int = 1
    ) -> None:
        self.url = storage
        self.storage = open_storage(storage)
        self.metric = "train/epoch_loss" if metric.startswith("test/") else metric
        self.pruner = MedianPruner(n_startup_trials=startup_trials, n_warmup_steps=warmup_epochs + 1)
        with translated_errors(storage):
            self.study = optuna.load_study(study_name=study, storage=self.storage)
            study_id = self.storage.get_study_id_from_name(study)
            self.trial = self.storage.get_trial_id_from_study_id_trial_number(study_id, trial)
        maximize = self.study.direction == StudyDirection.MAXIMIZE
        # curves are compared in the direction of the study, which may differ from that of train/epoch_loss
        self.sign = 1 if self.metric == metric or higher_is_better(self.metric) == maximize else -1

    def on_train_epoch_end(self, trainer: Trainer, member: Member) -> None:
        done, total = trainer.current_epoch + 1, int(trainer.max_epochs or 1)
        # pruning after the last epoch would save nothing
        if done >= total or done % math.ceil(total / REPORTS) or trainer.world_size > 1:
            return
        value = member.metrics.get(self.metric)
        if value is not None and self._is_worse(done, float(value)):
            what = f"{self.metric} {format_number(float(value))}"
            raise PrunedError(f"pruned after epoch {done}: {what} is worse than the median of the other points")

    def _is_worse(self, epoch: int, value: float) -> bool:
        try:
            with translated_errors(self.url):
                self.storage.set_trial_intermediate_value(self.trial, epoch, self.sign * value)
                return self.pruner.prune(self.study, self.storage.get_trial(self.trial))
        except (ConfigError, UpdateFinishedTrialError) as error:
            # the run is unaffected; the driver reports its result
            LOG.warning("epoch %d could not be reported to the search: %s", epoch, error)
            return False
