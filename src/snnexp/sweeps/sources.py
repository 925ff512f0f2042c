"""Where the points of a sweep come from: a list, or a search; and what is known of them."""

import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from snnexp import config
from snnexp.errors import ConfigError, UnmeasuredError, describe_failure
from snnexp.record.measures import is_layer_metric
from snnexp.record.origin import parse_folders, serialize_folders
from snnexp.search import storage
from snnexp.search.best import write_best
from snnexp.search.settings import Settings, main_measure, objective
from snnexp.search.space import Space
from snnexp.search.space import ends as ends_of
from snnexp.search.space import space as space_of
from snnexp.search.study import Search, measured
from snnexp.sweeps.ledger import TAKEN_OVER, Ledger, Point
from snnexp.sweeps.slots import Job
from snnexp.terminal import relative_to_cwd, warn


class Listed:
    """Points that are known from the start, as jobs."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = list(jobs)

    def next(self) -> Job | None:
        if not self.jobs:
            return None
        job = self.jobs.pop(0)
        for point in job:
            # one that failed before the sweep was resumed is tried again
            point.status = "pending"
        return job

    def ended(self, point: Point) -> None:
        """Nothing follows from it."""

    def tick(self) -> bool:
        return bool(self.jobs)

    def put_back(self, point: Point) -> None:
        self.jobs.append(Job([point]))


@dataclass
class Asked:
    """What a search was asked for; kept in the ledger, so that it can go on.

    Args:
        settings: of ``hydra/sweeper=optuna``.
        params: what they search.
        overrides: what was typed, less Hydra's own.
        composer: of its points.
        study: the name of the study, once it has been begun.
    """

    settings: Mapping[str, Any]
    params: Mapping[str, Any]
    overrides: Sequence[str]
    composer: config.Composer
    study: str | None = None

    @classmethod
    def of(cls, facts: Any, changes: Mapping[str, Any]) -> "Asked":
        """What :meth:`facts` has kept, with other settings where they were given again.

        Raises:
            ConfigError: the search was in a database, whose URL is not kept, or what was kept cannot be.
        """
        try:
            settings, params, overrides = {**facts["settings"], **changes}, dict(facts["params"]), [*facts["overrides"]]
            composer = config.Composer(parse_folders(facts["folder"]))
            elsewhere = facts["elsewhere"] and "storage" not in changes
            study = facts.get("study")
            if not isinstance(study, str | None):
                raise TypeError(study)
        except (TypeError, ValueError, LookupError) as error:
            raise ConfigError("search: what the ledger says of it cannot be") from error
        if facts["settings"].get("storage") is not None:
            raise ConfigError(f"{storage.KEY}: sweep.json names a database, only the command line may")
        if elsewhere:
            raise ConfigError(f"{storage.KEY}: the URL of the study's database was not kept; add {storage.KEY}=URL")
        asked = cls({"storage": None, **settings}, params, overrides, composer, study)
        # as of a run, a saved config may come from elsewhere, and downloads only where that is typed
        searched = any("data.download" in word for word in (*overrides, *params))
        if searched or any(config.downloads(composer.point(end)[0]) for end in asked.ends()):
            asked.overrides = [*overrides, "data.download=false"]
        return asked

    def facts(self) -> dict[str, Any]:
        """What can be read by anybody, and goes on in any folder: without the URL of a database."""
        settings = {key: value for key, value in self.settings.items() if key != "storage"}
        return {
            "settings": settings,
            "params": dict(self.params),
            "overrides": [*self.overrides],
            "folder": serialize_folders(self.composer.folders),
            "elsewhere": self.settings.get("storage") is not None,
            "study": self.study,
        }

    def keep_measure(self) -> str | None:
        """Let a search of an earlier version keep the metric that it was started with; None where it is recorded.

        Returns:
            The measure.
        """
        if self.settings.get("metric") is not None:
            return None
        first = self.composed[0]
        metric = main_measure(first, "val" if first["data"].get("val_size") else "test")
        self.settings = {**self.settings, "metric": metric}
        return metric

    def space(self) -> tuple[Settings, list[str], Space]:
        """The settings, what all points share, and what is searched.

        Raises:
            ConfigError: one of them cannot work.
        """
        try:
            settings = Settings(**self.settings)
        except TypeError as error:
            raise ConfigError(f"hydra.sweeper: {str(error).rpartition('() ')[2]}") from error
        fixed, space = space_of(self.overrides, self.params, lambda fixed: config.plain(self.composer.point(fixed)[0]))
        return settings, fixed, space

    def compose(self, overrides: Sequence[str]) -> dict[str, Any]:
        """The config of a point."""
        return config.plain(config.check(self.composer.point(overrides)[0]))

    @cached_property
    def checked(self) -> dict[str, Any]:
        """The config of a point, after those at all ends of the space have been looked at.

        Raises:
            ConfigError: one of them cannot work, or there is nothing to search by.
        """
        objective(self.space()[0], self.composed[0])
        return self.composed[0]

    @cached_property
    def composed(self) -> list[dict[str, Any]]:
        """The configs of the points at all ends of the space."""
        return [self.compose(end) for end in self.ends()]

    def ends(self) -> list[list[str]]:
        """Points that together have all ends of the space."""
        _, fixed, space = self.space()
        ends = {key: ends_of(distribution) for key, distribution in space.items()}
        most = max(map(len, ends.values()))
        return [
            [*fixed, *(f"{key}={values[min(index, len(values) - 1)]}" for key, values in ends.items())]
            for index in range(most)
        ]


class Searched:
    """Points that a study chooses, one after the other, as slots become free.

    Args:
        ledger: where they are noted.
        asked: what was asked for.
        together: how many points make a job at most.
        group: points as jobs.
    """

    every_s = 1.0
    """How often the study is asked whether there is more to do."""

    def __init__(self, ledger: Ledger, asked: Asked, together: int, group: Any) -> None:
        settings, fixed, space = asked.space()
        self.ledger, self.asked, self.together, self.group = ledger, asked, together, group
        self.metric, self.direction = objective(settings, asked.checked)
        self.study = Search(settings, fixed, space, ledger.path, self.metric, self.direction, asked.study)
        asked.study = self.study.name
        asked.settings = {**asked.settings, "metric": self.metric, "direction": self.direction}
        ledger.search = asked.facts()
        self.prune = settings.prune
        self.left = [point for point in ledger.points if not point.done and point.status in UNDER_WAY]
        self.jobs: list[Job] = []
        self.untold: list[Point] = []
        self.asked_at = 0.0
        self.lost_at: float | None = None
        self.more = True
        self.unmeasured: UnmeasuredError | None = None
        for point in ledger.points:
            if point.trial is not None and point not in self.left:
                # a driver that was killed may not have told
                self.ended(point)

    def next(self) -> Job | None:
        if not self.jobs:
            # a stack that was stopped is not divided
            most = max(self.together, len(self.left))
            found = list(itertools.islice(iter(lambda: self._reach(self._point), None), most))
            refused = [Job([point]) for point in found if point.status == "failed"]
            left = [point for point in found if point.status != "failed"]
            self.jobs = [*refused, *(self.group(left) if left else [])]
        return self.jobs.pop(0) if self.jobs else None

    def _point(self) -> Point | None:
        while self.left:
            point = self.left[0]
            if point.trial is None or not self.study.again(point.trial):
                point.status, point.reason = "failed", TAKEN_OVER
            return self.left.pop(0)
        if not self.more or (given := self.study.ask()) is None:
            self.more = False
            return None
        number, overrides = given
        try:
            return self.ledger.add(overrides, self.asked.compose(overrides), number)
        except ConfigError as error:
            point = self.ledger.add(overrides, {}, number)
            point.status, point.reason, point.exit_code = describe_failure(error)
            return point

    def ended(self, point: Point) -> None:
        self.untold.append(point)
        self._reach(self._tell)

    def _tell(self) -> None:
        while self.untold:
            point = self.untold[0]
            if point.trial is not None and point.status not in UNDER_WAY and point.reason != TAKEN_OVER:
                value = point.metrics.get(self.metric)
                if value is None and point.status == "finished":
                    value = measured(self.ledger.path / point.run, self.metric)
                if value is None and point.status == "finished":
                    # no other point will have it either
                    point.status, point.reason = (
                        "failed",
                        f"it has no {self.metric}, there are {_listed(point.metrics)}",
                    )
                    self.unmeasured = UnmeasuredError(
                        f"hydra.sweeper.metric: a point {point.reason.removeprefix('it ')}"
                    )
                self.study.tell(point.trial, point.status, value, point.reason)
            self.untold.pop(0)
        self.asked_at = 0.0

    def tick(self) -> bool:
        if self.unmeasured is not None:
            raise self.unmeasured
        if time.monotonic() - self.asked_at >= self.every_s:
            self.asked_at = time.monotonic()
            self._reach(self._look)
        return bool(self.more or self.left or self.jobs or self.untold)

    def _look(self) -> None:
        self._tell()
        self.study.beat()
        self.asked_at, self.more = time.monotonic(), self.study.remaining() > 0

    def _reach(self, act: Callable[[], Any]) -> Any:
        """Ask the study; None while it cannot be reached, as a database that is started again."""
        try:
            found = act()
        except ConfigError as error:
            now = time.monotonic()
            if self.lost_at is None:
                self.lost_at = now
                warn(f"{error}; points go on, and it is tried again for {PATIENCE_S:g} s")
            elif now - self.lost_at > PATIENCE_S:
                raise
            return None
        self.lost_at = None
        return found

    def put_back(self, point: Point) -> None:
        self.jobs.append(Job([point]))

    def pruned(self, point: Point) -> dict[str, Any]:
        """What a run needs to be given up early."""
        assert point.trial is not None
        return self.study.address_of(point.trial)

    def write_best(self) -> tuple[str, float] | None:
        """Write the best point of the study as an experiment; returns the command that trains it, and its measure."""
        best = self.study.best()
        if best is None:
            return None
        number, value = best
        overrides = self.study.overrides_of(number)
        folders = self.asked.composer.folders
        cfg, node = config.compose_unchecked(overrides, folders)
        conf, checked = self.ledger.path / "conf", config.plain(config.check(cfg))
        about = f"{self.metric} {value:.4g}, trial {number} of {self.study.name}: {' '.join(overrides)}"
        path, choices = conf / "experiment" / "best.yaml", node["runtime"]["choices"]
        write_best(path, checked, choices, about, folders)
        return config.command(["experiment=best"], checked, [relative_to_cwd(conf)]), value

    def close(self) -> None:
        """Leave the study."""
        self.study.close()


def _listed(metrics: Mapping[str, float]) -> str:
    """The measures that a point has, without those of single layers."""
    return ", ".join(name for name in metrics if not is_layer_metric(name)) or "none"


UNDER_WAY = ("pending", "running", "interrupted")
"""What a point of a study may be that can still be resumed; one that failed keeps its place."""


PATIENCE_S = 60.0
"""For how long a study may be out of reach."""


def single(points: Sequence[tuple[Sequence[str], Mapping[str, Any]]]) -> list[tuple[Sequence[str], Mapping[str, Any]]]:
    """Points without those that ask for the same as one before."""
    found: dict[str, tuple[Sequence[str], Mapping[str, Any]]] = {}
    for point in points:
        found.setdefault(json.dumps(_plainer(point[1])), point)
    return [*found.values()]


def _plainer(value: Any) -> Any:
    """``value`` with whole numbers written in one way: 1 and 1.0 make the same run."""
    if isinstance(value, Mapping):
        return {key: _plainer(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plainer(entry) for entry in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
