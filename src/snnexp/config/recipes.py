"""How a run differs from its recipe."""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from snnexp import config
from snnexp.errors import SnnexpError
from snnexp.record.names import key_of

INCIDENTAL = (
    *config.MAY_CHANGE,
    *("seed", "data.seed", "data.sample_seed", "name", "kernel"),
    *("trainer.accelerator", "trainer.devices", "trainer.strategy"),
)
"""Keys that leave results comparable: what decides nothing, what is drawn, and by what it is computed."""


def recipe_name(cfg: Mapping[str, Any], overrides: Sequence[str]) -> str:
    """The name of the recipe that was typed; if nothing was typed, as in a notebook, the name of the run."""
    typed = {key_of(override): override.partition("=")[2] for override in overrides}
    return typed.get("experiment", "" if overrides else str(cfg.get("name", "")))


def known_recipe(cfg: Mapping[str, Any], overrides: Sequence[str]) -> str | None:
    """The recipe of a run; empty where it has none, None where there is no such recipe here."""
    name = recipe_name(cfg, overrides)
    # nothing but a known name is composed: a record of others could ask for more
    return name if not name or name in config.choices("experiment") else None


def differences(cfg: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    """The keys in which a run differs from its recipe, or without one from the defaults: the value there, and its own.

    A key that one of them does not have is null there. Keys that do not decide what is computed are left out.
    """
    here = config.flat(config.with_missing_nodes(cfg))
    recipe = config.flat(_composed(known_recipe(cfg, overrides) or "", config.conf_dir()))
    both = {key: (recipe.get(key), here.get(key)) for key in {**here, **recipe}}
    return {key: pair for key, pair in both.items() if pair[0] != pair[1] and not key.startswith(config.MAY_CHANGE)}


def decisive(changed: Iterable[str]) -> list[str]:
    """Of the keys that :func:`changed` gives, those that make results incomparable."""
    return [key for key in changed if not key.startswith(INCIDENTAL)]


def hyperparameters(cfg: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """What tells a run from others of its recipe, by key; a part by its class."""
    here = config.flat(cfg)
    found = {key: now for key, (_, now) in differences(cfg, overrides).items() if key in here}
    for key in [key for key in found if key.endswith("._target_")]:
        found[key.removesuffix("._target_")] = str(found.pop(key)).rpartition(".")[2]
    return {"experiment": cfg["name"], "seed": cfg["seed"]} | found


def published(cfg: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, float]:
    """The figures that the recipe of a run states itself, if nothing that decides the result differs from it."""
    name = known_recipe(cfg, overrides)
    if not name or decisive(differences(cfg, overrides)):
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
