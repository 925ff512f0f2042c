"""What was asked for: a config is composed, checked, saved and read again."""

from snnexp.config.build import factory, instantiate
from snnexp.config.checks import check
from snnexp.config.compose import (
    NO_SEARCH,
    compose,
    composed,
    composed_points,
    downloads,
    keys_of_choice,
    require_taken,
)
from snnexp.config.folders import GROUPS, KEYS, NODES, VERSION_BASE, choices, conf_dir, prepare
from snnexp.config.messages import explain, explained
from snnexp.config.overrides import MOST_POINTS, assigned, params, points, quoted, replacing, shared, written
from snnexp.config.plain import flat, plain
from snnexp.config.saved import (
    MAY_CHANGE,
    change,
    change_all,
    change_evaluation,
    command,
    computes_same,
    load,
    offline,
    overridden,
    remembering,
    require_same,
    trusted,
)

__all__ = [
    "GROUPS",
    "KEYS",
    "MAY_CHANGE",
    "MOST_POINTS",
    "NODES",
    "NO_SEARCH",
    "VERSION_BASE",
    "assigned",
    "change",
    "change_all",
    "change_evaluation",
    "check",
    "choices",
    "command",
    "compose",
    "composed",
    "composed_points",
    "computes_same",
    "conf_dir",
    "downloads",
    "explain",
    "explained",
    "factory",
    "flat",
    "instantiate",
    "keys_of_choice",
    "load",
    "offline",
    "overridden",
    "params",
    "plain",
    "points",
    "prepare",
    "quoted",
    "remembering",
    "replacing",
    "require_same",
    "require_taken",
    "shared",
    "trusted",
    "written",
]
