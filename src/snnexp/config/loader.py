"""Hydra's loader of configs, where keys that nobody typed give way to a choice that was typed.

``experiment=mnist_leaky network=mine`` merges what the recipe sets below ``network`` into another network than the one
that it was written for. A key that the chosen part does not take, or whose value it does not take, is left out.
"""

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, IConfigRepository
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.default_element import ResultDefault
from hydra.core.override_parser.types import Override
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf

from snnexp.config import keys, targets
from snnexp.config.plain import strings
from snnexp.record import upgrade
from snnexp.record.names import key_of
from snnexp.spec import parts
from snnexp.spec.places import PLACES
from snnexp.spec.values import Domain
from snnexp.text import format_value

PARAMS = ("hydra", "sweeper", "params")
"""Where a file lists the keys that a sweep varies, each as a dotted key."""
MISSING = object()
Path = tuple[Any, ...]
"""Of keys into a config; those of YAML need not be texts."""


class LeftOut(NamedTuple):
    """A key of a config file that gave way.

    Args:
        key: as it would be typed.
        value: that the file sets, for a person.
        source: what the file was chosen by.
        choice: what was typed and does not take the key.
    """

    key: str
    value: str
    source: str
    choice: str


def sentences(found: Iterable[LeftOut], overrides: Sequence[str]) -> list[str]:
    """A sentence for each file and choice; none about a key that was typed, whose value counts anyway."""
    typed = {key_of(override) for override in overrides}
    grouped: dict[tuple[str, str], dict[str, None]] = {}
    for key, value, source, choice in found:
        if key not in typed:
            grouped.setdefault((source, choice), {})[f"{key}={value}"] = None
    return [
        f"{source}: {', '.join(words)} {'is' if len(words) == 1 else 'are'} left out, "
        f"{choice} does not take {'it' if len(words) == 1 else 'them'}"
        for (source, choice), words in grouped.items()
    ]


class Loader(ConfigLoaderImpl):
    """Hydra's loader; after a composition, :attr:`left_out` holds what gave way.

    Args:
        search: where it looks for files.
        groups: whose choices become a node of the config.
    """

    def __init__(self, search: ConfigSearchPath, groups: Sequence[str]) -> None:
        super().__init__(search)
        self.left_out: list[LeftOut] = []
        self._groups = groups
        self._typed: dict[str, str] = {}
        self._targets: dict[str, Any] = {}
        self._nodes: dict[str, Any] = {}
        self._parents: dict[str | None, str | None] = {}

    def _parse_overrides_and_create_caching_repo(
        self, config_name: str | None, overrides: list[str]
    ) -> tuple[list[Override], CachingConfigRepository]:
        parsed, repo = super()._parse_overrides_and_create_caching_repo(config_name, overrides)
        self._typed = {
            each.key_or_group: str(each.input_line).partition("=")[2]
            for each in parsed
            if each.get_key_element() == each.key_or_group and each.key_or_group in self._groups
        }
        named = {each.key_or_group: each.value() for each in parsed if not each.is_delete()}
        self._targets = {group: named[key] for group in self._typed if (key := f"{group}._target_") in named}
        return parsed, repo

    def _compose_config_from_defaults_list(self, defaults: list[ResultDefault], repo: IConfigRepository) -> DictConfig:
        self.left_out, self._nodes = [], {}
        self._parents = {each.config_path: each.parent for each in reversed(defaults)}
        bare = {group: OmegaConf.create() for group in self._typed}
        for each in defaults:
            if (group := self._origin(each).partition("/")[0]) in bare:
                bare[group].merge_with(super()._load_single_config(each, repo).config)
        self._nodes = {group: node for group in bare if (node := _plain(bare[group]).get(group)) is not None}
        for group, target in self._targets.items():
            if isinstance(node := self._nodes.get(group), dict):
                # network=module, and a part that was typed too
                node["_target_"] = target
        return super()._compose_config_from_defaults_list(defaults, repo)

    def _load_single_config(self, default: ResultDefault, repo: IConfigRepository) -> ConfigResult:
        loaded = super()._load_single_config(default, repo)
        config, source = loaded.config, self._origin(default)
        about = {*self._nodes, PARAMS[0]} - {source.partition("/")[0]}
        if self._nodes and isinstance(config, DictConfig) and any(key in config for key in about):
            plain = _plain(config)
            if found := dict(self._giving_way(plain, source)):
                # the repository keeps what it has read
                loaded = copy.copy(loaded)
                loaded.config = OmegaConf.create(_without(found, plain))
                self.left_out += found.values()
        return loaded

    def _origin(self, default: ResultDefault) -> str:
        """The file of a choice that a file was included by, ``group/choice``; the file itself where it was chosen."""
        path, parent = default.config_path, default.parent
        while parent in self._parents and self._parents[parent] is not None and "/" in str(parent):
            path, parent = parent, self._parents[parent]
        return str(path)

    def _giving_way(self, plain: Mapping[str, Any], source: str) -> Iterator[tuple[Path, LeftOut]]:
        """What gives way of a file, as paths into it, to the choices that were typed."""
        group, _, name = source.partition("/")
        by = f"{group}={name}" if name else f"{group}.yaml"
        for node, choice in self._nodes.items():
            key = f"{node}._target_" if node in self._targets else node
            typed = f"{key}={self._targets.get(node, self._typed[node])}"
            if node != group:
                for path, value in (*_below(node, choice, plain), *_swept(node, choice, plain)):
                    dotted = ".".join(map(str, path)).removeprefix(".".join([*PARAMS, ""]))
                    yield path, LeftOut(dotted, format_value(value), by, typed)


def _below(node: str, choice: Any, plain: Mapping[str, Any]) -> Iterator[tuple[Path, Any]]:
    """Of the keys of a node, those that the choice does not take; the others are merged into it."""
    own = plain.get(node, choice)
    if not isinstance(own, Mapping):
        if own != choice:
            yield (node,), own
        return
    for key, value in own.items() if node in plain else ():
        merged = _merged(choice, key, value)
        if _takes(node, choice, key, merged):
            choice[key] = merged
        else:
            yield (node, key), value


def _swept(node: str, choice: Any, plain: Mapping[str, Any]) -> Iterator[tuple[Path, Any]]:
    """Of the keys below a node that a file lets a sweep vary, those that the choice does not take."""
    params: Any = plain
    for word in PARAMS:
        params = params.get(word) if isinstance(params, Mapping) else None
    for path, value in params.items() if isinstance(params, Mapping) else ():
        first, *rest = str(path).split(".")
        if first == node and rest and not _takes(node, choice, rest[0]):
            yield (*PARAMS, path), value


def _plain(config: Any) -> dict[str, Any]:
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=False))


def _merged(node: Any, key: str, value: Any) -> Any:
    """What Hydra makes of a key of a node and another value for it."""
    if not isinstance(node, Mapping) or key not in node:
        return value
    return _plain(OmegaConf.merge({key: node[key]}, {key: value}))[key]


def _takes(node: str, choice: Any, key: str, value: Any = MISSING) -> bool:
    """Whether a chosen part takes a key, and a value for it, as far as its source tells."""
    if not isinstance(choice, Mapping):
        # a reference to another node; nothing stands below it
        return False
    target = upgrade.with_targets(choice).get("_target_")
    if not _is_read(target) or (key in choice and choice[key] == value):
        return True
    if key == "_target_":
        # of another part than the one that was chosen
        return False
    found = keys.lookup(target, node, key)
    if found is None or (node in PLACES and key in PLACES[node].given):
        return parts.of(target).takes_all
    return value is MISSING or _fits(value, found.domain)


def _is_read(target: Any) -> bool:
    return isinstance(target, str) and (targets.is_snnexp(target) or targets.is_allowed(target))


def _fits(value: Any, domain: Domain | None) -> bool:
    """Whether a value lies in a domain, and an object in it has no argument that its part does not take."""
    if any("${" in text or text == "???" for text in strings([value])):
        # what it is going to be is not known here
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
    """A config without what stands at these paths, and without mappings that this leaves empty."""
    kept: dict[str, Any] = {}
    for key, value in plain.items():
        path = (*here, key)
        if not any(each[: len(path)] == path for each in paths):
            kept[key] = value
        elif path not in paths and (rest := _without(paths, value, path)):
            kept[key] = rest
    return kept
