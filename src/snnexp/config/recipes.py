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
"""Keys that may differ between comparable results: keys without effect, seeds, and the device."""


def recipe_name(cfg: Mapping[str, Any], overrides: Sequence[str]) -> str:
    """Return the recipe in the overrides; without overrides, as in a notebook, the name of the run."""
    values = {key_of(override): override.partition("=")[2] for override in overrides}
    return values.get("experiment", "" if overrides else str(cfg.get("name", "")))


def known_recipe(cfg: Mapping[str, Any], overrides: Sequence[str]) -> str | None:
    """Return the recipe of a run; "" if it has none, None if it is not a shipped one."""
    name = recipe_name(cfg, overrides)
    # compose known names only: a record from elsewhere may contain anything
    return name if not name or name in config.choices("experiment") else None


def differences(cfg: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    """Return the keys in which a run differs from its recipe, or from the defaults: (value of the recipe, own value).

    The value of a missing key is None. Keys that do not affect the computation are left out.
    """
    own = config.flat(config.with_missing_nodes(cfg))
    recipe = config.flat(_composed(known_recipe(cfg, overrides) or "", config.conf_dir()))
    both = {key: (recipe.get(key), own.get(key)) for key in {**own, **recipe}}
    return {key: pair for key, pair in both.items() if pair[0] != pair[1] and not key.startswith(config.MAY_CHANGE)}


def decisive(keys: Iterable[str]) -> list[str]:
    """Return the keys of :func:`differences` that make results incomparable."""
    return [key for key in keys if not key.startswith(INCIDENTAL)]


def hyperparameters(cfg: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return the keys and values in which a run differs from its recipe; a part is represented by its class name."""
    own = config.flat(cfg)
    found = {key: value for key, (_, value) in differences(cfg, overrides).items() if key in own}
    for key in [key for key in found if key.endswith("._target_")]:
        found[key.removesuffix("._target_")] = str(found.pop(key)).rpartition(".")[2]
    return {"experiment": cfg["name"], "seed": cfg["seed"]} | found


def published(cfg: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, float]:
    """Return the published results of the recipe of a run, if the run is comparable with the recipe."""
    name = known_recipe(cfg, overrides)
    if not name or decisive(differences(cfg, overrides)):
        return {}
    # a recipe that is derived from another inherits results that are not its own
    text = (config.conf_dir() / "experiment" / f"{name}.yaml").read_text(encoding="utf-8")
    if not re.search(r"^published:", text, re.MULTILINE):
        return {}
    return dict(_composed(name, config.conf_dir()).get("published", {}))


@cache
def _composed(name: str, conf: Path) -> dict[str, Any]:
    """Return the config of a recipe, or {} if it cannot be composed; cached, because a sweep has many runs."""
    try:
        return config.plain(config.compose([f"experiment={name}"] if name else []))
    except SnnexpError:
        return {}
