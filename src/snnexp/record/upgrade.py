"""Upgrade the content of files of earlier versions.

run.json, sweep.json and checkpoints contain ``format``; a file without it has format 1. Missing nodes of a config are
set to the behavior of the version that wrote it. Files of a newer format are rejected.
"""

from collections.abc import Mapping
from typing import Any

from snnexp.errors import CheckpointError
from snnexp.text import format_value

FORMAT = 2
TARGETS = {
    "snnexp.assembly.make_trainer": "snnexp.training.assembly.make_trainer",
    # launchers and sweepers were Hydra plugins
    **{
        f"hydra_plugins.snnexp_sweeps.{name}": name.lower()
        for name in ("Processes", "Stacked", "Slurm", "Grid", "Optuna")
    },
}
"""Current values of the ``_target_`` of earlier versions."""
STATE_KEYS = {
    "ProjectParameters": "projection",
    "QuietLayers": "quiet_layers",
    "EpochLoss": "epoch_loss",
    "SeedMeanLoss": "seed_mean_loss",
    "Checkpoints": "checkpoints",
}
"""Current keys of the states of callbacks; format 1 used class names."""


SCHEDULE = "optimizer.schedule"
"""The earlier key of the schedule; as an override it now means ``schedule``."""
SCHEDULED = ("snnexp.optimizers.Adam", "snnexp.optimizers.L2Adam", "snnexp.optimizers.SGD")
"""Optimizers that had an argument ``schedule``, a string; ``L2Adam`` is the current ``adam``."""
SCHEDULES = {"constant": "snnexp.schedules.Constant", "cosine": "snnexp.schedules.Cosine"}
"""Current ``_target_`` of the node ``schedule`` for each value of that argument."""


def require_known(content: Mapping[str, Any], name: object) -> None:
    """Raise :class:`CheckpointError` for a newer or invalid format.

    Args:
        content: content of the file.
        name: name of the file, for the message.
    """
    version = content.get("format", 1)
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise CheckpointError(f"{name}: damaged, its format is {format_value(version)}")
    if version > FORMAT:
        raise CheckpointError(
            f"{name}: format {version} is from a newer snnexp, this version reads up to {FORMAT}; update snnexp"
        )


def config(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a run in the current format."""
    upgraded = with_schedule(with_targets(plain))
    if "optimizer" in upgraded:
        # earlier optimizers without this argument had a constant learning rate
        upgraded.setdefault("schedule", {"_target_": SCHEDULES["constant"]})
    trainer = upgraded.get("trainer")
    if isinstance(trainer, dict) and "limit_batches" in trainer:
        # it used to limit the test as well
        trainer.setdefault("limit_test_batches", trainer["limit_batches"])
    if isinstance(trainer, dict) and trainer.get("_target_") == "snnexp.training.assembly.make_trainer":
        trainer.setdefault("threads", None)
        trainer.setdefault("early_stopping", None)
        trainer.setdefault("gradient_clip", None)
        trainer.setdefault("accumulate", 1)
    data = upgraded.get("data")
    if isinstance(data, dict):
        # inputs of 0 and 1 used to count as values
        data.setdefault("spikes", False)
    logger = upgraded.get("logger")
    if isinstance(logger, dict):
        # earlier versions drew no figures
        for key in ("draw_every_n_epochs", "draw_every_s"):
            logger.setdefault(key, 0)
        for key in ("csv", "predictions", "test_every_epoch"):
            logger.setdefault(key, False)
        logger.setdefault("also", {})
        logger.setdefault("keep", "all")
    return upgraded


def with_targets(node: Any) -> Any:
    """Return a copy with each moved ``_target_`` updated."""
    if isinstance(node, Mapping):
        return {
            key: TARGETS.get(value, value) if _is_target(key, value) else with_targets(value)
            for key, value in node.items()
        }
    return [with_targets(value) for value in node] if isinstance(node, list) else node


def with_schedule(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config with a separate ``schedule`` node instead of the optimizer's argument."""
    optimizer = plain.get("optimizer")
    if not isinstance(optimizer, Mapping) or optimizer.get("_target_") not in SCHEDULED:
        return {**plain}
    text = optimizer.get("schedule")
    if not isinstance(text, str) or text not in SCHEDULES:
        return {**plain}
    rest = {key: value for key, value in optimizer.items() if key != "schedule"}
    # after the optimizer, as in current configs
    changed = {"optimizer": rest, "schedule": {"_target_": SCHEDULES[text]}}
    nodes = [(name, node) for name, node in plain.items() if name != "schedule"]
    parts = (changed if name == "optimizer" else {name: node} for name, node in nodes)
    return {key: node for part in parts for key, node in part.items()}


def _is_target(key: object, value: object) -> bool:
    return key == "_target_" and isinstance(value, str)


def checkpoint(content: dict[str, Any], name: object) -> dict[str, Any]:
    """Return the content of a checkpoint in the current format; a plain state dict is unchanged.

    Args:
        content: content of the file.
        name: name of the file, for the message.

    Raises:
        CheckpointError: it has a newer format.
    """
    if not isinstance(content.get("callbacks"), dict):
        return content
    require_known(content, name)
    states = {STATE_KEYS.get(key, key): state for key, state in content["callbacks"].items()}
    return {**content, "callbacks": states, "format": FORMAT}
