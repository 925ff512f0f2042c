"""Hydra's config loader; keys of a recipe that a part chosen on the command line does not accept are left out.

``experiment=mnist_leaky network=mine`` merges the keys that the recipe sets below ``network`` into another network than
the recipe was written for. Keys and values that the chosen part does not accept are left out.
"""

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, ClassVar, NamedTuple, cast

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, IConfigRepository
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.default_element import ResultDefault
from hydra.core.override_parser.types import Override
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf

from snnexp.config import keys, targets
from snnexp.config.plain import Pickled, strings
from snnexp.record import upgrade
from snnexp.record.names import key_of
from snnexp.spec import parts
from snnexp.spec.places import PLACES
from snnexp.spec.values import Domain
from snnexp.text import format_value

PARAMS = ("hydra", "sweeper", "params")
"""The node in which a file lists the dotted keys that a sweep varies."""
MISSING = object()
Path = tuple[Any, ...]
"""Keys into a nested config; keys in YAML need not be strings."""


class LeftOut(NamedTuple):
    """A key of a config file that was left out.

    Args:
        key: the dotted key.
        value: the value in the file, formatted for messages.
        source: the override or file that contains the key.
        choice: the override of the part that does not accept the key.
    """

    key: str
    value: str
    source: str
    choice: str


def left_out_messages(found: Iterable[LeftOut], overrides: Sequence[str]) -> list[str]:
    """Return a message for each file and choice, without keys that the overrides set."""
    overridden = {key_of(override) for override in overrides}
    grouped: dict[tuple[str, str], dict[str, None]] = {}
    for key, value, source, choice in found:
        if key not in overridden:
            grouped.setdefault((source, choice), {})[f"{key}={value}"] = None
    return [
        f"{source}: {', '.join(words)} {'is' if len(words) == 1 else 'are'} left out, "
        f"{choice} does not accept {'it' if len(words) == 1 else 'them'}"
        for (source, choice), words in grouped.items()
    ]


@dataclass
class _Merged(ResultDefault):
    """Stands for entries of a defaults list whose configs are already merged."""

    config: Pickled[DictConfig] | None = None


class Loader(ConfigLoaderImpl):
    """Hydra's loader; after a composition, :attr:`left_out` contains the keys that were left out.

    Configs of Hydra itself, a third of the time of a composition, are merged once per process.

    Args:
        search: Hydra's search path.
        groups: the groups whose choices become a node of the config.
    """

    _merged: ClassVar[dict[tuple[tuple[str | None, bytes], ...], Pickled[DictConfig]]] = {}
    """Merged configs by package and content."""

    def __init__(self, search: ConfigSearchPath, groups: Sequence[str]) -> None:
        super().__init__(search)
        self.left_out: list[LeftOut] = []
        self._groups = groups
        self._chosen: dict[str, str] = {}
        self._targets: dict[str, Any] = {}
        self._nodes: dict[str, Any] = {}
        self._parents: dict[str | None, str | None] = {}

    def _parse_overrides_and_create_caching_repo(
        self, config_name: str | None, overrides: list[str]
    ) -> tuple[list[Override], CachingConfigRepository]:
        parsed, repo = super()._parse_overrides_and_create_caching_repo(config_name, overrides)
        self._chosen = {
            each.key_or_group: str(each.input_line).partition("=")[2]
            for each in parsed
            if each.get_key_element() == each.key_or_group and each.key_or_group in self._groups
        }
        named = {each.key_or_group: each.value() for each in parsed if not each.is_delete()}
        self._targets = {group: named[key] for group in self._chosen if (key := f"{group}._target_") in named}
        return parsed, repo

    def _compose_config_from_defaults_list(self, defaults: list[ResultDefault], repo: IConfigRepository) -> DictConfig:
        self.left_out, self._nodes = [], {}
        self._parents = {each.config_path: each.parent for each in reversed(defaults)}
        chosen = {group: OmegaConf.create() for group in self._chosen}
        for each in defaults:
            if (group := self._origin(each).partition("/")[0]) in chosen:
                chosen[group].merge_with(super()._load_single_config(each, repo).config)
        self._nodes = {group: node for group in chosen if (node := _plain(chosen[group]).get(group)) is not None}
        for group, target in self._targets.items():
            if isinstance(node := self._nodes.get(group), dict):
                # network=module with network._target_=...
                node["_target_"] = target
        first = [*takewhile(_is_hydras, defaults)]
        return super()._compose_config_from_defaults_list([self._merge(first, repo), *defaults[len(first) :]], repo)

    def _merge(self, defaults: list[ResultDefault], repo: IConfigRepository) -> _Merged:
        """Merge configs, or return the result for the same ones in an earlier composition."""
        loaded = ((each.package, cast(ConfigResult, repo.load_config(str(each.config_path)))) for each in defaults)
        key = tuple((package, Pickled(result.config).content) for package, result in loaded)
        if key not in self._merged:
            self._merged[key] = Pickled(super()._compose_config_from_defaults_list(defaults, repo))
        return _Merged(config=self._merged[key])

    def _load_single_config(self, default: ResultDefault, repo: IConfigRepository) -> ConfigResult:
        if isinstance(default, _Merged) and default.config is not None:
            return ConfigResult("hydra", "", default.config.copy(), header={})
        loaded = super()._load_single_config(default, repo)
        config, source = loaded.config, self._origin(default)
        about = {*self._nodes, PARAMS[0]} - {source.partition("/")[0]}
        if self._nodes and isinstance(config, DictConfig) and any(key in config for key in about):
            plain = _plain(config)
            if found := dict(self._left_out_keys(plain, source)):
                # do not modify the cache of the repository
                loaded = copy.copy(loaded)
                loaded.config = OmegaConf.create(_without(found, plain))
                self.left_out += found.values()
        return loaded

    def _origin(self, default: ResultDefault) -> str:
        """Return the choice whose file includes this file, as ``group/choice``; the file itself if it was chosen."""
        path, parent = default.config_path, default.parent
        while parent in self._parents and self._parents[parent] is not None and "/" in str(parent):
            path, parent = parent, self._parents[parent]
        return str(path)

    def _left_out_keys(self, plain: Mapping[str, Any], source: str) -> Iterator[tuple[Path, LeftOut]]:
        """Yield the keys of a file, as paths, that the parts chosen on the command line do not accept."""
        group, _, name = source.partition("/")
        origin = f"{group}={name}" if name else f"{group}.yaml"
        for node, choice in self._nodes.items():
            key = f"{node}._target_" if node in self._targets else node
            override = f"{key}={self._targets.get(node, self._chosen[node])}"
            if node != group:
                for path, value in (*_rejected_keys(node, choice, plain), *_rejected_params(node, choice, plain)):
                    dotted = ".".join(map(str, path)).removeprefix(".".join([*PARAMS, ""]))
                    yield path, LeftOut(dotted, format_value(value), origin, override)


def _is_hydras(default: ResultDefault) -> bool:
    """Return True if a config only sets keys of the ``hydra`` node."""
    return str(default.config_path).startswith("hydra/") and str(default.package).partition(".")[0] == "hydra"


def _rejected_keys(node: str, choice: Any, plain: Mapping[str, Any]) -> Iterator[tuple[Path, Any]]:
    """Yield the keys of a node that the choice does not accept; merge the others into the choice."""
    own = plain.get(node, choice)
    if not isinstance(own, Mapping):
        if own != choice:
            yield (node,), own
        return
    for key, value in own.items() if node in plain else ():
        merged = _merged(choice, key, value)
        if _accepts(node, choice, key, merged):
            choice[key] = merged
        else:
            yield (node, key), value


def _rejected_params(node: str, choice: Any, plain: Mapping[str, Any]) -> Iterator[tuple[Path, Any]]:
    """Yield the sweep parameters of a file below a node that the choice does not accept."""
    params: Any = plain
    for word in PARAMS:
        params = params.get(word) if isinstance(params, Mapping) else None
    for path, value in params.items() if isinstance(params, Mapping) else ():
        first, *rest = str(path).split(".")
        if first == node and rest and not _accepts(node, choice, rest[0]):
            yield (*PARAMS, path), value


def _plain(config: Any) -> dict[str, Any]:
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=False))


def _merged(node: Any, key: str, value: Any) -> Any:
    """Return the value of a key after Hydra has merged another value into it."""
    if not isinstance(node, Mapping) or key not in node:
        return value
    return _plain(OmegaConf.merge({key: node[key]}, {key: value}))[key]


def _accepts(node: str, choice: Any, key: str, value: Any = MISSING) -> bool:
    """Return True if a part accepts a key and value, as far as its source determines it."""
    if not isinstance(choice, Mapping):
        # a reference to another node has no keys
        return False
    target = upgrade.with_targets(choice).get("_target_")
    if not _is_read(target) or (key in choice and choice[key] == value):
        return True
    if key == "_target_":
        # the target of another part
        return False
    found = keys.lookup(target, node, key)
    if found is None or (node in PLACES and key in PLACES[node].given):
        return parts.of(target).takes_all
    return value is MISSING or _fits(value, found.domain)


def _is_read(target: Any) -> bool:
    return isinstance(target, str) and (targets.is_snnexp(target) or targets.is_allowed(target))


def _fits(value: Any, domain: Domain | None) -> bool:
    """Return True if a value is in a domain, and a node in it has only arguments that its part accepts."""
    if any("${" in text or text == "???" for text in strings([value])):
        # the resolved value is unknown
        return True
    target = value.get("_target_") if isinstance(value, Mapping) else None
    made = isinstance(target, str) and targets.is_allowed(target)
    if domain is not None and not made and value not in domain:
        return False
    if not isinstance(value, Mapping) or not _is_read(target):
        return True
    spec = parts.of(str(target))
    arguments = spec.arguments
    return all(
        _fits(entry, arguments[key].domain) if key in arguments else spec.takes_all
        for key, entry in value.items()
        if key != "_target_"
    )


def _without(paths: Collection[Path], plain: Mapping[str, Any], here: Path = ()) -> dict[str, Any]:
    """Return a config without the given paths and without mappings that become empty."""
    kept: dict[str, Any] = {}
    for key, value in plain.items():
        path = (*here, key)
        if not any(each[: len(path)] == path for each in paths):
            kept[key] = value
        elif path not in paths and (rest := _without(paths, value, path)):
            kept[key] = rest
    return kept
