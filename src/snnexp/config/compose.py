"""Compose the config of a run, and of each point of a sweep, with Hydra's compose API."""

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from hydra import compose as hydra_compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict

from snnexp.config import decoding, files, loggers, security, user_parts
from snnexp.config.checks import check
from snnexp.config.folders import GLOBAL, GROUPS, conf_dir, initialized_hydra, registered_resolvers, require_global
from snnexp.config.loader import Loader
from snnexp.config.messages import explain_errors, in_one_line, short
from snnexp.config.overrides import independent, is_part, quoted, with_cleared_parts
from snnexp.config.plain import Pickled, flat, strings
from snnexp.config.provenance import left_out, record_left_out, with_provenance
from snnexp.config.steps import resolve_num_steps
from snnexp.config.targets import is_allowed, is_snnexp
from snnexp.errors import ConfigError, ConfigErrors
from snnexp.record import upgrade
from snnexp.record.names import key_of
from snnexp.spec import parts, rules
from snnexp.text import format_value

MAX_ERRORS = 20
"""Maximum number of errors that one command reports; each takes another composition."""
NO_SEARCH = "hydra.searchpath=[]"
"""Prevents configs from extending Hydra's search path; only ``--config-dir`` does."""
Composed = tuple[DictConfig, dict[str, Any]]
"""A config, and the ``hydra`` node, not resolved."""


def keys_of_choice(group: str, choice: str, folders: Sequence[Path] = ()) -> dict[str, Any]:
    """Return the keys that a choice sets and their values; interpolations are not resolved.

    Raises:
        ConfigError: the choice does not exist or cannot be composed.
    """

    def values(overrides: Sequence[str]) -> dict[str, Any]:
        cfg, node = compose_unchecked(overrides, folders)
        points = flat(node["sweeper"].get("params") or {}, "hydra.sweeper.params.")
        return flat(cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=False))) | points

    found = values([f"{group}={choice}"])
    before = values([]) if group in GLOBAL else {}
    return {
        key: value
        for key, value in found.items()
        if (before.get(key, ...) != value if group in GLOBAL else key.startswith(f"{group}.") or key == group)
    }


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """Compose, resolve and check the config of one run, as ``snnexp train`` would.

    Args:
        overrides: overrides in Hydra's grammar, ``["experiment=mnist_leaky", "neuron.beta=0.9", "seed=3"]``.

    Raises:
        ConfigError: the config is invalid; the message names the key.
    """
    cfg, errors = resolve_num_steps(compose_unchecked(overrides)[0]), ConfigErrors()
    checked = cfg
    with errors.collect():
        checked = check(cfg)
    with errors.collect():
        require_used(overrides, cfg)
    errors.raise_if_any()
    return with_provenance(checked, overrides, cfg)


def compose_unchecked(overrides: Sequence[str], folders: Sequence[Path] = ()) -> Composed:
    """Compose a config and apply the security checks, but do not validate its values.

    Configs with the same shipped choices share one composition in this process.

    Args:
        overrides: overrides in Hydra's grammar.
        folders: additional config folders, from ``--config-dir``.

    Returns:
        The config, and the ``hydra`` node, not resolved. The node does not list all overrides.

    Raises:
        ConfigError: the config cannot be composed, or violates a security check. All invalid overrides are reported.
    """
    return Composer(folders).compose(overrides)


def compose_choices(words: Sequence[str], folders: Sequence[Path] = ()) -> DictConfig:
    """Compose a config to read the nodes of the given choices from; values are not validated.

    Raises:
        ConfigError: the config cannot be composed, or violates a security check.
    """
    return _compose_pickled(tuple(quoted(words)), folders).copy()[0]


def _compose_pickled(overrides: tuple[str, ...], folders: Sequence[Path]) -> Pickled[Composed]:
    """Compose a config, or return an earlier composition."""
    # files and parts of users, and values of interpolations, may change
    if folders or "SNNEXP_CONF" in os.environ or any("_target_" in word or "${" in word for word in overrides):
        return Pickled(_compose_in_hydra(overrides, folders))
    known = _compositions(_files(conf_dir()))
    if overrides not in known:
        known[overrides] = Pickled(_compose_in_hydra(overrides, ()))
    return known[overrides]


@lru_cache(maxsize=1)
def _compositions(files: object) -> dict[tuple[str, ...], Pickled[Composed]]:
    """Return the compositions of the shipped files in this process; none after a file has changed."""
    return {}


def _files(folder: Path) -> tuple[Any, ...]:
    found = ((path, path.stat()) for path in folder.rglob("*.yaml") if path.is_file())
    return folder, frozenset((path, status.st_size, status.st_mtime_ns) for path, status in found)


def _is_below(key: str, absent: set[str]) -> bool:
    """Return True if a key may belong to a choice that could not be composed, and is unknown only for that reason."""
    return "." in key and (key.partition(".")[0] in absent or not absent.isdisjoint(GLOBAL))


def _culprit(error: ConfigError, overrides: Sequence[str]) -> str | None:
    """Return the key of the override that caused an error, or None."""
    message = str(error.args[0])
    for override in overrides:
        key = key_of(override)
        names = (short(key), override, format_value(override), *(key[:dot] for dot in _dots(key)))
        if message.startswith(tuple(f"{name}:" for name in names)):
            return key
    return None


def _dots(key: str) -> Iterator[int]:
    return (index for index, letter in enumerate(key) if letter == ".")


def _compose_in_hydra(overrides: Sequence[str], folders: Sequence[Path]) -> Composed:
    with in_one_line(), explain_errors(overrides, folders), initialized_hydra(folders) as hydra:
        for override in overrides:
            files.require_own_resolvers(override, override.partition("=")[0])
        cfg = decoding.compose_with_decoder(overrides, _with_schedule, folders)
        whole = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=False))
        node = whole["hydra"]
        _require_one_epoch(whole, node)
        with open_dict(cfg):
            del cfg["hydra"]
        record_left_out(cfg, cast(Loader, hydra.config_loader).left_out)
        with user_parts.wrap_errors("hydra"):
            security.require_shipped_hydra(node, overrides)
        # check the keys of a run first, so that the message names them and not the hydra node
        security.require_bounded(whole, sorted(whole, key="hydra".__eq__))
        for group in GLOBAL:
            if group in cfg and (choice := node["runtime"]["choices"].get(group)):
                require_global(f"{group}/{choice}", folders)
    return cfg, node


def _require_one_epoch(plain: Mapping[str, Any], node: Mapping[str, Any]) -> None:
    is_batch, trainer = node["runtime"]["choices"].get("debug") == "batch", plain.get("trainer")
    if is_batch and isinstance(trainer, Mapping) and trainer.get("max_epochs", 1) != 1:
        epochs = format_value(trainer.get("max_epochs"))
        raise ConfigError(f"trainer.max_epochs: got {epochs}, debug=batch trains one epoch; leave out one of them")


def _with_schedule(overrides: Sequence[str]) -> DictConfig:
    """Compose with Hydra; a string ``optimizer.schedule``, from earlier versions, becomes a choice of ``schedule``."""
    keys = [key_of(word) for word in overrides]
    words = [word for word, key in zip(overrides, keys, strict=True) if key != upgrade.SCHEDULE]
    if len(words) < len(overrides):
        if "schedule" in keys:
            raise ConfigError(f"{upgrade.SCHEDULE}: is the former name of schedule; leave out one of them")
        # the keys of a schedule do not exist before it is chosen
        cfg = _hydra_compose([word for word in overrides if not key_of(word).startswith("schedule.")])
    else:
        cfg = _hydra_compose(overrides)
    choice = _old_schedule(cfg)
    if choice is None:
        return cfg if len(words) == len(overrides) else _hydra_compose(overrides)
    # an override takes precedence over a string in a file
    cfg = _hydra_compose(words if "schedule" in keys else [*words, f"schedule={choice}"])
    with open_dict(cfg):
        cfg.optimizer.pop("schedule", None)
    return cfg


def _hydra_compose(overrides: Sequence[str]) -> DictConfig:
    # a user's optimizer may have an argument of this name
    words = [f"++{word}" if word.startswith(f"{upgrade.SCHEDULE}=") else word for word in with_cleared_parts(overrides)]
    files.Files.visits = 0
    try:
        return hydra_compose("train", [NO_SEARCH, *words], return_hydra_config=True)
    finally:
        files.Files.visits = None


def _old_schedule(cfg: DictConfig) -> str | None:
    """Return the schedule that a string ``optimizer.schedule`` chooses, if the optimizer has no such argument."""
    optimizer = OmegaConf.to_container(cfg.optimizer) if OmegaConf.is_dict(cfg.get("optimizer")) else {}
    assert isinstance(optimizer, dict)
    text, target = optimizer.get("schedule"), optimizer.get("_target_")
    if not isinstance(text, str) or not isinstance(target, str) or not (is_snnexp(target) or is_allowed(target)):
        return None
    return None if "schedule" in parts.of(target).arguments or parts.of(target).takes_all else text


def downloads(cfg: DictConfig) -> bool:
    """Return True if a run of a composed config may download data."""
    with explain_errors(), registered_resolvers():
        return bool(OmegaConf.select(cfg, "data.download"))


def require_used(overrides: Collection[str], cfg: DictConfig) -> None:
    """Reject overrides of a surrogate, neuron or readout that the config does not use, and missing logger packages."""
    groups = {key_of(override).partition(".")[0] for override in overrides}
    plain = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=False))
    if "surrogate" in groups and not any("${surrogate" in text for text in strings(plain)):
        raise ConfigError("surrogate: no neuron of this config takes one")
    if isinstance(logger := plain.get("logger"), Mapping):
        loggers.require_packages(logger.get("also"), overrides)
    network = plain.get("network")
    for key in ("neuron", "readout"):
        # readout=same uses the neuron too
        users = {key, "readout"} if plain.get("readout") == f"${{{key}}}" else {key}
        if key in groups and isinstance(network, Mapping) and not any(rules.takes_neurons(network, at) for at in users):
            name = str(network["_target_"]).rpartition(".")[2]
            raise ConfigError(f"{key}: no layer of this network uses it, {name} defines its own neurons")


class Composer:
    """Composes configs, such as the points of a sweep.

    Hydra applies choices before values, so configs that differ only in values share one composition. Overrides that
    set the same part of the config more than once are left to Hydra.

    Args:
        folders: additional config folders, from ``--config-dir``.
        common: overrides that precede those of each config.
    """

    def __init__(self, folders: Sequence[Path] = (), common: Sequence[str] = ()) -> None:
        self.folders, self.common = folders, common
        self._composed: dict[tuple[str, ...], Pickled[Composed]] = {}
        self._parser = OverridesParser.create()

    def compose(self, overrides: Sequence[str]) -> Composed:
        """Compose a config, see :func:`compose_unchecked`."""
        left, errors = quoted([*self.common, *overrides]), ConfigErrors()
        absent: set[str] = set()
        while True:
            try:
                found = self._compose(left)
                break
            except ConfigError as error:
                culprit = _culprit(error, left)
                if not absent or (culprit is not None and not _is_below(culprit, absent)):
                    errors.add(*map(str, error.args))
                left = [override for override in left if key_of(override) != culprit]
                if culprit is None or not left or len(errors.messages) >= MAX_ERRORS:
                    errors.raise_if_any()
                absent |= {*GROUPS} & {culprit}
        if errors.messages:
            with errors.collect():
                check(found[0], together=not absent)
            with errors.collect():
                require_used(left, found[0])
            errors.raise_if_any()
        return found

    def point(self, overrides: Sequence[str]) -> Composed:
        """Compose a point of a sweep, and reject overrides that it does not use."""
        cfg, node = self.compose(overrides)
        require_used(overrides, cfg)
        return cfg, node

    def node(self, overrides: Sequence[str]) -> dict[str, Any]:
        """Return the ``hydra`` node of a point; the values of the point are not applied or checked."""
        _, chosen = self._split(quoted([*self.common, *overrides]))
        try:
            return self._compose_choices(chosen)[1]
        except ConfigError:
            # values may make these choices valid; report errors of values too
            return self.compose(overrides)[1]

    def left_out(self, overrides: Sequence[str]) -> list[str]:
        """Return a message for each file with keys that were left out in any point, except keys in ``overrides``."""
        return left_out((composed.copy()[0] for composed in self._composed.values()), overrides)

    def _compose(self, overrides: Sequence[str]) -> Composed:
        """Compose a config; raise the first error."""
        values, chosen = self._split(overrides)
        if not values:
            return self._compose_choices(chosen)
        try:
            return self._set(values, *self._compose_choices(chosen))
        except ConfigError:
            # values may make these choices valid; otherwise raises Hydra's error
            return _compose_in_hydra(overrides, self.folders)

    def _split(self, overrides: Sequence[str]) -> tuple[list[Override], tuple[str, ...]]:
        """Return the values that can be set after the composition, and the other overrides, such as choices."""
        with in_one_line(), explain_errors(overrides, self.folders):
            parsed = self._parser.parse_overrides([*overrides])
            places = (*self.folders, conf_dir())
            # a folder of the search path is a group
            values = [
                override
                for override in independent(parsed)
                if not any((place / str(override.key_or_group)).is_dir() for place in places)
            ]
        return values, tuple(str(override.input_line) for override in parsed if override not in values)

    def _compose_choices(self, chosen: tuple[str, ...]) -> Composed:
        if chosen not in self._composed:
            self._composed[chosen] = _compose_pickled(chosen, self.folders)
        return self._composed[chosen].copy()

    @staticmethod
    def _set(values: Sequence[Override], cfg: DictConfig, node: dict[str, Any]) -> Composed:
        with explain_errors():
            for override in values:
                OmegaConf.update(cfg, str(override.key_or_group), override.value(), merge=not is_part(override))
            plain = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=False))
            _require_one_epoch(plain, node)
            security.require_bounded({**plain, "hydra": node}, [*plain, "hydra"])
        return cfg, node


def compose_points(points: Iterable[Sequence[str]], folders: Sequence[Path] = ()) -> Iterator[DictConfig]:
    """Yield the config of each point of a sweep, as :func:`compose_unchecked` returns it.

    Raises:
        ConfigError: see :func:`compose_unchecked`.
    """
    composer = Composer(folders)
    return (composer.point(point)[0] for point in points)
