"""How a run differs from its recipe."""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from snnexp import config
from snnexp.errors import SnnexpError

INCIDENTAL = (
    *config.MAY_CHANGE,
    *("seed", "data.seed", "data.sample_seed", "name", "kernel"),
    *("trainer.accelerator", "trainer.devices", "trainer.strategy"),
)
"""Keys that leave results comparable: what decides nothing, what is drawn, and by what it is computed."""


def chosen(cfg: Mapping[str, Any], overrides: Sequence[str]) -> str:
    """The recipe of a run: what was typed, else the one with its name; empty where there is none here."""
    typed = dict(override.partition("=")[::2] for override in overrides)
    name = typed.get("experiment", str(cfg["name"]))
    return name if name in config.choices("experiment") else ""


def changed(cfg: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The keys and values that the recipe of a run, or without one the defaults, have otherwise or do not have."""
    recipe = config.flat(_composed(chosen(cfg, overrides), config.conf_dir()))
    return {key: value for key, value in config.flat(cfg).items() if key not in recipe or recipe[key] != value}


def hyperparameters(cfg: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """What tells a run from others of its recipe, by key; a part by its class."""
    found = {key: value for key, value in changed(cfg, overrides).items() if not key.startswith(config.MAY_CHANGE)}
    for key in [key for key in found if key.endswith("._target_")]:
        found[key.removesuffix("._target_")] = str(found.pop(key)).rpartition(".")[2]
    return {"experiment": cfg["name"], "seed": cfg["seed"]} | found


def published(cfg: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, float]:
    """The figures that the recipe of a run states itself, if nothing that decides the result differs from it."""
    name = chosen(cfg, overrides)
    if not name or any(not key.startswith(INCIDENTAL) for key in changed(cfg, overrides)):
        return {}
    # one that is derived from another inherits figures that are not its own
    text = (config.conf_dir() / "experiment" / f"{name}.yaml").read_text(encoding="utf-8")
    if not re.search(r"^published:", text, re.MULTILINE):
        return {}
    return dict(_composed(name, config.conf_dir()).get("published", {}))


@cache
def _composed(name: str, conf: Path) -> dict[str, Any]:
    """The config of a recipe, of which a sweep has many runs; empty where it cannot be composed here."""
    try:
        return config.plain(config.compose([f"experiment={name}"] if name else []))
    except SnnexpError:
        return {}
