"""Files of earlier versions, turned into today's in memory.

run.json, sweep.json and checkpoints carry ``format``; a file without one has format 1. A node that a config lacks means
what the code of that time did. A file of a newer format is refused.
"""

from collections.abc import Mapping
from typing import Any

from snnexp.errors import CheckpointError
from snnexp.text import format_value

FORMAT = 2
TARGETS = {
    "snnexp.assembly.make_trainer": "snnexp.training.assembly.make_trainer",
    # launchers and sweepers were plugins of Hydra
    **{
        f"hydra_plugins.snnexp_sweeps.{name}": name.lower()
        for name in ("Processes", "Stacked", "Slurm", "Grid", "Optuna")
    },
}
"""What a ``_target_`` of an earlier version is now."""
STATE_KEYS = {
    "ProjectParameters": "projection",
    "QuietLayers": "quiet_layers",
    "EpochLoss": "epoch_loss",
    "SeedMeanLoss": "seed_mean_loss",
    "Checkpoints": "checkpoints",
}
"""By which name the state of a callback is kept now; format 1 had the names of classes."""


SCHEDULE = "optimizer.schedule"
"""The key of the text that chose a schedule; typed, it means ``schedule``."""
SCHEDULED = ("snnexp.optimizers.Adam", "snnexp.optimizers.L2Adam", "snnexp.optimizers.SGD")
"""Optimisers that had an argument ``schedule``, a text, and the one that ``adam`` is today."""
SCHEDULES = {"constant": "snnexp.schedules.Constant", "cosine": "snnexp.schedules.Cosine"}
"""What that text is now, as the ``_target_`` of the node ``schedule``."""


def require_known(content: Mapping[str, Any], name: object) -> None:
    """Raise :class:`CheckpointError` for a file of a newer format, or with an invalid format.

    Args:
        content: of the file.
        name: of the file, for the sentence.
    """
    found = content.get("format", 1)
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise CheckpointError(f"{name}: damaged, its format is {format_value(found)}")
    if found > FORMAT:
        raise CheckpointError(f"{name}: format {found} is of a newer snnexp, this one reads up to {FORMAT}; update it")


def config(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a run, as today's code reads it."""
    upgraded = with_schedule(with_targets(plain))
    if "optimizer" in upgraded:
        # where it has none, its optimiser decided
        upgraded.setdefault("schedule", {"_target_": SCHEDULES["constant"]})
    trainer = upgraded.get("trainer")
    if isinstance(trainer, dict) and "limit_batches" in trainer:
        # it limited the test as well
        trainer.setdefault("limit_test_batches", trainer["limit_batches"])
    if isinstance(trainer, dict) and trainer.get("_target_") == "snnexp.training.assembly.make_trainer":
        trainer.setdefault("threads", None)
        trainer.setdefault("early_stopping", None)
        trainer.setdefault("gradient_clip", None)
        trainer.setdefault("accumulate", 1)
    data = upgraded.get("data")
    if isinstance(data, dict):
        # inputs of 0 and 1 counted as values
        data.setdefault("spikes", False)
    logger = upgraded.get("logger")
    if isinstance(logger, dict):
        # nothing was drawn
        for key in ("draw_every_n_epochs", "draw_every_s"):
            logger.setdefault(key, 0)
        for key in ("csv", "predictions", "test_every_epoch"):
            logger.setdefault(key, False)
        logger.setdefault("also", {})
        logger.setdefault("keep", "all")
    return upgraded


def with_targets(node: Any) -> Any:
    """A copy in which every ``_target_`` that has moved is at its new place."""
    if isinstance(node, Mapping):
        return {
            key: TARGETS.get(value, value) if _is_target(key, value) else with_targets(value)
            for key, value in node.items()
        }
    return [with_targets(value) for value in node] if isinstance(node, list) else node


def with_schedule(plain: Mapping[str, Any]) -> dict[str, Any]:
    """A config in which the schedule is a node of its own, and no text of the optimiser."""
    optimizer = plain.get("optimizer")
    if not isinstance(optimizer, Mapping) or optimizer.get("_target_") not in SCHEDULED:
        return {**plain}
    text = optimizer.get("schedule")
    if not isinstance(text, str) or text not in SCHEDULES:
        return {**plain}
    rest = {key: value for key, value in optimizer.items() if key != "schedule"}
    # behind the optimiser, as today
    changed = {"optimizer": rest, "schedule": {"_target_": SCHEDULES[text]}}
    nodes = [(name, node) for name, node in plain.items() if name != "schedule"]
    parts = (changed if name == "optimizer" else {name: node} for name, node in nodes)
    return {key: node for part in parts for key, node in part.items()}


def _is_target(key: object, value: object) -> bool:
    return key == "_target_" and isinstance(value, str)


def checkpoint(content: dict[str, Any], name: object) -> dict[str, Any]:
    """The content of a checkpoint, as today's code reads it; one that holds nothing but weights stays.

    Args:
        content: of the file.
        name: of the file, for the sentence.

    Raises:
        CheckpointError: it is of a newer format.
    """
    if not isinstance(content.get("callbacks"), dict):
        return content
    require_known(content, name)
    states = {STATE_KEYS.get(key, key): state for key, state in content["callbacks"].items()}
    return {**content, "callbacks": states, "format": FORMAT}
