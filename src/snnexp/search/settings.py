"""How to search, and what a search goes by."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from snnexp.errors import ConfigError
from snnexp.record.measures import higher_is_better
from snnexp.search.storage import parse
from snnexp.spec import rules
from snnexp.spec.values import COUNT, FLAG, INDEX, NAME, NULL, POSITIVE, SEED, TEXT, Domain, Either, OneOf
from snnexp.text import shown

DIRECTIONS = ("minimize", "maximize")
SETTINGS: dict[str, Domain] = {
    "n_trials": Either(COUNT, NULL),
    "sampler": OneOf("tpe", "random", "grid"),
    "metric": Either(TEXT, NULL),
    "direction": Either(OneOf(*DIRECTIONS), NULL),
    "seed": SEED,
    "prune": FLAG,
    "startup_trials": INDEX,
    "warmup_epochs": INDEX,
    "study": Either(NAME, NULL),
    "heartbeat_s": POSITIVE,
    "grace_s": POSITIVE,
}


@dataclass(frozen=True)
class Settings:
    """How to search.

    Args:
        n_trials: points of the whole study, whoever runs them; None for all that a grid has.
        sampler: tpe, random or grid.
        metric: what is searched by; None for the main measure of the validation split.
        direction: minimize or maximize; None for what the measure is known for.
        seed: of what is drawn; a grid has no use for it.
        prune: whether points whose curve is worse than the median of the others' are stopped.
        startup_trials: how many points are drawn at random, and have to finish before others are judged by them.
        warmup_epochs: after these no point is stopped yet.
        storage: URL of a database; None for SQLite in the sweep's directory.
        study: its name there; None for the sweep's own id. Machines that give the same one share it.
        heartbeat_s: seconds between two signs of life of a point.
        grace_s: seconds without one after which a point is begun anew.

    Raises:
        ConfigError: a value that cannot work.
    """

    n_trials: int | None = 20
    sampler: str = "tpe"
    metric: str | None = None
    direction: str | None = None
    seed: int = 0
    prune: bool = True
    startup_trials: int = 5
    warmup_epochs: int = 1
    storage: str | None = None
    study: str | None = None
    heartbeat_s: float = 30.0
    grace_s: float = 120.0

    def __post_init__(self) -> None:
        for name, domain in SETTINGS.items():
            value = getattr(self, name)
            if value not in domain:
                raise ConfigError(f"hydra.sweeper.{name}: got {shown(value)}, must be {domain}")
        if self.n_trials is None and self.sampler != "grid":
            raise ConfigError(f"hydra.sweeper.n_trials: got null, must be {COUNT}; only a grid ends by itself")
        if self.grace_s < 2 * self.heartbeat_s:
            raise ConfigError(f"hydra.sweeper.grace_s: got {self.grace_s:g}, must be at least twice heartbeat_s")
        if self.storage is not None:
            parse(self.storage)


def main_measure(cfg: Mapping[str, Any], split: str) -> str:
    """The measure of a split that stands for runs on these data: accuracy, L1 error, or loss."""
    known = rules.SHIPPED["data"].get(cfg["data"]["_target_"])
    name = {"labels": "accuracy", "trace": "l1"}.get(known.target if known else "", "loss")
    return f"{split}/{name}"


def objective(settings: Settings, cfg: Mapping[str, Any]) -> tuple[str, str]:
    """What a search goes by: a measure, and whether to minimize or maximize it.

    Args:
        settings: where they leave it open, ``cfg`` decides.
        cfg: the config of any of the points.

    Raises:
        ConfigError: there is no validation split, or the direction of the metric is unknown, or contradicts the one
            that was given.
    """
    data = cfg["data"]
    # what other data hold is not known before they are built
    unknown = data["_target_"] not in rules.SHIPPED["data"] and "val_size" not in data
    validated = bool(data.get("val_size"))
    if not validated and (settings.metric is None or (settings.metric.startswith("val/") and not unknown)):
        reason = "got 0, a search needs a validation split; set it, or"
        if "val_size" not in data:
            reason = "these data have no validation split;"
        metric = main_measure(cfg, "test")
        raise ConfigError(f"data.val_size: {reason} name the metric, such as hydra.sweeper.metric={metric}")
    metric = settings.metric or main_measure(cfg, "val")
    if not metric.startswith(("train/", "val/", "test/")):
        raise ConfigError(f"hydra.sweeper.metric: got {shown(metric)}, must begin with train/, val/ or test/")
    higher = higher_is_better(metric)
    if settings.direction is None and higher is None:
        raise ConfigError(f"hydra.sweeper.direction: got null, {metric} needs minimize or maximize")
    direction = settings.direction or DIRECTIONS[bool(higher)]
    if higher is not None and direction != DIRECTIONS[higher]:
        raise ConfigError(
            f"hydra.sweeper.direction: got {direction}, a {'higher' if higher else 'lower'} {metric} is the better one"
        )
    return metric, direction
