"""Stop a point of a search while it trains, where the other points did better at the same epoch."""

import logging
import math

import optuna
from lightning.pytorch import Trainer
from optuna.exceptions import UpdateFinishedTrialError
from optuna.pruners import MedianPruner
from optuna.study import StudyDirection

from snnexp.errors import ConfigError, PrunedError
from snnexp.record.measures import higher_is_better
from snnexp.search.storage import open_storage, reached
from snnexp.text import format_number
from snnexp.training.members import Member, Observer

LOG = logging.getLogger(__name__)
REPORTS = 30
"""How often the curve of a run is reported at most, for each report is a write to a database."""


class Pruning(Observer):
    """Report the measure of a search after epochs, and raise :class:`PrunedError` where it is worse than the median.

    The best value so far is compared with the values that finished points had after the same epoch. A measure of the
    test split is not known while a run trains; ``train/epoch_loss`` stands for it. A run of several processes is never
    stopped: the others know of no search.

    Args:
        storage: URL of the database.
        study: its name there.
        trial: the number of this point.
        metric: what is searched by.
        startup_trials: how many points have to finish before others are compared with them.
        warmup_epochs: after these no point is stopped yet.

    Raises:
        ConfigError: the database cannot be reached.
    """

    def __init__(
        self, storage: str, study: str, trial: int, metric: str, startup_trials: int = 5, warmup_epochs: int = 1
    ) -> None:
        self.url = storage
        self.storage = open_storage(storage)
        self.metric = "train/epoch_loss" if metric.startswith("test/") else metric
        self.pruner = MedianPruner(n_startup_trials=startup_trials, n_warmup_steps=warmup_epochs + 1)
        with reached(storage):
            self.study = optuna.load_study(study_name=study, storage=self.storage)
            identity = self.storage.get_study_id_from_name(study)
            self.trial = self.storage.get_trial_id_from_study_id_trial_number(identity, trial)
        maximize = self.study.direction == StudyDirection.MAXIMIZE
        # curves are compared in the study's direction, whatever stands for its measure
        self.sign = 1 if self.metric == metric or higher_is_better(self.metric) == maximize else -1

    def on_train_epoch_end(self, trainer: Trainer, member: Member) -> None:
        done, total = trainer.current_epoch + 1, int(trainer.max_epochs or 1)
        # at the end there is nothing left to save
        if done >= total or done % math.ceil(total / REPORTS) or trainer.world_size > 1:
            return
        value = member.metrics.get(self.metric)
        if value is not None and self._is_worse(done, float(value)):
            what = f"{self.metric} {format_number(float(value))}"
            raise PrunedError(f"pruned after epoch {done}: {what} is worse than the median of the other points")

    def _is_worse(self, epoch: int, value: float) -> bool:
        try:
            with reached(self.url):
                self.storage.set_trial_intermediate_value(self.trial, epoch, self.sign * value)
                return self.pruner.prune(self.study, self.storage.get_trial(self.trial))
        except (ConfigError, UpdateFinishedTrialError) as error:
            # the run itself is sound, and what it comes to is told by whoever started it
            LOG.warning("after epoch %d the search could not be told of the run: %s", epoch, error)
            return False
