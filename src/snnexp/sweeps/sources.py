"""Where the points of a sweep come from: a list, or a search; and what is known of them."""

import itertools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snnexp import config
from snnexp.errors import ConfigError, SnnexpError
from snnexp.sweeps import search, storage
from snnexp.sweeps.engine import Job
from snnexp.sweeps.ledger import Ledger, Point


class Listed:
    """Points that are known from the start, as jobs."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = list(jobs)

    def next(self) -> Job | None:
        return self.jobs.pop(0) if self.jobs else None

    def ended(self, point: Point) -> None:
        """Nothing follows from it."""

    def tick(self) -> bool:
        return bool(self.jobs)

    def put_back(self, point: Point) -> None:
        self.jobs.append([point])


@dataclass(frozen=True)
class Asked:
    """What a search was asked for; kept in the ledger, so that it can go on.

    Args:
        settings: of ``hydra/sweeper=optuna``.
        params: what they search.
        overrides: what was typed, less Hydra's own.
        folder: more configs, as of ``--config-dir``.
    """

    settings: Mapping[str, Any]
    params: Mapping[str, Any]
    overrides: Sequence[str]
    folder: Path | None

    @classmethod
    def of(cls, facts: Any, url: str | None) -> "Asked":
        """What :meth:`facts` has kept; ``url`` is the storage, if it was given again.

        Raises:
            ConfigError: the storage has a password, which was not kept, or what was kept cannot be.
        """
        try:
            settings, params, overrides = dict(facts["settings"]), dict(facts["params"]), [*facts["overrides"]]
            folder = None if facts["folder"] is None else Path(facts["folder"])
        except (TypeError, ValueError, LookupError) as error:
            raise ConfigError("search: what the ledger says of it cannot be") from error
        if url is not None:
            settings["storage"] = url
        elif facts.get("password"):
            raise ConfigError(f"{storage.KEY}: its password was not kept; give it again: {storage.KEY}=URL")
        return cls(settings, params, overrides, folder)

    def facts(self) -> dict[str, Any]:
        """What can be read by anybody: without a password."""
        url = self.settings.get("storage")
        password = url is not None and storage.parse(url).password is not None
        settings = dict(self.settings) | ({"storage": storage.shown(str(url))} if password else {})
        folder = None if self.folder is None else str(self.folder)
        kept = {"params": dict(self.params), "overrides": [*self.overrides]}
        return {"settings": settings, **kept, "folder": folder, "password": password}

    def space(self) -> tuple[search.Settings, list[str], search.Space]:
        """The settings, what all points share, and what is searched.

        Raises:
            ConfigError: one of them cannot work.
        """
        try:
            settings = search.Settings(**self.settings)
        except TypeError as error:
            raise ConfigError(f"hydra.sweeper: {str(error).rpartition('() ')[2]}") from error
        fixed, space = search.space(self.overrides, self.params)
        return settings, fixed, space

    def compose(self, overrides: Sequence[str]) -> dict[str, Any]:
        """The config of a point."""
        (cfg,) = config.composed_points([overrides], self.folder)
        return config.plain(config.check(cfg))

    def check(self) -> dict[str, Any]:
        """The config of a point, after those at all ends of the space have been looked at.

        Raises:
            ConfigError: one of them cannot work.
        """
        settings, fixed, space = self.space()
        ends = {key: search.ends(distribution) for key, distribution in space.items()}
        most = max(map(len, ends.values()))
        points = [
            [*fixed, *(f"{key}={values[min(index, len(values) - 1)]}" for key, values in ends.items())]
            for index in range(most)
        ]
        checked = [config.plain(config.check(cfg)) for cfg in config.composed_points(points, self.folder)]
        search.objective(settings, checked[0])
        return checked[0]


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
        self.metric, self.direction = search.objective(settings, asked.check())
        self.study = search.Search(settings, fixed, space, ledger.path, self.metric, self.direction)
        self.prune = settings.prune
        self.left = [point for point in ledger.points if not point.done and point.status in UNDER_WAY]
        self.jobs: list[Job] = []
        self.asked_at = 0.0
        self.more = True
        for point in ledger.points:
            if point.trial is not None and point not in self.left:
                # a driver that was killed may not have told
                self.ended(point)

    def next(self) -> Job | None:
        if not self.jobs:
            found = list(itertools.islice(iter(self._point, None), self.together))
            self.jobs = self.group(found) if found else []
        return self.jobs.pop(0) if self.jobs else None

    def _point(self) -> Point | None:
        while self.left:
            point = self.left.pop(0)
            if point.trial is not None and self.study.again(point.trial):
                return point
            point.status, point.reason = "failed", "another process has begun it anew"
        if not self.more or time.monotonic() - self.asked_at < self.every_s:
            return None
        while (given := self.study.ask()) is not None:
            number, overrides = given
            try:
                return self.ledger.add(overrides, self.asked.compose(overrides), number)
            except SnnexpError as error:
                self.study.tell(number, "failed", None, str(error))
                point = self.ledger.add(overrides, {}, number)
                point.status, point.reason, point.exit_code = "failed", str(error), error.exit_code
        self.asked_at = time.monotonic()
        return None

    def ended(self, point: Point) -> None:
        if point.trial is not None and point.status not in UNDER_WAY:
            value = point.metrics.get(self.metric)
            if value is None and point.status == "finished":
                value = search.measured(self.ledger.path / point.run, self.metric)
            self.study.tell(point.trial, point.status, value, point.reason)
        self.asked_at = 0.0

    def tick(self) -> bool:
        self.study.beat()
        if self.left or self.jobs:
            return True
        if time.monotonic() - self.asked_at >= self.every_s:
            self.more = self.study.remaining() > 0
        return self.more

    def put_back(self, point: Point) -> None:
        self.jobs.append([point])

    def pruned(self, point: Point) -> dict[str, Any]:
        """What a run needs to be given up early."""
        assert point.trial is not None
        return self.study.address_of(point.trial)

    def write_best(self) -> tuple[Path, float] | None:
        """Write the best point of the study as an experiment file; returns it and the value of its measure."""
        best = self.study.best()
        if best is None:
            return None
        number, value = best
        overrides = self.study.overrides_of(number)
        cfg, node = config.composed(overrides, self.asked.folder)
        path = self.ledger.path / "conf" / "experiment" / "best.yaml"
        about = f"{self.metric} {value:.4g}, trial {number} of {self.study.name}: {' '.join(overrides)}"
        search.write_best(path, config.plain(config.check(cfg)), node["runtime"]["choices"], about)
        return path, value

    def close(self) -> None:
        """Leave the study."""
        self.study.close()


UNDER_WAY = ("pending", "running", "interrupted")
"""What a point of a study may be that can still be gone on with; one that failed keeps its place."""


def single(points: Sequence[tuple[Sequence[str], Mapping[str, Any]]]) -> list[tuple[Sequence[str], Mapping[str, Any]]]:
    """Points without those that ask for the same as one before."""
    found: dict[str, tuple[Sequence[str], Mapping[str, Any]]] = {}
    for point in points:
        found.setdefault(json.dumps(point[1]), point)
    return [*found.values()]
