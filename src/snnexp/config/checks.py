"""Values of a config are held against the domains of their names, and parts against each other, without torch."""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from snnexp.config import security, targets
from snnexp.config.folders import GLOBAL, GROUPS, KEYS, LOGGER, NODES, choices, resolving
from snnexp.config.messages import explained, in_one_line
from snnexp.errors import ConfigError, Refusals
from snnexp.record import upgrade
from snnexp.spec import rules
from snnexp.spec import values as domains
from snnexp.text import closest, listed, shown


def check(cfg: DictConfig, together: bool = True) -> DictConfig:
    """Resolve ``cfg`` and hold every value against the domain of its name.

    Args:
        cfg: a composed config.
        together: whether parts are held against each other too.

    Raises:
        ConfigError: values cannot work; one sentence for each key.
    """
    with in_one_line(), explained(), resolving():
        if missing := [key for key in (*KEYS, *NODES) if key not in cfg]:
            hints = {key: f", {listed(choices(key))}" for key in NODES}
            raise ConfigError(*(f"{key}: every run needs one{hints.get(key, '')}" for key in missing))
        written = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=False))
        security.require_bounded(written, written)
        # a recipe may be older than the places of parts
        plain = upgrade.with_targets(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
        return OmegaConf.create(_checked(plain, written, together))


def _checked(plain: dict[str, Any], written: Mapping[str, Any], together: bool) -> dict[str, Any]:
    refusals = Refusals()
    for key, value in plain.items():
        if key in GLOBAL:
            refusals.add(f"{key}: its files set other keys, and must begin with the line # @package _global_")
        elif key not in (*KEYS, *NODES):
            refusals.add(f"{shown(key)}: unknown key, {closest(str(key), (*KEYS, *GROUPS))}")
        elif key in NODES and not isinstance(value, dict):
            hint = "must be a mapping, as a file of this group holds it" if isinstance(value, list) else None
            refusals.add(f"{key}: got {shown(value)}, {hint or listed(choices(key))}")
        else:
            with refusals.collected():
                targets.require_targets(value, key, key if key in rules.SHIPPED else None)
    for key in plain["logger"] if isinstance(plain["logger"], dict) else ():
        if key not in LOGGER:
            refusals.add(f"logger.{shown(key)}: unknown key, {closest(str(key), LOGGER)}")
    _check_node({key: value for key, value in plain.items() if not refusals.about(str(key))}, "", refusals)
    if together:
        rules.check(plain, refusals)
    for key in [*refusals.sentences]:
        # what is only read from a key that is refused itself is told once
        if any(origin in refusals.sentences for origin in _origins(key, written)):
            del refusals.sentences[key]
    refusals.tell()
    return at_home(plain)


def at_home(plain: dict[str, Any]) -> dict[str, Any]:
    for key in ("data", "logger"):
        # once, so that all who read a path mean the same
        if isinstance(root := plain[key].get("root"), str):
            plain[key]["root"] = os.path.expanduser(root)
    return plain


def _origins(key: str, written: Mapping[str, Any]) -> Iterator[str]:
    """The keys that a key of a config gets its value from, by interpolations as they were written."""
    node: Any = written
    words = key.split(".")
    for index, word in enumerate(words):
        node = node.get(word) if isinstance(node, Mapping) else None
        if isinstance(node, str) and (match := re.fullmatch(r"\$\{([\w.]+)\}", node)):
            origin = ".".join([match[1], *words[index + 1 :]])
            yield origin
            yield from _origins(origin, written)


def _check_node(node: Mapping[str, Any], prefix: str, refusals: Refusals) -> None:
    # names have the meanings of `domains` in this package; the constructors of others check for themselves
    if node.get("_target_") in (None, *rules.EVERY):
        with refusals.collected():
            domains.check(node, prefix)
    for key, value in node.items():
        if isinstance(value, Mapping) and key != "published":
            _check_node(value, f"{prefix}{key}.", refusals)
