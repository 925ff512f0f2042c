"""What a run has fitted on its training split: it holds for whatever else the run is measured on."""

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
    """A config in which numbers stand for what was fitted: the scaling of inputs, and balanced class weights.

    Args:
        cfg: of an evaluation.
        saved: of the run.
        file: one of the run's own checkpoints.
        overrides: what was typed.

    Raises:
        ConfigError: other data cannot be scaled, or an older checkpoint does not hold by what.
        CheckpointError: it is damaged.
    """
    scales, weighs = saved.data.get("scale") is not None, cfg.loss.get("class_weights") == "balanced"
    if not (scales or weighs):
        return cfg
    states, cfg = checkpoints.read_callback_states(file), cfg.copy()
    if weighs and (found := _numbers(states, ClassWeights.state_key, ("weights",), file)):
        cfg.loss.class_weights = found["weights"]
    if not scales:
        return cfg
    if found := _numbers(states, InputScaling.state_key, ("shift", "scale"), file):
        spec = parts.of(cfg.data._target_)
        if not (spec.takes_all or "scale" in spec.arguments):
            raise ConfigError(f"data: the inputs of this run are scaled, and {spec.name} has no argument scale")
        with open_dict(cfg):
            cfg.data.scale = found
    elif any(_decides_data(key_of(word)) for word in overrides):
        raise ConfigError(
            f"data: {file} is older than runs that keep the scaling of their inputs, which other data need; train again"
        )
    return cfg


def _numbers(states: Any, key: str, names: Sequence[str], file: Path) -> dict[str, list[float]] | None:
    """A state that consists of vectors; None where there is none."""
    if key not in states:
        return None
    if what := checkpoints.difference(states[key], dict.fromkeys(names, TypeSpec(Tensor)), key):
        raise CheckpointError(f"{file}: checkpoint does not fit this run: {what}")
    return {name: states[key][name].tolist() for name in names}


def _decides_data(key: str) -> bool:
    return key.partition(".")[0] == "data" and not key.startswith((*config.MAY_CHANGE, "data.batch_size"))
