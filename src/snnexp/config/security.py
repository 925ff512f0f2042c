"""Security checks of composed configs from untrusted sources: bounded interpolations, and Hydra's settings as shipped.

:mod:`snnexp.config.files` checks the files before they are composed; :mod:`snnexp.config.targets` checks which code a
config may name.
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
"""The settings of Hydra that write, print or call something, with the values of conf/train.yaml."""
STARTERS = {"launcher": ("processes", "slurm", "stacked"), "sweeper": ("grid", "optuna")}
"""The launchers and sweepers of this package, the default first. ``_target_`` is one of these names, not a class."""
BASIC = {
    "launcher": "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
    "sweeper": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
}
"""Hydra's defaults, if nothing was chosen."""
STORAGE = "hydra.sweeper.storage="


def require_bounded(plain: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Reject circular interpolations, and interpolations that resolve to too many values.

    Args:
        plain: a config as plain values, not resolved.
        keys: the top-level keys to check.
    """
    sizes = _ResolvedSizes(plain)
    for key in keys:
        sizes.of(plain[key], (str(key),))


class _ResolvedSizes:
    """Computes the number of values of a node after resolution, without resolving it."""

    # the syntax of a reference in OmegaConf
    reference = re.compile(r"\$\{[ \t]*([^\\${}():\s'\"]+)[ \t]*\}")

    def __init__(self, root: Any) -> None:
        self.root = root
        self.known: dict[tuple[str, ...], int] = {}

    def of(self, node: Any, path: tuple[str, ...]) -> int:
        if path not in self.known:
            # a node that is reached again during its computation is circular
            self.known[path] = -1
            self.known[path] = self._count(node, path)
        size = self.known[path]
        if size < 0 or len(path) > MAX_DEPTH or size > MAX_NODES:
            reason = "refers to itself" if size < 0 else "is too large or nested too deeply"
            raise ConfigError(f"{'.'.join(path) or '${...}'}: {reason}")
        return size

    def _count(self, node: Any, path: tuple[str, ...]) -> int:
        if isinstance(node, (Mapping, list)):
            items = node.items() if isinstance(node, Mapping) else enumerate(node)
            return 1 + sum(self.of(value, (*path, str(key))) for key, value in items)
        if not isinstance(node, str):
            return 1
        require_own_resolvers(node, ".".join(path))
        # long strings count more, because they multiply as well
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
                # the target is inside another reference, whose size is an upper bound
                break
            else:
                return 0
            walked += 1
        return self.of(node, target[:walked])


def require_shipped_hydra(node: Mapping[str, Any], overrides: Sequence[str] = ()) -> None:
    """Reject settings of Hydra that write elsewhere or call code, and launchers and sweepers of other packages.

    Args:
        node: the ``hydra`` node of a composed config, not resolved.
        overrides: the command-line overrides.
    """
    for key, shipped in HYDRA.items():
        found = node.get(key)
        if key == "job" and isinstance(found, Mapping):
            found = {name: found.get(name) for name in HYDRA["job"]}
        if found != shipped:
            raise ConfigError(f"hydra.{key}: cannot be changed; choose hydra/launcher or hydra/sweeper, or use -m")
    for key in STARTERS:
        starter = node.get(key)
        if not isinstance(starter, Mapping):
            raise ConfigError(f"hydra.{key}: got {format_value(starter)}, every sweep needs one, such as basic")
        starter_kind(starter, key)
        _require_plain({name: value for name, value in starter.items() if name != "_target_"}, f"hydra.{key}")
        if key == "launcher":
            checked.check(keys.Launcher, starter, "hydra.launcher.")
    sweeper = node["sweeper"]
    if sweeper.get("storage") is not None and not any(
        override.lstrip("+").startswith(STORAGE) for override in overrides
    ):
        raise ConfigError(f"{STORAGE[:-1]}: a database can be set on the command line only, not in a config file")
    batch = values.Either(values.COUNT, values.NULL)
    if sweeper.get("max_batch_size") not in batch:
        size = format_value(sweeper["max_batch_size"])
        raise ConfigError(f"hydra.sweeper.max_batch_size: got {size}, must be {batch}")
    for name in sweeper.get("params") or {}:
        if "hydra" in str(name):
            raise ConfigError(f"hydra.sweeper.params.{format_value(name)}: Hydra's own settings cannot be swept")


def starter_kind(starter: Mapping[str, Any], key: str) -> str:
    """Return the kind of the launcher or sweeper, as ``key`` says, of a node; "basic" if none was chosen.

    Raises:
        ConfigError: it is not one of this package.
    """
    name = starter.get("_target_")
    if name == BASIC[key]:
        return "basic"
    kind = upgrade.TARGETS.get(name, name) if isinstance(name, str) else None
    if kind not in STARTERS[key]:
        raise ConfigError(f"hydra.{key}: must be one of {', '.join(STARTERS[key])}")
    return kind


def _require_plain(node: Any, path: str) -> None:
    for key, value in node.items() if isinstance(node, Mapping) else enumerate(node):
        if str(key).startswith("_"):
            raise ConfigError(f"{path}.{format_value(key)}: a key that begins with an underscore has no meaning here")
        if isinstance(value, (Mapping, list)):
            _require_plain(value, f"{path}.{format_value(key)}")
