"""Sources of the points of a sweep: a list, or a study."""

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
from snnexp.search.space import Space, bounds
from snnexp.search.space import space as parse_space
from snnexp.search.study import Search, read_metric
from snnexp.sweeps.ledger import TAKEN_OVER, Ledger, Point
from snnexp.sweeps.slots import Job
from snnexp.terminal import relative_to_cwd, warn


class ListSource:
    """A list of jobs."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = list(jobs)

    def next(self) -> Job | None:
        if not self.jobs:
            return None
        job = self.jobs.pop(0)
        for point in job:
            # a failed point of a resumed sweep is retried
            point.status = "pending"
        return job

    def ended(self, point: Point) -> None:
        """Do nothing: the other points do not depend on it."""

    def tick(self) -> bool:
        return bool(self.jobs)

    def requeue(self, point: Point) -> None:
        self.jobs.append(Job([point]))


@dataclass
class SearchRequest:
    """The definition of a search, saved in the ledger so that it can be resumed.

    Args:
        settings: settings of ``hydra/sweeper=optuna``.
        params: ``params`` of the sweeper.
        overrides: overrides from the command line, without those of the ``hydra`` node.
        composer: composes the configs of the points.
        study: name of the study, once it exists.
    """

    settings: Mapping[str, Any]
    params: Mapping[str, Any]
    overrides: Sequence[str]
    composer: config.Composer
    study: str | None = None

    @classmethod
    def from_record(cls, record: Any, changes: Mapping[str, Any]) -> "SearchRequest":
        """Restore a request from :meth:`to_record`.

        Args:
            record: the record.
            changes: settings that replace those of the record.

        Raises:
            ConfigError: the record is invalid, or the search used a database, whose URL is not recorded.
        """
        try:
            settings, params, overrides = (
                {**record["settings"], **changes},
                dict(record["params"]),
                [*record["overrides"]],
            )
            composer = config.Composer(parse_folders(record["folder"]))
            elsewhere = record["elsewhere"] and "storage" not in changes
            study = record.get("study")
            if not isinstance(study, str | None):
                raise TypeError(study)
        except (TypeError, ValueError, LookupError) as error:
            raise ConfigError("search: its record in sweep.json is invalid") from error
        if record["settings"].get("storage") is not None:
            raise ConfigError(f"{storage.KEY}: set in sweep.json, but must be set on the command line")
        if elsewhere:
            raise ConfigError(f"{storage.KEY}: the URL of the study's database is not recorded; add {storage.KEY}=URL")
        request = cls({"storage": None, **settings}, params, overrides, composer, study)
        # the record is untrusted: only the command line may request a download
        searched = any("data.download" in word for word in (*overrides, *params))
        if searched or any(config.downloads(composer.point(end)[0]) for end in request.corners()):
            request.overrides = [*overrides, "data.download=false"]
        return request

    def to_record(self) -> dict[str, Any]:
        """Return a record for sweep.json, with absolute paths and without the URL of a database."""
        settings = {key: value for key, value in self.settings.items() if key != "storage"}
        return {
            "settings": settings,
            "params": dict(self.params),
            "overrides": [*self.overrides],
            "folder": serialize_folders(self.composer.folders),
            "elsewhere": self.settings.get("storage") is not None,
            "study": self.study,
        }

    def pin_metric(self) -> str | None:
        """Set the metric of a search of an earlier version, which did not record it.

        Returns:
            The metric, or None if it was recorded.
        """
        if self.settings.get("metric") is not None:
            return None
        first = self.composed[0]
        metric = main_measure(first, "val" if first["data"].get("val_size") else "test")
        self.settings = {**self.settings, "metric": metric}
        return metric

    def space(self) -> tuple[Settings, list[str], Space]:
        """Return the settings, the fixed overrides, and the search space.

        Raises:
            ConfigError: one of them is invalid.
        """
        try:
            settings = Settings(**self.settings)
        except TypeError as error:
            raise ConfigError(f"hydra.sweeper: {str(error).rpartition('() ')[2]}") from error
        fixed, space = parse_space(
            self.overrides, self.params, lambda fixed: config.plain(self.composer.point(fixed)[0])
        )
        return settings, fixed, space

    def compose(self, overrides: Sequence[str]) -> dict[str, Any]:
        """Compose and check the config of a point."""
        return config.plain(config.check(self.composer.point(overrides)[0]))

    @cached_property
    def checked(self) -> dict[str, Any]:
        """The config of one corner of the space, after all corners and the objective were checked.

        Raises:
            ConfigError: a corner or the objective is invalid.
        """
        objective(self.space()[0], self.composed[0])
        return self.composed[0]

    @cached_property
    def composed(self) -> list[dict[str, Any]]:
        """The configs of all corners of the space."""
        return [self.compose(corner) for corner in self.corners()]

    def corners(self) -> list[list[str]]:
        """Return the overrides of points that together cover the bounds and choices of all keys."""
        _, fixed, space = self.space()
        by_key = {key: bounds(distribution) for key, distribution in space.items()}
        count = max(map(len, by_key.values()))
        return [
            [*fixed, *(f"{key}={values[min(index, len(values) - 1)]}" for key, values in by_key.items())]
            for index in range(count)
        ]


class StudySource:
    """Points chosen by a study when a slot becomes free.

    Args:
        ledger: record of the sweep.
        request: the search.
        max_members: maximum number of points per job.
        group: groups points into jobs.
    """

    every_s = 1.0
    """Interval at which the study is polled for free places."""

    def __init__(self, ledger: Ledger, request: SearchRequest, max_members: int, group: Any) -> None:
        settings, fixed, space = request.space()
        self.ledger, self.request, self.max_members, self.group = ledger, request, max_members, group
        self.metric, self.direction = objective(settings, request.checked)
        self.study = Search(settings, fixed, space, ledger.path, self.metric, self.direction, request.study)
        request.study = self.study.name
        request.settings = {**request.settings, "metric": self.metric, "direction": self.direction}
        ledger.search = request.to_record()
        self.prune = settings.prune
        self.left = [point for point in ledger.points if not point.done and point.status in UNDER_WAY]
        self.jobs: list[Job] = []
        self.unreported: list[Point] = []
        self.polled_at = 0.0
        self.unreachable_since: float | None = None
        self.more = True
        self.unmeasured: UnmeasuredError | None = None
        for point in ledger.points:
            if point.trial is not None and point not in self.left:
                # a driver that was killed may not have reported it
                self.ended(point)

    def next(self) -> Job | None:
        if not self.jobs:
            # resume all members of an interrupted stack together
            size = max(self.max_members, len(self.left))
            points = list(itertools.islice(iter(lambda: self._try(self._point), None), size))
            failed = [Job([point]) for point in points if point.status == "failed"]
            valid = [point for point in points if point.status != "failed"]
            self.jobs = [*failed, *(self.group(valid) if valid else [])]
        return self.jobs.pop(0) if self.jobs else None

    def _point(self) -> Point | None:
        while self.left:
            point = self.left[0]
            if point.trial is None or not self.study.reclaim(point.trial):
                point.status, point.reason = "failed", TAKEN_OVER
            return self.left.pop(0)
        if not self.more or (trial := self.study.ask()) is None:
            self.more = False
            return None
        number, overrides = trial
        try:
            return self.ledger.add(overrides, self.request.compose(overrides), number)
        except ConfigError as error:
            point = self.ledger.add(overrides, {}, number)
            point.status, point.reason, point.exit_code = describe_failure(error)
            return point

    def ended(self, point: Point) -> None:
        self.unreported.append(point)
        self._try(self._report)

    def _report(self) -> None:
        while self.unreported:
            point = self.unreported[0]
            if point.trial is not None and point.status not in UNDER_WAY and point.reason != TAKEN_OVER:
                value = point.metrics.get(self.metric)
                if value is None and point.status == "finished":
                    value = read_metric(self.ledger.path / point.run, self.metric)
                if value is None and point.status == "finished":
                    # no other point will have the metric either, so stop the search
                    missing = f"has no {self.metric}, there are {_metric_list(point.metrics)}"
                    point.status, point.reason = "failed", f"it {missing}"
                    self.unmeasured = UnmeasuredError(f"hydra.sweeper.metric: a point {missing}")
                self.study.tell(point.trial, point.status, value, point.reason)
            self.unreported.pop(0)
        self.polled_at = 0.0

    def tick(self) -> bool:
        if self.unmeasured is not None:
            raise self.unmeasured
        if time.monotonic() - self.polled_at >= self.every_s:
            self.polled_at = time.monotonic()
            self._try(self._poll)
        return bool(self.more or self.left or self.jobs or self.unreported)

    def _poll(self) -> None:
        self._report()
        self.study.heartbeat()
        self.polled_at, self.more = time.monotonic(), self.study.remaining() > 0

    def _try(self, action: Callable[[], Any]) -> Any:
        """Call ``action``. Return None while the database is unreachable, for example while it restarts."""
        try:
            result = action()
        except ConfigError as error:
            now = time.monotonic()
            if self.unreachable_since is None:
                self.unreachable_since = now
                warn(f"{error}; running points continue, retrying for {RETRY_S:g} s")
            elif now - self.unreachable_since > RETRY_S:
                raise
            return None
        self.unreachable_since = None
        return result

    def requeue(self, point: Point) -> None:
        self.jobs.append(Job([point]))

    def pruning_arguments(self, point: Point) -> dict[str, Any]:
        """Return the pruning arguments of a point."""
        assert point.trial is not None
        return self.study.pruning_arguments(point.trial)

    def write_best(self) -> tuple[str, float] | None:
        """Write the best point as an experiment. Return the command that trains it, and its value of the metric."""
        best = self.study.best()
        if best is None:
            return None
        number, value = best
        overrides = self.study.overrides_of(number)
        folders = self.request.composer.folders
        cfg, node = config.compose_unchecked(overrides, folders)
        conf, checked = self.ledger.path / "conf", config.plain(config.check(cfg))
        about = f"{self.metric} {value:.4g}, trial {number} of {self.study.name}: {' '.join(overrides)}"
        path, choices = conf / "experiment" / "best.yaml", node["runtime"]["choices"]
        write_best(path, checked, choices, about, folders)
        return config.command(["experiment=best"], checked, [relative_to_cwd(conf)]), value

    def close(self) -> None:
        """Close the study."""
        self.study.close()


def _metric_list(metrics: Mapping[str, float]) -> str:
    """List the metrics of a point, except those of single layers."""
    return ", ".join(name for name in metrics if not is_layer_metric(name)) or "none"


UNDER_WAY = ("pending", "running", "interrupted")
"""Statuses of a point of a study that can be resumed. A failed point is not: it keeps its place."""


RETRY_S = 60.0
"""How long an unreachable database is retried."""


def deduplicated(
    points: Sequence[tuple[Sequence[str], Mapping[str, Any]]],
) -> list[tuple[Sequence[str], Mapping[str, Any]]]:
    """Return the points without those whose config equals that of an earlier one."""
    unique: dict[str, tuple[Sequence[str], Mapping[str, Any]]] = {}
    for point in points:
        unique.setdefault(json.dumps(_canonical(point[1])), point)
    return [*unique.values()]


def _canonical(value: Any) -> Any:
    """Convert integral floats to int: 1 and 1.0 give the same run."""
    if isinstance(value, Mapping):
        return {key: _canonical(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_canonical(entry) for entry in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
