"""Settings and objective of a search."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from snnexp.errors import ConfigError, key_prefix
from snnexp.record.measures import higher_is_better
from snnexp.search.storage import parse
from snnexp.spec import parts, rules
from snnexp.spec.annotations import Count, Index, Name, Positive, Seed
from snnexp.spec.checked import check_fields
from snnexp.spec.rules import Facts
from snnexp.spec.values import COUNT
from snnexp.text import format_value


@dataclass(frozen=True)
class Settings:
    """Settings of a search.

    Args:
        n_trials: number of points in the study, over all processes that share it; None for the whole grid.
        sampler: tpe, random or grid.
        metric: the objective; None for the main metric of the validation split.
        direction: minimize or maximize; None for the known direction of the metric.
        seed: seed of the sampler; unused by a grid.
        prune: stop points whose learning curve is worse than the median.
        startup_trials: number of random points; pruning starts after this number has finished.
        warmup_epochs: number of epochs before a point may be pruned.
        storage: URL of a database; None for SQLite in the sweep's directory.
        study: name of the study in the database; None for the id of the sweep. Machines that use the same name share
            the study.
        heartbeat_s: heartbeat interval of a running point, in seconds.
        grace_s: a point without a heartbeat for this time, in seconds, is restarted.

    Raises:
        ConfigError: a value is invalid.
    """

    n_trials: Count | None = 20
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    metric: str | None = None
    direction: Literal["minimize", "maximize"] | None = None
    seed: Seed = 0
    prune: bool = True
    startup_trials: Index = 5
    warmup_epochs: Index = 1
    # not typed as str: an error message would repeat the value, which may contain a password
    storage: Any = None
    study: Name | None = None
    heartbeat_s: Positive = 30.0
    grace_s: Positive = 120.0

    def __post_init__(self) -> None:
        with key_prefix("hydra.sweeper"):
            check_fields(self)
        if self.n_trials is None and self.sampler != "grid":
            raise ConfigError(f"hydra.sweeper.n_trials: got null, must be {COUNT} unless sampler=grid")
        if self.grace_s < 2 * self.heartbeat_s:
            raise ConfigError(f"hydra.sweeper.grace_s: got {self.grace_s:g}, must be at least twice heartbeat_s")
        if self.storage is not None:
            parse(self.storage)


def main_measure(cfg: Mapping[str, Any], split: str) -> str:
    """Return the main metric of a split by the kind of target: accuracy, L1 error, or loss."""
    target = Facts(parts.of(cfg["data"]["_target_"]), cfg["data"]).target
    name = {"labels": "accuracy", "trace": "l1", "values": "l1"}.get(target, "loss")
    return f"{split}/{name}"


def objective(settings: Settings, cfg: Mapping[str, Any]) -> tuple[str, str]:
    """Return the metric of a search, and whether to minimize or maximize it.

    Args:
        settings: settings of the search; values of None are derived from ``cfg``.
        cfg: config of any point.

    Raises:
        ConfigError: there is no validation split, or the direction of the metric is unknown or contradicts the
            settings.
    """
    data = cfg["data"]
    # the splits of user-defined data are unknown until the data are built
    facts = Facts(parts.of(data["_target_"]))
    keys = rules.validation_keys(facts)
    unknown = not parts.is_shipped(data["_target_"], "data") and not any(key in data for key in keys)
    unknown = unknown or facts.splits_in_file is True
    validated = any(data.get(key) for key in keys)
    if not validated and (settings.metric is None or (settings.metric.startswith("val/") and not unknown)):
        reason = f"got {format_value(data.get(keys[0]))}, a search needs a validation split; set it, or"
        if keys[0] not in data:
            reason = "these data have no validation split;"
        if unknown and keys[0] not in data:
            reason = "these data have no such key, so a validation split is not known before they are built;"
        metric = main_measure(cfg, "val" if unknown else "test")
        raise ConfigError(f"data.{keys[0]}: {reason} name the metric, such as hydra.sweeper.metric={metric}")
    metric = settings.metric or main_measure(cfg, "val")
    if not metric.startswith(("train/", "val/", "test/")):
        raise ConfigError(f"hydra.sweeper.metric: got {format_value(metric)}, must begin with train/, val/ or test/")
    known = {name: spec.fact("higher_is_better") for name, spec in parts.measures(cfg).items()}
    higher = higher_is_better(metric, known)
    if settings.direction is None and higher is None:
        raise ConfigError(f"hydra.sweeper.direction: got null, {metric} needs minimize or maximize")
    direction = settings.direction or ("maximize" if higher else "minimize")
    if higher is not None and (direction == "maximize") != higher:
        raise ConfigError(
            f"hydra.sweeper.direction: got {direction}, but a {'higher' if higher else 'lower'} {metric} is better"
        )
    return metric, direction
