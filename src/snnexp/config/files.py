"""Config files are read: small, plain, with no function called in them but those of this package."""

import copy
import io
import re
from pathlib import Path
from typing import Any, ClassVar

import yaml
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, ListConfig, OmegaConf

from snnexp.errors import ConfigError
from snnexp.text import format_value

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
            called = format_value(f"${{{name}:...}}" if name != "oc.env" else f"${{oc.env:{argument}")
            raise ConfigError(f"{place}: {called} is not resolved, only ${{key}} and ${{oc.env:SNNEXP_...}} are")
