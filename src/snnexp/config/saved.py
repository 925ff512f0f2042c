"""Load the configs of runs, change them as far as that is allowed, and convert them back to overrides."""

import copy
import os
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf, open_dict

from snnexp.config import decoding, files
from snnexp.config.checks import check, expand_user_paths
from snnexp.config.compose import compose_choices
from snnexp.config.folders import GROUPS, NODES, registered_resolvers
from snnexp.config.keys import domain_in
from snnexp.config.messages import explain_errors, in_one_line, unknown
from snnexp.config.overrides import hydra_literal, parse_assignments
from snnexp.config.plain import flat, plain, strings
from snnexp.config.provenance import provenance_of
from snnexp.errors import ConfigError, ConfigErrors
from snnexp.record import upgrade
from snnexp.record.names import key_of
from snnexp.spec import parts
from snnexp.spec.values import Parameter
from snnexp.text import format_value

MAY_CHANGE = (
    *("logger.", "published.", "data.root", "data.download", "data.num_workers"),
    *("trainer.log_every_n_steps", "trainer.threads"),
)
"""Keys that do not affect what a run computes."""

ONLY_TRAINING = (
    "trainer.accumulate",
    "trainer.early_stopping",
    "trainer.gradient_clip",
    "trainer.max_epochs",
)
"""Trainer keys that have no effect on an evaluation."""
EVALUATION_GROUPS = ("data", "decoder")
"""Groups whose choice can be changed for an evaluation."""
SPLITTING = ("split_seed", "val_fraction", "test_fraction", "stratify", "fold", "folds", "groups", "split")
"""Data keys that determine how samples are split."""
SOURCES = ("_target_", "dataset", "path", "train", "root", "name", "variant")
"""Data keys that determine which samples are split."""


def overrides_of(cfg: DictConfig) -> list[str]:
    """Return the overrides that compose to ``cfg``, including later changes; [] if its provenance is unknown."""
    if (provenance := provenance_of(cfg)) is None:
        return []
    overrides, unresolved, old = provenance
    new = plain(check(cfg))
    changes = [*_changes(old, new)]
    tree = plain(unresolved)
    for prefix, key, value in changes:
        if prefix != "~":
            _put(tree, old, key.split("."), value)
    # a value interpolated from a changed one, such as data.seed from seed, may differ in the resolved config
    with registered_resolvers():
        resolved = expand_user_paths(cast(dict[str, Any], OmegaConf.to_container(OmegaConf.create(tree), resolve=True)))
    changes += [change for change in _changes(resolved, new) if change[0] != "~"]
    if any(key in decoding.DECISIVE for _, key, _ in changes) and (decoder := decoder_overrides(new)):
        # a changed loss would select its own default decoder
        changes = [change for change in changes if not _is_decoder_key(change[1])]
        overrides = [*(word for word in overrides if not _is_decoder_key(key_of(word))), *decoder]
    words = {key: _words(prefix, key, value) for prefix, key, value in changes}
    return [*(word for word in overrides if key_of(word) not in words), *chain.from_iterable(words.values())]


def _words(prefix: str, key: str, value: Any) -> list[str]:
    """Format a change of :func:`_changes` as overrides."""
    if prefix != "~":
        return [f"{prefix}{key}={hydra_literal(value)}"]
    # Hydra cannot delete a key whose value is null
    return [*([f"{key}=0"] if value is None else []), f"~{key}"]


def _is_decoder_key(key: str) -> bool:
    return key.partition(".")[0] == "decoder"


def decoder_overrides(plain: Mapping[str, Any]) -> list[str]:
    """Return the overrides that select a shipped decoder, independent of the loss; [] for another decoder."""
    found = plain["decoder"]
    if found is None:
        return [f"decoder={decoding.NONE}"]
    if not isinstance(found, Mapping) or not parts.is_shipped(str(found["_target_"]), "decoder"):
        return []
    default = decoding.shipped_node(decoding.decoder_name(plain)) or {}
    arguments = {key: value for key, value in found.items() if value != default.get(key)}
    return [
        f"decoder={decoding.decoder_name(plain)}",
        *(f"decoder.{key}={hydra_literal(value)}" for key, value in arguments.items()),
    ]


def _put(tree: dict[str, Any], resolved: Mapping[str, Any], path: Sequence[str], value: Any) -> None:
    """Set a value in an unresolved config, in place."""
    name, *rest = path
    if rest:
        # replace a reference to another node, such as the neuron, by a copy of that node
        tree[name] = tree[name] if isinstance(tree[name], dict) else copy.deepcopy(resolved[name])
        _put(tree[name], resolved[name], rest, value)
    else:
        tree[name] = value


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    """Yield the prefix of an override (``+``, ``~`` or empty), its key, and its value, the old one if it is deleted."""
    for name in {**old, **new}:
        key = f"{prefix}{name}"
        if name not in new:
            yield "~", key, old[name]
        elif name not in old:
            yield "+", key, new[name]
        elif isinstance(old[name], Mapping) and isinstance(new[name], Mapping):
            # published results do not affect the computation
            yield from _changes(old[name], new[name], f"{key}.") if key != "published" else ()
        elif old[name] != new[name]:
            yield "", key, new[name]


def load(path: Path) -> DictConfig:
    """Read and check the saved config of a run.

    Raises:
        ConfigError: the file does not exist, is not plain YAML, or the config is invalid.
    """
    with in_one_line(), explain_errors():
        text = files.read(path)
        try:
            cfg = OmegaConf.create(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"{path}: {files.describe(error)}") from error
        return check_saved(cfg, path)


def offline(cfg: DictConfig) -> DictConfig:
    """Disable downloads in a saved config, in place; only a command-line override enables them."""
    if "download" in cfg.data:
        cfg.data.download = False
    return cfg


def check_saved(cfg: Any, path: Path) -> DictConfig:
    """Check a saved config from an untrusted source.

    Args:
        cfg: the config.
        path: its file, for messages.

    Raises:
        ConfigError: it is not a mapping, is not resolved, or is invalid.
    """
    with in_one_line(), explain_errors():
        if isinstance(cfg, dict) and any("${" in value for value in strings(cfg)):
            raise ConfigError(f"{path}: contains ${{...}}, but the saved config of a run is resolved")
        cfg = OmegaConf.create(cfg) if isinstance(cfg, dict) else cfg
        if not isinstance(cfg, DictConfig):
            raise ConfigError(f"{path}: must be a mapping, like the config of a run")
        plain = OmegaConf.to_container(cfg)
        if any("${" in value for value in strings(plain)):
            raise ConfigError(f"{path}: contains ${{...}}, but the saved config of a run is resolved")
        return check(OmegaConf.create(upgrade.config(cast(dict[str, Any], plain))))


def change(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Change keys of a checked config. It is resolved, so interpolated keys keep their values.

    Raises:
        ConfigError: an override is not ``key=value``, its key does not exist, or its value is invalid.
    """
    changed, errors = cfg.copy(), ConfigErrors()
    with in_one_line(), explain_errors(overrides):
        for key, value in parse_assignments(overrides):
            parent, _, leaf = key.rpartition(".")
            if key in GROUPS and not isinstance(value, dict):
                errors.add(f"{key}: cannot choose another part of an existing run; only its keys can be changed")
                continue
            if leaf not in _keys(cfg, parent) and key != upgrade.SCHEDULE:
                node = OmegaConf.select(cfg, parent) if parent else cfg
                errors.add(unknown(key, node if isinstance(node, DictConfig) else OmegaConf.create()))
                continue
            OmegaConf.update(changed, key, value, merge=False)
        with errors.collect():
            changed = check(changed)
        errors.raise_if_any()
        return changed


def change_evaluation(cfg: DictConfig, overrides: Sequence[str], folders: Sequence[Path] = ()) -> DictConfig:
    """Change the config of a run for an evaluation, like :func:`change`.

    A change of ``num_steps`` applies to all parts with the same value. A choice of a group in :data:`EVALUATION_GROUPS`
    replaces its node.

    Args:
        cfg: config of the run.
        overrides: the command-line overrides.
        folders: additional config folders, from ``--config-dir``.

    Raises:
        ConfigError: see :func:`change`, or a key cannot be changed for an evaluation.
    """
    errors = ConfigErrors()
    assignments = [*parse_assignments(overrides)]
    for key, _ in assignments:
        node = key.partition(".")[0]
        if node in ("neuron", "readout") and isinstance(domain_in(cfg, key), Parameter):
            errors.add(f"{format_value(key)}: its values are in the checkpoint; train another run to change them")
        elif node in ("optimizer", "schedule", "init_from") or key in ONLY_TRAINING:
            errors.add(f"{format_value(key)}: has no effect on an evaluation")
        elif f"{key}.".startswith("data.scale."):
            errors.add(f"{key}: inputs must be scaled as in training; train another run to change it")
    changed = cfg = _without_monitors(cfg)
    with errors.collect():
        groups = {
            key for key, value in assignments if key in EVALUATION_GROUPS and key in GROUPS and isinstance(value, str)
        }
        own = [word for word in overrides if key_of(word).partition(".")[0] in groups]
        others = [word for word in overrides if word not in own]
        changed = change_all(_replace_nodes(cfg, own, groups, folders) if own else cfg, others, ("num_steps",))
    errors.add(*_other_splits(cfg.data, changed.data))
    errors.raise_if_any()
    return changed


def _other_splits(trained: Mapping[str, Any], data: Mapping[str, Any]) -> Iterator[str]:
    """Yield messages about changed splits of the training data, which would mix training and test samples."""
    if not _same_samples(trained, data):
        return
    for name in ("val", "test"):
        if trained.get(name) is not None and data.get(name) is None and _is_drawn(name, data):
            value = format_value(trained[name])
            yield f"data.{name}: got null, but the run was trained with {value}; keep it, or evaluate other data"
    for key in SPLITTING:
        split = key.removesuffix("_fraction")
        # a split with its own samples replaces a split by fraction
        replaced = split != key and trained.get(split) != data.get(split)
        if trained.get(key) != data.get(key) and not replaced:
            old, new = format_value(trained.get(key)), format_value(data.get(key))
            yield f"data.{key}: got {new}, but the run was trained with {old}; keep it, or evaluate other data"


def _is_drawn(name: str, data: Mapping[str, Any]) -> bool:
    """Return True if a split without its own samples is drawn from the training samples."""
    return name == "test" or bool(data.get(f"{name}_fraction"))


def require_split(split: str, trained: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Refuse to evaluate a split that would contain samples of another split of the run.

    This happens if a file replaces a split by fraction: the other splits are then drawn from its samples too.

    Args:
        split: the split to evaluate.
        trained: data node of the run.
        data: data node of the evaluation.

    Raises:
        ConfigError: the split would contain such samples.
    """
    if (data.get(split) is not None and split != "train") or not _same_samples(trained, data):
        return
    for name in ("val", "test"):
        if name != split and trained.get(name) is None and data.get(name) is not None:
            reason = f"which would contain samples of the {name} split of the run; leave out data.{name}"
            raise ConfigError(f"split: got {split}, {reason}")


def _same_samples(trained: Mapping[str, Any], data: Mapping[str, Any]) -> bool:
    """Return True if the samples that are split are those of the training run."""
    return all(_source(trained.get(key)) == _source(data.get(key)) for key in SOURCES)


def _source(value: Any) -> Any:
    """Normalize a path for comparison."""
    return os.path.realpath(os.path.expanduser(value)) if isinstance(value, str) else value


def _replace_nodes(
    cfg: DictConfig, words: Sequence[str], groups: Collection[str], folders: Sequence[Path]
) -> DictConfig:
    """Replace the nodes ``groups`` of a saved config by those that the overrides ``words`` compose.

    Their interpolations, such as ``${num_steps}``, refer to the saved config.
    """
    found = compose_choices(words, folders)
    with in_one_line(), explain_errors(words, folders), registered_resolvers():
        for key in {*cfg, *found} - {*groups}:
            if key in cfg:
                OmegaConf.update(found, str(key), cfg[key], merge=False, force_add=True)
            else:
                with open_dict(found):
                    del found[key]
        return check(found)


def _without_monitors(cfg: DictConfig) -> DictConfig:
    """Return a config without early stopping and plateau schedules: the new data may have no validation split."""
    changed = cfg.copy()
    if parts.of(cfg.schedule["_target_"]).fact("watches") is not False:
        changed.schedule = {"_target_": upgrade.SCHEDULES["constant"]}
    if cfg.trainer.get("early_stopping") is not None:
        changed.trainer.early_stopping = None
    return changed


def change_all(cfg: DictConfig, overrides: Sequence[str], shared: Sequence[str] = ("seed", "num_steps")) -> DictConfig:
    """Change a config like :func:`change`; a change of a ``shared`` key applies to all parts with the same value.

    Raises:
        ConfigError: see :func:`change`.
    """
    values = {key: value for key, value in parse_assignments(overrides) if key in shared}
    given = {key_of(override) for override in overrides}
    more = [
        f"{name}.{key}={hydra_literal(value)}"
        for key, value in values.items()
        for name in NODES
        if isinstance(cfg[name], DictConfig)
        and key in cfg[name]
        and cfg[name][key] == cfg[key]
        and f"{name}.{key}" not in given
    ]
    changed = change(cfg, overrides)
    return change(changed, more)


def computes_same(cfg: DictConfig, saved: DictConfig) -> bool:
    """Return True if a composed config and a saved one differ only in keys that do not affect the computation.

    Raises:
        ConfigError: the config is invalid.
    """
    old, new = flat(saved), flat(check(cfg))
    return all(old.get(key) == new.get(key) for key in old.keys() | new.keys() if not key.startswith(MAY_CHANGE))


def require_same(saved: Mapping[str, Any], cfg: Mapping[str, Any]) -> None:
    """Refuse to resume a run with a config that changes its computation.

    Args:
        saved: the saved config of the run.
        cfg: the config to resume it with.

    Raises:
        ConfigError: a key that affects the computation differs, ``key: old -> new``.
    """
    old, new, errors = flat(saved), flat(cfg), ConfigErrors()
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) == new.get(key) or key.startswith(MAY_CHANGE):
            continue
        both = [format_value(config[key]) if key in config else "nothing" for config in (old, new)]
        change = f"{key}: {' -> '.join(both)}"
        if key != "trainer.max_epochs":
            errors.add(f"{change}, and the run so far depends on it; restore it, or start a new run")
        elif _depends_on_length(cfg["schedule"]):
            errors.add(f"{change}, and the learning rates so far depend on it; start a new run")
        elif new[key] < old[key]:
            errors.add(f"{change}, and a run cannot be shortened")
    errors.raise_if_any()


def _depends_on_length(schedule: Mapping[str, Any]) -> bool:
    fact = parts.of(schedule["_target_"]).fact("depends_on_length")
    if isinstance(fact, tuple):
        argument, *values = fact
        return schedule.get(argument) in values
    return fact is not False


def command(overrides: Sequence[str], node: Mapping[str, Any], folders: Iterable[str | Path] = ()) -> str:
    """Return the shell command that trains ``overrides`` again.

    Args:
        overrides: overrides in Hydra's grammar.
        node: the config that they compose to; determines SNNEXP_ALLOW_TARGETS of the command.
        folders: additional config folders, from ``--config-dir``.
    """
    targets = (str(value) for key, value in flat(node).items() if key.rpartition(".")[2] == "_target_")
    packages = dict.fromkeys(target.partition(".")[0] for target in targets)
    outside = [package for package in packages if package.isidentifier() and package != "snnexp"]
    allow = [f"SNNEXP_ALLOW_TARGETS={','.join(outside)}"] if outside else []
    more = [word for folder in folders for word in ("--config-dir", str(folder))]
    return shlex.join([*allow, "snnexp", "train", *more, *overrides])


def _keys(cfg: DictConfig, path: str) -> list[str]:
    node = OmegaConf.select(cfg, path) if path else cfg
    return [str(key) for key in node] if isinstance(node, DictConfig) else []
