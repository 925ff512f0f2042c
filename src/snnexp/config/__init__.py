"""What was asked for: a config is composed, checked, saved and read again."""

from snnexp.config.build import factory, instantiate, make_network
from snnexp.config.checks import check
from snnexp.config.compose import (
    NO_SEARCH,
    Composer,
    compose,
    composed,
    composed_points,
    downloads,
    require_taken,
)
from snnexp.config.decoding import completed, note
from snnexp.config.described import described
from snnexp.config.folders import GROUPS, KEYS, NODES, choices, conf_dir, hydra_reading
from snnexp.config.initial import drawn, start_of
from snnexp.config.made import left_out, remembering
from snnexp.config.messages import explain, explained
from snnexp.config.overrides import (
    MOST_POINTS,
    are_swept,
    assigned,
    first_point,
    params,
    points,
    quoted,
    replacing,
    written,
)
from snnexp.config.plain import flat, plain
from snnexp.config.saved import (
    MAY_CHANGE,
    change,
    change_all,
    change_evaluation,
    command,
    computes_same,
    decoder_of,
    load,
    offline,
    overridden,
    require_same,
    require_split,
    trusted,
)
from snnexp.config.steps import with_steps

__all__ = [
    "GROUPS",
    "KEYS",
    "MAY_CHANGE",
    "MOST_POINTS",
    "NODES",
    "NO_SEARCH",
    "Composer",
    "are_swept",
    "assigned",
    "change",
    "change_all",
    "change_evaluation",
    "check",
    "choices",
    "command",
    "completed",
    "compose",
    "composed",
    "composed_points",
    "computes_same",
    "conf_dir",
    "decoder_of",
    "described",
    "downloads",
    "drawn",
    "explain",
    "explained",
    "factory",
    "first_point",
    "flat",
    "hydra_reading",
    "instantiate",
    "left_out",
    "load",
    "make_network",
    "note",
    "offline",
    "overridden",
    "params",
    "plain",
    "points",
    "quoted",
    "remembering",
    "replacing",
    "require_same",
    "require_split",
    "require_taken",
    "start_of",
    "trusted",
    "with_steps",
    "written",
]
