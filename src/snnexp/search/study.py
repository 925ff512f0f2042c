"""Search: a study of Optuna chooses the points, here or on several machines at once.

A study has ``n_trials`` places, and each is held by one trial: the first of those that claimed it and was not given up.
Trials are numbered by the database, so that of two processes which claim the same place both know whose it is. A trial
that gives no more sign of life is marked as failed without a status; its place is free again, and whoever claims it
begins with the same values. A trial that failed by itself has a status, and keeps its place.

What is drawn for a place depends on the seed, the place, and the trials that are known by then.
"""

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import distribution_to_json
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import get_storage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial
from sqlalchemy.engine import URL

from snnexp import config
from snnexp.errors import ConfigError
from snnexp.record.run import Run
from snnexp.search.settings import Settings
from snnexp.search.space import Space, cells, suggested, typed
from snnexp.search.storage import close, open_storage, reached
from snnexp.seeds import fold
from snnexp.text import format_value

MAY_DIFFER = (*config.MAY_CHANGE, "trainer=", "kernel=")
"""What processes that share a study may each have otherwise."""


def measured(run: Path, metric: str) -> float | None:
    """What a run has come to: a measure of run.json, else the last row of metrics.jsonl that has it; None without one.

    Raises:
        CheckpointError: the record is damaged.
    """
    found = Run(run).read().get("metrics", {}).get(metric)
    if found is None:
        found = next((row[metric] for row in reversed([*Run(run).metrics()]) if row.get(metric) is not None), None)
    return None if found is None else float(found)


class Search:
    """A study, seen by one of the processes that work on it; opens it, or begins it.

    Args:
        settings: how to search.
        fixed: overrides of all points.
        space: by key, what is searched; both from :func:`space`.
        folder: the directory of the sweep.
        metric: what is searched by, see :func:`objective`.
        direction: minimize or maximize.
        name: of the study, where it was begun before.

    Raises:
        ConfigError: the storage cannot be used, the study is another one, or the space is no grid.
    """

    def __init__(
        self,
        settings: Settings,
        fixed: list[str],
        space: Space,
        folder: Path,
        metric: str,
        direction: str,
        name: str | None = None,
    ) -> None:
        self.settings, self.fixed, self.space, self.metric = settings, fixed, space, metric
        self.cells = cells(space) if settings.sampler == "grid" else None
        sizes = [settings.n_trials, None if self.cells is None else len(self.cells)]
        self.size = min(size for size in sizes if size is not None)
        beside = URL.create("sqlite", database=str(folder.absolute() / "study.db"))
        self.url = settings.storage or beside.render_as_string(hide_password=False)
        self.higher = direction == "maximize"
        self._database = open_storage(self.url, stay_connected=True)
        # remembers trials that have ended
        self._storage = get_storage(self._database)
        self._begun: dict[int, int] = {}
        self._signs: dict[int, tuple[Any, float]] = {}
        self._next_beat = 0.0
        with reached(self.url):
            # a folder may have been renamed or copied since
            alone = [] if settings.storage else optuna.get_all_study_names(self._storage)
            self.name = settings.study or name or (alone[0] if len(alone) == 1 else folder.absolute().name)
            wanted = StudyDirection.MAXIMIZE if self.higher else StudyDirection.MINIMIZE
            study = optuna.create_study(
                storage=self._storage, study_name=self.name, direction=wanted, load_if_exists=True
            )
            self._id = self._storage.get_study_id_from_name(self.name)
            self._require_same(study, direction)

    def _require_same(self, study: optuna.Study, direction: str) -> None:
        common = sorted(override for override in self.fixed if not override.startswith(MAY_DIFFER))
        facts = {
            "direction": direction,
            "metric": self.metric,
            "sampler": self.settings.sampler,
            "params": {key: json.loads(distribution_to_json(values)) for key, values in sorted(self.space.items())},
            "overrides": common,
        }
        if "search" not in study.user_attrs:
            study.set_user_attr("search", facts)
        found = {**study.user_attrs["search"], "direction": study.direction.name.lower()}
        for key, value in facts.items():
            if found.get(key) != value:
                name = "overrides" if key == "overrides" else f"hydra.sweeper.{key}"
                raise ConfigError(
                    f"{name}: the study {self.name} was begun with {_difference(found.get(key), value)}; "
                    "give the same, or another hydra.sweeper.study"
                )

    def ask(self) -> tuple[int, list[str]] | None:
        """Claim a place: the number of its trial, and the overrides of its point.

        Returns:
            None where all places are held. One may become free again as long as :meth:`remaining` is not 0.
        """
        with reached(self.url):
            while (vacant := self._vacant()) is not None:
                if (number := self._claim(*vacant)) is not None:
                    return number, [*self.fixed, *self._draw(number, vacant[0])]
            return None

    def _vacant(self) -> tuple[int, Mapping[str, Any]] | None:
        """The first place that is free, and the values that a trial had there which was given up."""
        trials = self._trials()
        holders = _holders(trials)
        place = next((place for place in range(self.size) if place not in holders), None)
        if place is None:
            return None
        before = (trial.params for trial in reversed(trials) if trial.user_attrs.get("place") == place and trial.params)
        return place, next(before, {} if self.cells is None else self.cells[place])

    def _claim(self, place: int, values: Mapping[str, Any]) -> int | None:
        trial = create_trial(
            state=TrialState.RUNNING,
            params=dict(values),
            distributions={key: self.space[key] for key in values},
            user_attrs={"place": place},
        )
        identity = self._storage.create_new_trial(self._id, trial)
        number = self._storage.get_trial_number_from_id(identity)
        holder = _holders(self._trials()).get(place)
        if holder is not None and holder.number == number:
            self._begun[number] = identity
            return number
        self._give_up(identity)
        return None

    def _draw(self, number: int, place: int) -> Iterator[str]:
        study = optuna.load_study(study_name=self.name, storage=self._storage, sampler=self._sampler(place))
        trial = Trial(study, self._begun[number])
        for key, distribution in self.space.items():
            yield f"{key}={suggested(trial, key, distribution)}"

    def _sampler(self, place: int) -> BaseSampler:
        seed = fold(self.settings.seed, place) % 2**32
        if self.settings.sampler == "tpe":
            return TPESampler(seed=seed, n_startup_trials=self.settings.startup_trials)
        return RandomSampler(seed=seed)

    def tell(self, number: int, status: str, value: float | None, reason: str = "") -> None:
        """What became of a trial; nothing happens if that was told before, or another process has begun it anew.

        Args:
            number: of the trial.
            status: finished, pruned, failed, diverged, timeout, or interrupted, after which :meth:`again` may go on.
            value: of the measure; a point that finished without one counts as failed.
            reason: why it did not finish.
        """
        identity = self._begun.pop(number, None)
        if status == "interrupted":
            return
        if status == "finished" and (value is None or not math.isfinite(value)):
            status, reason = "failed", f"its {self.metric} is {format_value(value)}"
        # of a study that is not the one it was, nothing is known
        with reached(self.url), suppress(UpdateFinishedTrialError, KeyError):
            identity = self._identity(number) if identity is None else identity
            if status == "finished":
                assert value is not None
                self._storage.set_trial_state_values(identity, TrialState.COMPLETE, [value])
            elif status == "pruned":
                curve = self._storage.get_trial(identity).intermediate_values
                last = [curve[max(curve)]] if curve else None
                self._storage.set_trial_user_attr(identity, "reason", reason)
                self._storage.set_trial_state_values(identity, TrialState.PRUNED, last)
            else:
                self._storage.set_trial_user_attr(identity, "reason", reason)
                # before the state, or the place would be free for a moment
                self._storage.set_trial_user_attr(identity, "status", status)
                self._storage.set_trial_state_values(identity, TrialState.FAIL)

    def again(self, number: int) -> bool:
        """Whether this process may go on with a trial of its sweep, which another one may have begun anew."""
        with reached(self.url):
            try:
                identity = self._identity(number)
                self._give_sign(identity)
            except (KeyError, UpdateFinishedTrialError):
                return False
        self._begun[number] = identity
        return True

    def beat(self) -> None:
        """Give a sign of life for the trials under way here, and give up those of others that give none; when due."""
        now = time.monotonic()
        if now < self._next_beat:
            return
        self._next_beat = now + self.settings.heartbeat_s
        with reached(self.url):
            for number, identity in [*self._begun.items()]:
                try:
                    self._give_sign(identity)
                except UpdateFinishedTrialError:
                    del self._begun[number]
            for trial in self._trials():
                if trial.state == TrialState.RUNNING and trial.number not in self._begun:
                    self._watch(trial, now)

    def _watch(self, trial: FrozenTrial, now: float) -> None:
        # clocks of machines differ: what counts is for how long nothing has changed by the clock of this one
        sign = trial.user_attrs.get("beat")
        seen, since = self._signs.get(trial.number, (None, None))
        if since is None or sign != seen:
            self._signs[trial.number] = (sign, now)
        elif now - since > self.settings.grace_s:
            self._give_up(self._identity(trial.number))

    def _give_sign(self, identity: int) -> None:
        self._storage.set_trial_user_attr(identity, "beat", time.time())

    def _give_up(self, identity: int) -> None:
        with suppress(UpdateFinishedTrialError):
            self._storage.set_trial_state_values(identity, TrialState.FAIL)

    def remaining(self) -> int:
        """How many places have no trial yet that has ended, here or elsewhere; the study is done at 0."""
        with reached(self.url):
            holders = _holders(self._trials())
        return self.size - sum(trial.state.is_finished() for place, trial in holders.items() if place < self.size)

    def best(self) -> tuple[int, float] | None:
        """Number and value of the best trial that finished; of equals the first."""
        with reached(self.url):
            values = [
                (trial.number, float(trial.values[0])) for trial in self._trials() if trial.state == TrialState.COMPLETE
            ]
        return (max if self.higher else min)(values, key=lambda pair: pair[1], default=None)

    def overrides_of(self, number: int) -> list[str]:
        """The overrides of the point of a trial."""
        with reached(self.url):
            trial = self._storage.get_trial(self._identity(number))
        return [*self.fixed, *(f"{key}={typed(trial.params[key], values)}" for key, values in self.space.items())]

    def close(self) -> None:
        """Leave the database."""
        close(self._database)

    def address_of(self, number: int) -> dict[str, Any]:
        """The arguments of :class:`~snnexp.sweeps.pruning.Pruning` for a trial; the URL may hold a password."""
        return {
            "storage": self.url,
            "study": self.name,
            "trial": number,
            "metric": self.metric,
            "startup_trials": self.settings.startup_trials,
            "warmup_epochs": self.settings.warmup_epochs,
        }

    def _trials(self) -> list[FrozenTrial]:
        return self._storage.get_all_trials(self._id, deepcopy=False)

    def _identity(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._id, number)


def _holders(trials: Sequence[FrozenTrial]) -> dict[int, FrozenTrial]:
    """Who holds each place, of trials in the order of their numbers."""
    holders: dict[int, FrozenTrial] = {}
    for trial in trials:
        if "place" in trial.user_attrs and (trial.state != TrialState.FAIL or "status" in trial.user_attrs):
            holders.setdefault(trial.user_attrs["place"], trial)
    return holders


def _difference(before: Any, now: Any) -> str:
    """What differs, as short as it can be said."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        return f"other values of {', '.join(keys)}"
    if isinstance(before, list):
        return format_value(" ".join(sorted({*before} ^ {*now})))
    return format_value(before)
