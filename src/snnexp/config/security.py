"""What a config may do besides naming parts, whoever wrote it: its interpolations end, and Hydra's switches stay.

Before it is composed, :mod:`snnexp.config.files` holds its text against the same; :mod:`snnexp.config.targets` tells
which parts it may name.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from snnexp.config import keys
from snnexp.config.files import MAX_DEPTH, MAX_NODES, require_own_resolvers
from snnexp.errors import ConfigError
from snnexp.record import upgrade
from snnexp.spec import checked, values
from snnexp.text import format_value

NO_LOG = {"version": 1, "root": None, "disable_existing_loggers": False}
HYDRA: dict[str, Any] = {
    "run": {"dir": "."},
    "sweep": {"dir": "${logger.root}/sweeps/${name}/${new_run_id:}", "subdir": "runs"},
    "output_subdir": None,
    "mode": None,
    "searchpath": [],
    "callbacks": {},
    "hydra_logging": NO_LOG,
    "job_logging": NO_LOG,
    "verbose": False,
    "job": {"chdir": None, "env_set": {}, "env_copy": []},
}
"""What of Hydra's node writes, prints or calls, as conf/train.yaml leaves it; the rest is text, or is set by Hydra."""
STARTERS = {"launcher": ("processes", "slurm", "stacked"), "sweeper": ("grid", "optuna")}
"""What a sweep is started by, the usual first: a ``_target_`` is one of these names, and nothing is called by it."""
BASIC = {
    "launcher": "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
    "sweeper": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
}
"""What Hydra has where nothing was chosen."""
STORAGE = "hydra.sweeper.storage="


def require_bounded(plain: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Refuse interpolations that lead back to themselves, or whose values together are too large.

    Args:
        plain: a config's containers and values, not yet resolved.
        keys: what is looked at.
    """
    weights = _ResolvedSizes(plain)
    for key in keys:
        weights.of(plain[key], (str(key),))


class _ResolvedSizes:
    """How many values a node comes to when it is resolved, without resolving it."""

    # what OmegaConf lets a reference be made of
    reference = re.compile(r"\$\{[ \t]*([^\\${}():\s'\"]+)[ \t]*\}")

    def __init__(self, root: Any) -> None:
        self.root = root
        self.known: dict[tuple[str, ...], int] = {}

    def of(self, node: Any, path: tuple[str, ...]) -> int:
        if path not in self.known:
            # while it is being computed, whoever meets it again has gone in a circle
            self.known[path] = -1
            self.known[path] = self._count(node, path)
        weight = self.known[path]
        if weight < 0 or len(path) > MAX_DEPTH or weight > MAX_NODES:
            reason = "leads back to itself" if weight < 0 else "is too large or nested too deeply"
            raise ConfigError(f"{'.'.join(path) or '${...}'}: {reason}")
        return weight

    def _count(self, node: Any, path: tuple[str, ...]) -> int:
        if isinstance(node, (Mapping, list)):
            items = node.items() if isinstance(node, Mapping) else enumerate(node)
            return 1 + sum(self.of(value, (*path, str(key))) for key, value in items)
        if not isinstance(node, str):
            return 1
        require_own_resolvers(node, ".".join(path))
        # long texts count for more, for they multiply as well
        return 1 + len(node) // 64 + sum(self._reference_size(word, path) for word in self.reference.findall(node))

    def _reference_size(self, word: str, path: tuple[str, ...]) -> int:
        name = word.lstrip(".")
        dots = len(word) - len(name)
        target = (*(path[:-dots] if dots else ()), *filter(None, re.split(r"[.\[\]]", name)))
        node, walked = self.root, 0
        for key in target:
            if isinstance(node, list) and key.isdecimal() and int(key) < len(node):
                node = node[int(key)]
            elif isinstance(node, Mapping) and key in node:
                node = node[key]
            elif isinstance(node, str):
                # the target lies in what is itself a reference, and is at most all of it
                break
            else:
                return 0
            walked += 1
        return self.of(node, target[:walked])


def require_shipped_hydra(node: Mapping[str, Any], typed: Sequence[str] = ()) -> None:
    """Refuse what would make Hydra write elsewhere or call anything, and launchers and sweepers that are not ours.

    Args:
        node: Hydra's own node of a composed config, not resolved.
        typed: overrides.
    """
    for key, shipped in HYDRA.items():
        found = node.get(key)
        if key == "job" and isinstance(found, Mapping):
            found = {name: found.get(name) for name in HYDRA["job"]}
        if found != shipped:
            raise ConfigError(
                f"hydra.{key}: stays as snnexp ships it; choose hydra/launcher or hydra/sweeper, or use -m"
            )
    for key in STARTERS:
        starter = node.get(key)
        if not isinstance(starter, Mapping):
            raise ConfigError(f"hydra.{key}: got {format_value(starter)}, every sweep needs one, such as basic")
        starter_kind(starter, key)
        _require_plain({name: value for name, value in starter.items() if name != "_target_"}, f"hydra.{key}")
        if key == "launcher":
            checked.check(keys.Launcher, starter, "hydra.launcher.")
    sweeper = node["sweeper"]
    if sweeper.get("storage") is not None and not any(override.lstrip("+").startswith(STORAGE) for override in typed):
        raise ConfigError(f"{STORAGE[:-1]}: only the command line names a database, a config file may not")
    batch = values.Either(values.COUNT, values.NULL)
    if sweeper.get("max_batch_size") not in batch:
        size = format_value(sweeper["max_batch_size"])
        raise ConfigError(f"hydra.sweeper.max_batch_size: got {size}, must be {batch}")
    for name in sweeper.get("params") or {}:
        if "hydra" in str(name):
            raise ConfigError(f"hydra.sweeper.params.{format_value(name)}: Hydra's own settings are no part of a sweep")


def starter_kind(starter: Mapping[str, Any], key: str) -> str:
    """Which launcher or sweeper, as ``key`` says, a node of Hydra's describes; "basic" where none was chosen.

    Raises:
        ConfigError: none of ours.
    """
    name = starter.get("_target_")
    if name == BASIC[key]:
        return "basic"
    kind = upgrade.TARGETS.get(name, name) if isinstance(name, str) else None
    if kind not in STARTERS[key]:
        *others, last = STARTERS[key]
        known = f"{', '.join(others)} and {last}"
        raise ConfigError(f"hydra.{key}: snnexp sweeps through its own; there are {known}")
    return kind


def _require_plain(node: Any, path: str) -> None:
    for key, value in node.items() if isinstance(node, Mapping) else enumerate(node):
        if str(key).startswith("_"):
            raise ConfigError(f"{path}.{format_value(key)}: a key that begins with an underscore has no meaning here")
        if isinstance(value, (Mapping, list)):
            _require_plain(value, f"{path}.{format_value(key)}")
