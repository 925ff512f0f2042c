"""Compose, check, save and load configs."""

from snnexp.config.build import factory, instantiate, make_network
from snnexp.config.checks import check
from snnexp.config.compose import (
    NO_SEARCH,
    Composer,
    compose,
    compose_points,
    compose_unchecked,
    downloads,
    require_used,
)
from snnexp.config.decoding import decoder_note, with_missing_nodes
from snnexp.config.describe import describe_choice
from snnexp.config.folders import GROUPS, KEYS, NODES, choices, conf_dir, initialized_hydra
from snnexp.config.initial import get_init_from, without_init_run
from snnexp.config.messages import explain, explain_errors
from snnexp.config.overrides import (
    MAX_POINTS,
    first_point,
    has_sweep,
    hydra_literal,
    params_to_overrides,
    parse_assignments,
    points,
    quoted,
    with_cleared_parts,
)
from snnexp.config.plain import flat, plain
from snnexp.config.provenance import left_out, with_provenance
from snnexp.config.saved import (
    MAY_CHANGE,
    change,
    change_all,
    change_evaluation,
    check_saved,
    command,
    computes_same,
    decoder_overrides,
    load,
    offline,
    overrides_of,
    require_same,
    require_split,
)
from snnexp.config.steps import resolve_num_steps

__all__ = [
    "GROUPS",
    "KEYS",
    "MAX_POINTS",
    "MAY_CHANGE",
    "NODES",
    "NO_SEARCH",
    "Composer",
    "change",
    "change_all",
    "change_evaluation",
    "check",
    "check_saved",
    "choices",
    "command",
    "compose",
    "compose_points",
    "compose_unchecked",
    "computes_same",
    "conf_dir",
    "decoder_note",
    "decoder_overrides",
    "describe_choice",
    "downloads",
    "explain",
    "explain_errors",
    "factory",
    "first_point",
    "flat",
    "get_init_from",
    "has_sweep",
    "hydra_literal",
    "initialized_hydra",
    "instantiate",
    "left_out",
    "load",
    "make_network",
    "offline",
    "overrides_of",
    "params_to_overrides",
    "parse_assignments",
    "plain",
    "points",
    "quoted",
    "require_same",
    "require_split",
    "require_used",
    "resolve_num_steps",
    "with_cleared_parts",
    "with_missing_nodes",
    "with_provenance",
    "without_init_run",
]
