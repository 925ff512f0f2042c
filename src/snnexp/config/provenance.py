"""How a config was made, which it and its copies remember beside its values."""

from collections.abc import Iterable, Sequence
from typing import Any, cast

from omegaconf import DictConfig

from snnexp.config import decoding
from snnexp.config.loader import LeftOut, sentences
from snnexp.config.plain import plain

KEY, LEFT_OUT = "snnexp_made_of", "snnexp_left_out"
Provenance = tuple[list[str], DictConfig, dict[str, Any]]
"""What was typed, the config that it composed to, not resolved, and its values when it was checked."""


def with_provenance(cfg: DictConfig, overrides: Sequence[str], unresolved: DictConfig) -> DictConfig:
    """A checked config that knows how it was made."""
    record_left_out(cfg, _left_out(unresolved))
    vars(cfg._metadata)[decoding.NOTE] = decoding.decoder_note(unresolved)
    vars(cfg._metadata)[KEY] = ([*overrides], unresolved, plain(cfg))
    return cfg


def provenance_of(cfg: DictConfig) -> Provenance | None:
    """How a config was made; None of one from elsewhere."""
    return cast(Provenance | None, vars(cfg._metadata).get(KEY))


def record_left_out(cfg: DictConfig, found: Iterable[LeftOut]) -> None:
    """Note the keys of files that gave way to what was typed when a config was composed."""
    # OmegaConf copies what it keeps beside the values
    vars(cfg._metadata)[LEFT_OUT] = [*found]


def left_out(configs: Iterable[DictConfig], overrides: Sequence[str]) -> list[str]:
    """A sentence for each key of a file, or decoder of a recipe, that gave way when configs were composed.

    Configs from elsewhere have none.

    Args:
        configs: composed ones, or one that :func:`~snnexp.config.compose` has given.
        overrides: what was typed.
    """
    known = [*configs]
    notes = dict.fromkeys(note for cfg in known if (note := decoding.decoder_note(cfg)))
    return [*sentences(dict.fromkeys(found for cfg in known for found in _left_out(cfg)), overrides), *notes]


def _left_out(cfg: DictConfig) -> list[LeftOut]:
    return cast(list[LeftOut], vars(cfg._metadata).get(LEFT_OUT, []))
