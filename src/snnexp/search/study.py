"""A search: an Optuna study chooses the points, in one process or on several machines.

A study has ``n_trials`` places. Each is held by the first trial that claimed it and was not released. Trial numbers
come from the database, so processes that claim the same place agree on its holder. A trial without a heartbeat is
marked as failed without a status, which releases its place; the trial that claims it next has the same parameters. A
trial that failed on its own has a status, and keeps its place.

The parameters of a place depend on the seed, the place, and the trials known at that time.
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
from snnexp.search.space import Space, as_override, grid_points, suggest
from snnexp.search.storage import close, open_storage, translated_errors
from snnexp.seeds import fold
from snnexp.text import format_value

FREE_KEYS = (*config.MAY_CHANGE, "trainer=", "kernel=")
"""Prefixes of overrides that may differ between the processes that share a study."""


def read_metric(run: Path, metric: str) -> float | None:
    """Return a metric of a run from run.json, or else its last value in metrics.jsonl; None if there is none.

    Raises:
        CheckpointError: the record is damaged.
    """
    value = Run(run).read().get("metrics", {}).get(metric)
    if value is None:
        value = next((row[metric] for row in reversed([*Run(run).metrics()]) if row.get(metric) is not None), None)
    return None if value is None else float(value)


class Search:
    """A study as seen by one of the processes that share it; created if it does not exist.

    Args:
        settings: settings of the search.
        fixed: overrides of all points, from :func:`space`.
        space: the search space, from :func:`space`.
        folder: directory of the sweep.
        metric: the objective, see :func:`objective`.
        direction: minimize or maximize.
        name: name of an existing study.

    Raises:
        ConfigError: the storage is unusable, the study was created with other settings, or the space is not a grid.
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
        self.grid_points = grid_points(space) if settings.sampler == "grid" else None
        sizes = [settings.n_trials, None if self.grid_points is None else len(self.grid_points)]
        self.size = min(size for size in sizes if size is not None)
        default = URL.create("sqlite", database=str(folder.absolute() / "study.db"))
        self.url = settings.storage or default.render_as_string(hide_password=False)
        self.higher = direction == "maximize"
        self._database = open_storage(self.url, stay_connected=True)
        # caches finished trials
        self._storage = get_storage(self._database)
        self._running: dict[int, int] = {}
        self._heartbeats: dict[int, tuple[Any, float]] = {}
        self._next_heartbeat = 0.0
        with translated_errors(self.url):
            # the directory may have been renamed or copied since the study was created
            existing = [] if settings.storage else optuna.get_all_study_names(self._storage)
            self.name = settings.study or name or (existing[0] if len(existing) == 1 else folder.absolute().name)
            study = optuna.create_study(
                storage=self._storage,
                study_name=self.name,
                direction=StudyDirection.MAXIMIZE if self.higher else StudyDirection.MINIMIZE,
                load_if_exists=True,
            )
            self._id = self._storage.get_study_id_from_name(self.name)
            self._require_same_study(study, direction)

    def _require_same_study(self, study: optuna.Study, direction: str) -> None:
        common = sorted(override for override in self.fixed if not override.startswith(FREE_KEYS))
        facts = {
            "direction": direction,
            "metric": self.metric,
            "sampler": self.settings.sampler,
            "params": {key: json.loads(distribution_to_json(values)) for key, values in sorted(self.space.items())},
            "overrides": common,
        }
        if "search" not in study.user_attrs:
            study.set_user_attr("search", facts)
        stored = {**study.user_attrs["search"], "direction": study.direction.name.lower()}
        for key, value in facts.items():
            if stored.get(key) != value:
                name = "overrides" if key == "overrides" else f"hydra.sweeper.{key}"
                raise ConfigError(
                    f"{name}: the study {self.name} was created with {_describe_difference(stored.get(key), value)}; "
                    "use the same settings, or another hydra.sweeper.study"
                )

    def ask(self) -> tuple[int, list[str]] | None:
        """Claim a place.

        Returns:
            The number of the trial and the overrides of its point, or None if all places are held. A place may be
            released while :meth:`remaining` is not 0.
        """
        with translated_errors(self.url):
            while (free := self._free_place()) is not None:
                if (number := self._claim(*free)) is not None:
                    return number, [*self.fixed, *self._suggest(number, free[0])]
            return None

    def _free_place(self) -> tuple[int, Mapping[str, Any]] | None:
        """Return the first free place, and the parameters of the last trial released from it, if any."""
        trials = self._trials()
        holders = _place_holders(trials)
        place = next((place for place in range(self.size) if place not in holders), None)
        if place is None:
            return None
        earlier = (t.params for t in reversed(trials) if t.user_attrs.get("place") == place and t.params)
        return place, next(earlier, {} if self.grid_points is None else self.grid_points[place])

    def _claim(self, place: int, values: Mapping[str, Any]) -> int | None:
        trial = create_trial(
            state=TrialState.RUNNING,
            params=dict(values),
            distributions={key: self.space[key] for key in values},
            user_attrs={"place": place},
        )
        trial_id = self._storage.create_new_trial(self._id, trial)
        number = self._storage.get_trial_number_from_id(trial_id)
        holder = _place_holders(self._trials()).get(place)
        if holder is not None and holder.number == number:
            self._running[number] = trial_id
            return number
        self._release(trial_id)
        return None

    def _suggest(self, number: int, place: int) -> Iterator[str]:
        study = optuna.load_study(study_name=self.name, storage=self._storage, sampler=self._sampler(place))
        trial = Trial(study, self._running[number])
        for key, distribution in self.space.items():
            yield f"{key}={suggest(trial, key, distribution)}"

    def _sampler(self, place: int) -> BaseSampler:
        seed = fold(self.settings.seed, place) % 2**32
        if self.settings.sampler == "tpe":
            return TPESampler(seed=seed, n_startup_trials=self.settings.startup_trials)
        return RandomSampler(seed=seed)

    def tell(self, number: int, status: str, value: float | None, reason: str = "") -> None:
        """Report how a trial ended. Do nothing if it was already reported, or restarted by another process.

        Args:
            number: number of the trial.
            status: finished, pruned, failed, diverged, timeout, or interrupted, which :meth:`reclaim` can resume.
            value: value of the metric; a finished point without a finite value counts as failed.
            reason: why the trial did not finish.
        """
        trial_id = self._running.pop(number, None)
        if status == "interrupted":
            return
        if status == "finished" and (value is None or not math.isfinite(value)):
            status, reason = "failed", f"its {self.metric} is {format_value(value)}"
        # KeyError: the study was deleted and created again
        with translated_errors(self.url), suppress(UpdateFinishedTrialError, KeyError):
            trial_id = self._trial_id(number) if trial_id is None else trial_id
            if status == "finished":
                assert value is not None
                self._storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [value])
            elif status == "pruned":
                curve = self._storage.get_trial(trial_id).intermediate_values
                last = [curve[max(curve)]] if curve else None
                self._storage.set_trial_user_attr(trial_id, "reason", reason)
                self._storage.set_trial_state_values(trial_id, TrialState.PRUNED, last)
            else:
                self._storage.set_trial_user_attr(trial_id, "reason", reason)
                # set before the state: a failed trial without a status frees its place
                self._storage.set_trial_user_attr(trial_id, "status", status)
                self._storage.set_trial_state_values(trial_id, TrialState.FAIL)

    def reclaim(self, number: int) -> bool:
        """Take over a trial of this sweep. Return False if it has ended or another process has restarted it."""
        with translated_errors(self.url):
            try:
                trial_id = self._trial_id(number)
                self._send_heartbeat(trial_id)
            except (KeyError, UpdateFinishedTrialError):
                return False
        self._running[number] = trial_id
        return True

    def heartbeat(self) -> None:
        """If the interval has passed, send heartbeats, and release the trials of other processes without one."""
        now = time.monotonic()
        if now < self._next_heartbeat:
            return
        self._next_heartbeat = now + self.settings.heartbeat_s
        with translated_errors(self.url):
            for number, trial_id in [*self._running.items()]:
                try:
                    self._send_heartbeat(trial_id)
                except UpdateFinishedTrialError:
                    del self._running[number]
            for trial in self._trials():
                if trial.state == TrialState.RUNNING and trial.number not in self._running:
                    self._release_if_silent(trial, now)

    def _release_if_silent(self, trial: FrozenTrial, now: float) -> None:
        # the clocks of machines differ, so measure the time since the heartbeat last changed by the local clock
        heartbeat = trial.user_attrs.get("beat")
        last, since = self._heartbeats.get(trial.number, (None, None))
        if since is None or heartbeat != last:
            self._heartbeats[trial.number] = (heartbeat, now)
        elif now - since > self.settings.grace_s:
            self._release(self._trial_id(trial.number))

    def _send_heartbeat(self, trial_id: int) -> None:
        self._storage.set_trial_user_attr(trial_id, "beat", time.time())

    def _release(self, trial_id: int) -> None:
        with suppress(UpdateFinishedTrialError):
            self._storage.set_trial_state_values(trial_id, TrialState.FAIL)

    def remaining(self) -> int:
        """Return the number of places without an ended trial; the study is complete at 0."""
        with translated_errors(self.url):
            holders = _place_holders(self._trials())
        return self.size - sum(trial.state.is_finished() for place, trial in holders.items() if place < self.size)

    def best(self) -> tuple[int, float] | None:
        """Return the number and value of the best finished trial, the first of ties."""
        with translated_errors(self.url):
            values = [
                (trial.number, float(trial.values[0])) for trial in self._trials() if trial.state == TrialState.COMPLETE
            ]
        return (max if self.higher else min)(values, key=lambda pair: pair[1], default=None)

    def overrides_of(self, number: int) -> list[str]:
        """Return the overrides of a trial's point."""
        with translated_errors(self.url):
            trial = self._storage.get_trial(self._trial_id(number))
        return [*self.fixed, *(f"{key}={as_override(trial.params[key], values)}" for key, values in self.space.items())]

    def close(self) -> None:
        """Close the connections to the database."""
        close(self._database)

    def pruning_arguments(self, number: int) -> dict[str, Any]:
        """Return the arguments of :class:`~snnexp.sweeps.pruning.Pruning` for a trial. The URL may hold a password."""
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

    def _trial_id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._id, number)


def _place_holders(trials: Sequence[FrozenTrial]) -> dict[int, FrozenTrial]:
    """Return the trial that holds each place, given all trials in the order of their numbers."""
    holders: dict[int, FrozenTrial] = {}
    for trial in trials:
        if "place" in trial.user_attrs and (trial.state != TrialState.FAIL or "status" in trial.user_attrs):
            holders.setdefault(trial.user_attrs["place"], trial)
    return holders


def _describe_difference(stored: Any, new: Any) -> str:
    if isinstance(stored, dict) and isinstance(new, dict):
        keys = sorted(key for key in stored.keys() | new.keys() if stored.get(key) != new.get(key))
        return f"other values of {', '.join(keys)}"
    if isinstance(stored, list):
        return format_value(" ".join(sorted({*stored} ^ {*new})))
    return format_value(stored)
