"""What a config may do, whoever wrote it: name the parts of this package, and no code besides.

Files are small and plain before they are read, interpolations end, Hydra's own switches stay as they are shipped, and a
``_target_`` is a name of the table in ``pairs`` or lies in a package that SNNEXP_ALLOW_TARGETS names.
"""

import copy
import importlib
import inspect
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import yaml
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, ListConfig, OmegaConf

from snnexp.errors import ConfigError
from snnexp.record import upgrade
from snnexp.spec import values
from snnexp.spec.rules import EVERY, SHIPPED
from snnexp.text import closest, shown

OTHER_BASE = re.compile(r"[-+]?(0[0-7_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")
"""Numbers that YAML 1.1 reads to the base 8 or 60."""
MAX_BYTES = 2**20
MAX_NODES = 10_000
MAX_DEPTH = 32
MAX_VISITS = 500
"""How many configs one composition may go through, each as often as it is named; a recipe takes about 50."""

RESOLVERS = ("new_run_id",)
"""Functions that an interpolation may call."""
RESOLVER = re.compile(r"\$\{([^${}:]*):([^,}$]*\$?)")
OWN_VARIABLE = re.compile(r"SNNEXP_\w*", re.ASCII)
BUILT_NAME = re.compile(r"\$\{[^${}:]*\$\{")
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


def read(path: Path) -> str:
    """The text of a config file.

    Raises:
        ConfigError: it is not there, or is no plain YAML of a size that a person would write.
    """
    try:
        if not path.is_file():
            raise ConfigError(f"{path}: there is no such file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content.decode()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not a text in UTF-8") from error
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{path}: is larger than {MAX_BYTES} bytes")
    depth = nodes = 0
    try:
        for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            line = event.start_mark.line + 1
            if isinstance(event, yaml.AliasEvent):
                raise ConfigError(f"{path}: line {line} has an alias; write the value out, or ${{...}}")
            if getattr(event, "tag", None) is not None:
                raise ConfigError(f"{path}: line {line} has a tag; plain values have none")
            if isinstance(event, yaml.ScalarEvent):
                # Hydra resolves some before a config is composed
                require_own_resolvers(event.value, f"{path}: line {line}")
            scalar = isinstance(event, yaml.ScalarEvent) and event.implicit[0]
            if scalar and OTHER_BASE.fullmatch(event.value) and not isinstance(yaml.safe_load(event.value), str):
                raise ConfigError(
                    f"{path}: line {line} has {event.value}, which YAML takes for {yaml.safe_load(event.value)}; "
                    "write a decimal number, or quotes around a text"
                )
            nodes += isinstance(event, yaml.NodeEvent)
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH or nodes > MAX_NODES:
                raise ConfigError(
                    f"{path}: line {line} is nested too deeply, or there are more than {MAX_NODES} values"
                )
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {describe(error)}") from error
    return text


def describe(error: yaml.YAMLError) -> str:
    """Where a text is not YAML, and why."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1} is not YAML: {error.problem}"
    return f"is not YAML: {str(error).splitlines()[0]}"


class Files(FileConfigSource):
    """Hydra's folders of configs, with :func:`read` in front of each file."""

    visits: ClassVar[int | None] = None
    """How many configs the composition under way has gone through."""
    _parsed: ClassVar[dict[Path, tuple[str, DictConfig | ListConfig]]] = {}
    """The text of each file, and what it was parsed to."""

    @classmethod
    def register(cls) -> None:
        """Let Hydra read files through this class; safe to call again."""
        # Hydra's plugins register the class that is replaced
        Plugins.instance()
        SourcesRegistry.instance().types["file"] = cls

    def load_config(self, config_path: str) -> ConfigResult:
        path = Path(self.path, self._normalize_file_name(config_path))
        # Hydra looks for its `# @package` in front of what YAML leaves out
        text = read(path).removeprefix("\ufeff")
        if self._parsed.get(path, ("",))[0] != text:
            try:
                self._parsed[path] = (text, OmegaConf.load(io.StringIO(text)))
            except yaml.YAMLError as error:
                raise ConfigError(f"{path}: {describe(error)}") from error
        # Hydra takes the defaults list out of the config that it gets
        config = copy.deepcopy(self._parsed[path][1])
        return _Result(self.provider, f"file://{self.path}", config, self._get_header_dict(text[:512]))


class _Result(ConfigResult):
    """A config file as Hydra keeps it: read once, but gone through each time that a defaults list names it."""

    def __getattribute__(self, name: str) -> Any:
        if name == "header" and Files.visits is not None:
            Files.visits += 1
            if Files.visits > MAX_VISITS:
                raise ConfigError("defaults: one config leads to too many others")
        return super().__getattribute__(name)


def require_own_resolvers(text: str, place: str) -> None:
    """Refuse a text whose interpolation calls a function, but for those of this package and a variable of its own.

    Any function may be registered in this process, and any variable may hold a secret, which a run would record.

    Args:
        text: as it was written.
        place: the key, or file and line.
    """
    if BUILT_NAME.search(text):
        raise ConfigError(f"{place}: an interpolation may not be made of others")
    for match in RESOLVER.finditer(text):
        name, argument = match[1].strip(), match[2].strip()
        if name not in RESOLVERS and not (name == "oc.env" and OWN_VARIABLE.fullmatch(argument)):
            called = shown(f"${{{name}:...}}" if name != "oc.env" else f"${{oc.env:{argument}")
            raise ConfigError(f"{place}: {called} is not resolved, only ${{key}} and ${{oc.env:SNNEXP_...}} are")


def require_bounded(plain: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Refuse interpolations that lead back to themselves, or whose values together are too large.

    Args:
        plain: a config's containers and values, not yet resolved.
        keys: what is looked at.
    """
    weights = _Weights(plain)
    for key in keys:
        weights.of(plain[key], (str(key),))


class _Weights:
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
            self.known[path] = self._weigh(node, path)
        weight = self.known[path]
        if weight < 0 or len(path) > MAX_DEPTH or weight > MAX_NODES:
            reason = "leads back to itself" if weight < 0 else "is too large or nested too deeply"
            raise ConfigError(f"{'.'.join(path) or '${...}'}: {reason}")
        return weight

    def _weigh(self, node: Any, path: tuple[str, ...]) -> int:
        if isinstance(node, (Mapping, list)):
            items = node.items() if isinstance(node, Mapping) else enumerate(node)
            return 1 + sum(self.of(value, (*path, str(key))) for key, value in items)
        if not isinstance(node, str):
            return 1
        require_own_resolvers(node, ".".join(path))
        # long texts count for more, for they multiply as well
        return 1 + len(node) // 64 + sum(self._referred(word, path) for word in self.reference.findall(node))

    def _referred(self, word: str, path: tuple[str, ...]) -> int:
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
            raise ConfigError(f"hydra.{key}: got {shown(starter)}, every sweep needs one, such as basic")
        kind_of(starter, key)
        _require_plain({name: value for name, value in starter.items() if name != "_target_"}, f"hydra.{key}")
        values.check(starter, f"hydra.{key}.")
    sweeper = node["sweeper"]
    if sweeper.get("storage") is not None and not any(override.lstrip("+").startswith(STORAGE) for override in typed):
        raise ConfigError(f"{STORAGE[:-1]}: only the command line names a database, a config file may not")
    batch = values.Either(values.COUNT, values.NULL)
    if sweeper.get("max_batch_size") not in batch:
        size = shown(sweeper["max_batch_size"])
        raise ConfigError(f"hydra.sweeper.max_batch_size: got {size}, must be {batch}")
    for name in sweeper.get("params") or {}:
        if "hydra" in str(name):
            raise ConfigError(f"hydra.sweeper.params.{shown(name)}: Hydra's own settings are no part of a sweep")


def kind_of(starter: Mapping[str, Any], key: str) -> str:
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
            raise ConfigError(f"{path}.{shown(key)}: a key that begins with an underscore has no meaning here")
        if isinstance(value, (Mapping, list)):
            _require_plain(value, f"{path}.{shown(key)}")


def allowed() -> tuple[str, ...]:
    """Packages besides this one whose code a config may name: those in SNNEXP_ALLOW_TARGETS."""
    named = (package.strip() for package in os.environ.get("SNNEXP_ALLOW_TARGETS", "").split(","))
    # what is no name of a package opens nothing; of this one, the table tells what may be named
    real = (package for package in named if all(word.isidentifier() for word in package.split(".")))
    return tuple(package for package in real if package.split(".")[0] != "snnexp")


def require_targets(node: Any, path: str, place: str | None) -> None:
    """Refuse each ``_target_`` in a node that may not stand where it stands, and keys that Hydra would give a meaning.

    Args:
        node: a resolved node.
        path: where it stands.
        place: what is built from it, a key of :data:`~snnexp.spec.rules.SHIPPED`; "" for any, None for nothing at all.
    """
    if isinstance(node, list):
        for index, value in enumerate(node):
            require_targets(value, f"{path}.{index}", None)
    if not isinstance(node, Mapping):
        return
    for key in node:
        if not isinstance(key, str):
            raise ConfigError(f"{path}.{shown(key)}: a key must be a text")
        if key.startswith("_") and key != "_target_":
            raise ConfigError(f"{path}.{shown(key)}: unknown key, of those with an underscore only _target_")
    if "_target_" in node or place == path:
        name = _text(node.get("_target_"), path)
        require_target(name, path, place)
        place = place if name in EVERY else ""
    for key, value in node.items():
        require_targets(value, f"{path}.{shown(key)}", _place(place, key))


def _place(parent: str | None, key: str) -> str | None:
    if parent == "":
        return ""
    if parent in ("neuron", "readout"):
        is_parameter = isinstance(values.DOMAINS.get(key), values.Parameter)
        return "surrogate" if key == "surrogate" else "initializer" if is_parameter else None
    return None


def _text(name: object, path: str) -> str:
    if not isinstance(name, str):
        raise ConfigError(f"{path}._target_: got {shown(name)}, must be a name such as snnexp.neurons.Leaky")
    return name


def require_target(name: str, path: str, place: str | None) -> None:
    """Refuse a name that is neither shipped for this place nor from a package that the user allowed."""
    options: Mapping[str, Any] = EVERY if place == "" else SHIPPED.get(place or "", {})
    if name in options or _within(name, allowed()):
        return
    told = shown(name)
    if not _within(name, ("snnexp",)):
        packages = ", ".join(("snnexp", *allowed()))
        raise ConfigError(f"{path}._target_: {told} is not from {packages}; SNNEXP_ALLOW_TARGETS can allow its package")
    if not options:
        raise ConfigError(f"{path}._target_: nothing is built here, got {told}")
    names = {target.rpartition(".")[2]: target for target in options}
    hint = closest(told.rpartition(".")[2], names)
    raise ConfigError(f"{path}._target_: {told} cannot stand here, {hint}")


def _within(name: str, packages: Iterable[str]) -> bool:
    return any(f"{name}.".startswith(f"{package}.") for package in packages)


def resolve(name: str, path: str) -> Any:
    """The class or function that the ``_target_`` at ``path`` names.

    Raises:
        ConfigError: it may not be called, or there is none.
    """
    require_target(name, path, path if path in SHIPPED else "")
    return locate(name, path, ("snnexp",) if name in EVERY else allowed())


def locate(name: str, path: str, packages: Iterable[str]) -> Any:
    """The class or function of that name, if it is defined in one of ``packages``.

    Raises:
        ConfigError: it is not, or there is none.
        Exception: whatever a module raises while it is imported.
    """
    packages = tuple(packages)
    told = shown(name)
    refusal = f"{path}._target_: {told} is not from {', '.join(packages) or 'snnexp'}"
    if not _within(name, packages):
        raise ConfigError(f"{refusal}; SNNEXP_ALLOW_TARGETS can allow its package")
    target, found, imported = None, "", True
    for word in name.split("."):
        inside, found = found, f"{found}.{word}".lstrip(".")
        module = _module(found) if imported else None
        imported = module is not None
        if not imported and not hasattr(target, word):
            where = f"{inside} has no {word}" if inside else f"no module {word} is installed"
            raise ConfigError(f"{path}._target_: there is no {told}: {where}")
        target = module if imported else getattr(target, word)
    # objects that can be called, such as functools.partial, hide what they call
    if not (inspect.isclass(target) or inspect.isroutine(target)):
        raise ConfigError(f"{path}._target_: {told} is neither a class nor a function")
    # a name inside an allowed package may be bound to something that the package imported
    origin = str(getattr(target, "__module__", None))
    if not _within(origin, packages):
        raise ConfigError(f"{refusal}, but from {origin}")
    return target


def _module(name: str) -> ModuleType | None:
    """The module of that name; what it raises while it is imported is passed on."""
    if not all(word.isidentifier() for word in name.split(".")):
        return None
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # another name is that of a module which it imports
        if error.name != name:
            raise
        return None
