"""Values fitted on the training split of a run, which also apply to other data: input scaling and class weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, open_dict
from torch import Tensor

from snnexp import config
from snnexp.errors import CheckpointError, ConfigError
from snnexp.record import checkpoint as checkpoints
from snnexp.record.checkpoint import TypeSpec
from snnexp.record.names import key_of
from snnexp.spec import parts
from snnexp.training.observers import ClassWeights, InputScaling


def with_fitted_values(cfg: DictConfig, saved: DictConfig, file: Path, overrides: Sequence[str]) -> DictConfig:
    """Return a config with the fitted numbers filled in: input scaling and balanced class weights.

    Args:
        cfg: config of an evaluation.
        saved: config of the run.
        file: one of the run's checkpoints.
        overrides: command-line overrides.

    Raises:
        ConfigError: the other data have no ``scale``, or the checkpoint predates saved scaling.
        CheckpointError: the checkpoint is damaged.
    """
    scales, weighs = saved.data.get("scale") is not None, cfg.loss.get("class_weights") == "balanced"
    if not (scales or weighs):
        return cfg
    states, cfg = checkpoints.read_callback_states(file), cfg.copy()
    if weighs and (fitted := _numbers(states, ClassWeights.state_key, ("weights",), file)):
        cfg.loss.class_weights = fitted["weights"]
    if not scales:
        return cfg
    if fitted := _numbers(states, InputScaling.state_key, ("shift", "scale"), file):
        spec = parts.of(cfg.data._target_)
        if not (spec.takes_all or "scale" in spec.arguments):
            raise ConfigError(f"data: the inputs of this run are scaled, and {spec.name} has no argument scale")
        with open_dict(cfg):
            cfg.data.scale = fitted
    elif any(_affects_data(key_of(word)) for word in overrides):
        raise ConfigError(f"data: {file} is older than saved input scaling, which other data need; train again")
    return cfg


def _numbers(states: Any, key: str, names: Sequence[str], file: Path) -> dict[str, list[float]] | None:
    """Return a state that consists of vectors; None if the checkpoint has none."""
    if key not in states:
        return None
    if what := checkpoints.difference(states[key], dict.fromkeys(names, TypeSpec(Tensor)), key):
        raise CheckpointError(f"{file}: checkpoint does not fit this run: {what}")
    return {name: states[key][name].tolist() for name in names}


def _affects_data(key: str) -> bool:
    return key.partition(".")[0] == "data" and not key.startswith((*config.MAY_CHANGE, "data.batch_size"))
