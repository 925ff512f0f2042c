"""Read config files safely: plain YAML of limited size, without tags, aliases and calls of other resolvers."""

import io
import re
from pathlib import Path
from typing import Any, ClassVar

import yaml
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.core_plugins.importlib_resources_config_source import ImportlibResourcesConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, ListConfig, OmegaConf

from snnexp.config.plain import Pickled
from snnexp.errors import ConfigError
from snnexp.text import format_value

OTHER_BASE = re.compile(r"[-+]?(0[0-7_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")
"""Numbers that YAML 1.1 reads in base 8 or 60."""
MAX_BYTES = 2**20
MAX_NODES = 10_000
MAX_DEPTH = 32
MAX_VISITS = 500
"""Maximum number of config files that one composition may include, counting repetitions; a recipe takes about 50."""
RESOLVERS = ("new_run_id",)
"""Resolvers that an interpolation may call."""
RESOLVER = re.compile(r"\$\{([^${}:]*):([^,}$]*\$?)")
OWN_VARIABLE = re.compile(r"SNNEXP_\w*", re.ASCII)
BUILT_NAME = re.compile(r"\$\{[^${}:]*\$\{")


def read(path: Path) -> str:
    """Return the content of a config file.

    Raises:
        ConfigError: the file does not exist, is too large, or is not plain YAML.
    """
    try:
        if not path.is_file():
            raise ConfigError(f"{path}: no such file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content.decode()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text") from error
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{path}: is larger than {MAX_BYTES} bytes")
    depth = nodes = 0
    try:
        for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            line = event.start_mark.line + 1
            if isinstance(event, yaml.AliasEvent):
                raise ConfigError(f"{path}: line {line} has an alias; repeat the value, or use ${{...}}")
            if getattr(event, "tag", None) is not None:
                raise ConfigError(f"{path}: line {line} has a tag; only plain values are allowed")
            if isinstance(event, yaml.ScalarEvent):
                # Hydra resolves some interpolations before a config is composed
                require_own_resolvers(event.value, f"{path}: line {line}")
            scalar = isinstance(event, yaml.ScalarEvent) and event.implicit[0]
            if scalar and OTHER_BASE.fullmatch(event.value) and not isinstance(yaml.safe_load(event.value), str):
                raise ConfigError(
                    f"{path}: line {line} has {event.value}, which YAML reads as {yaml.safe_load(event.value)}; "
                    "write a decimal number, or quote the string"
                )
            nodes += isinstance(event, yaml.NodeEvent)
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH or nodes > MAX_NODES:
                raise ConfigError(
                    f"{path}: line {line} is nested too deeply, or the file has more than {MAX_NODES} values"
                )
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {describe(error)}") from error
    return text


def describe(error: yaml.YAMLError) -> str:
    """Return the line and the reason of a YAML error."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1} is not YAML: {error.problem}"
    return f"is not YAML: {str(error).splitlines()[0]}"


class Files(FileConfigSource):
    """Hydra's source of config files, with the checks of :func:`read`."""

    visits: ClassVar[int | None] = None
    """Number of config files that the current composition has included; None outside one."""
    _parsed: ClassVar[dict[Path, tuple[str, Pickled[DictConfig | ListConfig]]]] = {}
    """Content and parsed config of each file."""

    @classmethod
    def register(cls) -> None:
        """Make Hydra read files through this class, and its own through :class:`Packaged`; idempotent."""
        # initialize Hydra's plugins first, they register the classes to replace
        Plugins.instance()
        SourcesRegistry.instance().types |= {"file": cls, "pkg": Packaged}

    def load_config(self, config_path: str) -> ConfigResult:
        path = Path(self.path, self._normalize_file_name(config_path))
        # YAML ignores a byte order mark, but Hydra would miss `# @package` after it
        text = read(path).removeprefix("\ufeff")
        if path not in self._parsed or self._parsed[path][0] != text:
            try:
                self._parsed[path] = (text, Pickled(OmegaConf.load(io.StringIO(text))))
            except yaml.YAMLError as error:
                raise ConfigError(f"{path}: {describe(error)}") from error
        # Hydra removes the defaults list from the config that it gets
        config = self._parsed[path][1].copy()
        return _Result(self.provider, f"file://{self.path}", config, self._get_header_dict(text[:512]))


class Packaged(ImportlibResourcesConfigSource):
    """Hydra's source of its own config files; parses each once per process."""

    _loaded: ClassVar[dict[tuple[str, str], Pickled[ConfigResult]]] = {}

    def load_config(self, config_path: str) -> ConfigResult:
        key = self.path, config_path
        if key not in self._loaded:
            self._loaded[key] = Pickled(super().load_config(config_path))
        return self._loaded[key].copy()


class _Result(ConfigResult):
    """A config file as Hydra caches it; counts how often a defaults list includes it."""

    def __getattribute__(self, name: str) -> Any:
        if name == "header" and Files.visits is not None:
            Files.visits += 1
            if Files.visits > MAX_VISITS:
                raise ConfigError("defaults: a config includes too many others")
        return super().__getattribute__(name)


def require_own_resolvers(text: str, place: str) -> None:
    """Reject interpolations that call anything but the resolvers of this package or read foreign variables.

    Any function may be registered as a resolver in this process, and any environment variable may hold a secret,
    which a run would record.

    Args:
        text: a string of a config, not resolved.
        place: its key, or its file and line.
    """
    if BUILT_NAME.search(text):
        raise ConfigError(f"{place}: nested interpolations are not allowed")
    for match in RESOLVER.finditer(text):
        name, argument = match[1].strip(), match[2].strip()
        if name not in RESOLVERS and not (name == "oc.env" and OWN_VARIABLE.fullmatch(argument)):
            called = format_value(f"${{{name}:...}}" if name != "oc.env" else f"${{oc.env:{argument}}}")
            raise ConfigError(f"{place}: {called} is not allowed, only ${{key}} and ${{oc.env:SNNEXP_...}} are")
