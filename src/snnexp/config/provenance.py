"""Metadata of a config and its copies: its overrides and the keys that were left out when it was composed."""

from collections.abc import Iterable, Sequence
from typing import Any, cast

from omegaconf import DictConfig

from snnexp.config import decoding
from snnexp.config.loader import LeftOut, left_out_messages
from snnexp.config.plain import plain

KEY, LEFT_OUT = "snnexp_made_of", "snnexp_left_out"
Provenance = tuple[list[str], DictConfig, dict[str, Any]]
"""The overrides, the unresolved config that they compose to, and the checked values."""


def with_provenance(cfg: DictConfig, overrides: Sequence[str], unresolved: DictConfig) -> DictConfig:
    """Attach the provenance to a checked config."""
    record_left_out(cfg, _left_out(unresolved))
    vars(cfg._metadata)[decoding.NOTE] = decoding.decoder_note(unresolved)
    vars(cfg._metadata)[KEY] = ([*overrides], unresolved, plain(cfg))
    return cfg


def provenance_of(cfg: DictConfig) -> Provenance | None:
    """Return the provenance of a config, or None if it has none."""
    return cast(Provenance | None, vars(cfg._metadata).get(KEY))


def record_left_out(cfg: DictConfig, found: Iterable[LeftOut]) -> None:
    """Attach the keys that were left out of a composition."""
    # OmegaConf copies the metadata with the config
    vars(cfg._metadata)[LEFT_OUT] = [*found]


def left_out(configs: Iterable[DictConfig], overrides: Sequence[str]) -> list[str]:
    """Return messages about keys of files that were left out, and about decoders that were replaced.

    Args:
        configs: composed configs, checked or not.
        overrides: the command-line overrides.
    """
    known = [*configs]
    notes = dict.fromkeys(note for cfg in known if (note := decoding.decoder_note(cfg)))
    return [*left_out_messages(dict.fromkeys(found for cfg in known for found in _left_out(cfg)), overrides), *notes]


def _left_out(cfg: DictConfig) -> list[LeftOut]:
    return cast(list[LeftOut], vars(cfg._metadata).get(LEFT_OUT, []))
