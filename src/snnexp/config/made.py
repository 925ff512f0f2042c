"""How a config was made, which it remembers beside its values."""

from collections.abc import Sequence
from typing import Any, cast

from omegaconf import DictConfig

from snnexp.config.plain import plain

KEY = "snnexp_made_of"
Made = tuple[list[str], DictConfig, dict[str, Any]]
"""What was typed, the config that it composed to, not resolved, and its values when it was checked."""


def remembering(cfg: DictConfig, overrides: Sequence[str], unresolved: DictConfig) -> DictConfig:
    """A checked config that knows how it was made; its copies know that too."""
    # OmegaConf copies what it keeps beside the values
    vars(cfg._metadata)[KEY] = ([*overrides], unresolved, plain(cfg))
    return cfg


def made_of(cfg: DictConfig) -> Made | None:
    """How a config was made; None of one from elsewhere."""
    return cast(Made | None, vars(cfg._metadata).get(KEY))
