"""``init_from``: the run whose weights another run starts from, and the weights that are frozen."""

import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from snnexp.config.keys import InitFrom
from snnexp.errors import ConfigError, ConfigErrors
from snnexp.record.find import locate
from snnexp.record.names import CHECKPOINT_NAMES
from snnexp.spec import checked
from snnexp.text import format_value, one_line, suggest

KEYS = tuple(field.name for field in fields(InitFrom))


def get_init_from(cfg: Mapping[Any, Any]) -> InitFrom:
    """Return ``init_from`` of a config; its defaults, random weights, if the node is missing or null."""
    return InitFrom(**(cfg.get("init_from") or {}))


def without_init_run(cfg: DictConfig) -> DictConfig:
    """Return a copy of a checked config without the run of ``init_from``, so that it can be built without that run."""
    start = {"run": None, "ckpt": InitFrom.ckpt, "freeze": [*get_init_from(cfg).freeze]}
    changed = cfg.copy()
    OmegaConf.update(changed, "init_from", start, merge=False, force_add=True)
    return changed


def with_defaults(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config with all keys of ``init_from``; configs from earlier versions do not have them."""
    node = plain.get("init_from")
    given = {} if node is None else {"run": node} if isinstance(node, str) else node
    defaults = {"run": InitFrom.run, "ckpt": InitFrom.ckpt, "freeze": [*InitFrom.freeze]}
    return {**plain, "init_from": {**defaults, **given} if isinstance(given, Mapping) else given}


def check(node: Any, errors: ConfigErrors) -> None:
    """Collect the errors of the node."""
    if not isinstance(node, Mapping):
        errors.add(f"init_from: got {format_value(node)}, must be a run, or a mapping with {', '.join(KEYS)}")
        return
    for key in node:
        if key not in KEYS:
            errors.add(f"init_from.{format_value(key)}: unknown key, {suggest(str(key), KEYS)}")
    with errors.collect():
        checked.check(InitFrom, node, "init_from.")
    if node["run"] is None and node["ckpt"] in ("best", "init"):
        errors.add(f"init_from.ckpt: got {node['ckpt']}, a checkpoint of a run; set init_from.run too")


def with_absolute_paths(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return the node with absolute paths, so that a run can be repeated from any working directory.

    A run given by an absolute path is not looked up, so a saved config stays valid after that run has been deleted.

    Raises:
        ConfigError: the run does not exist.
    """
    run, ckpt = node["run"], node["ckpt"]
    if run is not None and not os.path.isabs(os.path.expanduser(run)):
        try:
            path = locate(run)
        except ConfigError as error:
            raise ConfigError(f"init_from.run: {error}") from error
        if not (path / "config.yaml").is_file():
            raise ConfigError(f"init_from.run: {one_line(run)} is not a run directory, a run id, or the end of one")
        run = path
    found = {
        "run": None if run is None else _absolute(run),
        "ckpt": ckpt if ckpt in CHECKPOINT_NAMES else _absolute(ckpt),
    }
    return {**node, **found}


def _absolute(path: str | Path) -> str:
    return os.path.abspath(os.path.expanduser(path))
