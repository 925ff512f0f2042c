"""Configs of runs: read again, changed where that is allowed, and told as what was typed."""

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
"""Keys of a run that do not decide what it computes."""


ONLY_TRAINING = (
    "trainer.accumulate",
    "trainer.early_stopping",
    "trainer.gradient_clip",
    "trainer.max_epochs",
)
"""Keys of the trainer that make no difference to an evaluation."""
MEASURED_WITH = ("data", "decoder")
"""Groups of which a trained network can be measured with another choice."""
SPLITTING = ("split_seed", "val_fraction", "test_fraction", "stratify", "fold", "folds", "groups", "split")
"""Keys of data that say which samples a run was trained with."""
SOURCES = ("_target_", "dataset", "path", "train", "root", "name", "variant")
"""Keys of data that say which samples are split."""


def overrides_of(cfg: DictConfig) -> list[str]:
    """The overrides that give ``cfg``: what was typed, and what was changed since; none of a config from elsewhere."""
    if (made := provenance_of(cfg)) is None:
        return []
    typed, unresolved, before = made
    now = plain(check(cfg))
    changes = [*_changes(before, now)]
    again = plain(unresolved)
    for sign, key, value in changes:
        if sign != "~":
            _put(again, before, key.split("."), value)
    # what is computed from a value that was changed later, such as data.seed from seed, has not followed
    with registered_resolvers():
        followed = expand_user_paths(
            cast(dict[str, Any], OmegaConf.to_container(OmegaConf.create(again), resolve=True))
        )
    changes += [change for change in _changes(followed, now) if change[0] != "~"]
    if any(key in decoding.DECISIVE for _, key, _ in changes) and (kept := decoder_overrides(now)):
        # a loss that was changed later would bring its own
        changes = [change for change in changes if not _is_of_decoder(change[1])]
        typed = [*(word for word in typed if not _is_of_decoder(key_of(word))), *kept]
    words = {key: _words(sign, key, value) for sign, key, value in changes}
    return [*(word for word in typed if key_of(word) not in words), *chain.from_iterable(words.values())]


def _words(sign: str, key: str, value: Any) -> list[str]:
    if sign != "~":
        return [f"{sign}{key}={hydra_literal(value)}"]
    # Hydra takes a key that is null for one that is not there
    return [*([f"{key}=0"] if value is None else []), f"~{key}"]


def _is_of_decoder(key: str) -> bool:
    return key.partition(".")[0] == "decoder"


def decoder_overrides(plain: Mapping[str, Any]) -> list[str]:
    """The overrides that give a shipped decoder, whatever goes with the loss; none for another."""
    found = plain["decoder"]
    if found is None:
        return [f"decoder={decoding.NONE}"]
    if not isinstance(found, Mapping) or not parts.is_shipped(str(found["_target_"]), "decoder"):
        return []
    usual = decoding.shipped_node(decoding.decoder_name(plain)) or {}
    arguments = {key: value for key, value in found.items() if value != usual.get(key)}
    return [
        f"decoder={decoding.decoder_name(plain)}",
        *(f"decoder.{key}={hydra_literal(value)}" for key, value in arguments.items()),
    ]


def _put(tree: dict[str, Any], resolved: Mapping[str, Any], path: Sequence[str], value: Any) -> None:
    name, *rest = path
    if rest:
        # a reference to another part of the config, as of the readout to the neuron, becomes a part of its own
        tree[name] = tree[name] if isinstance(tree[name], dict) else copy.deepcopy(resolved[name])
        _put(tree[name], resolved[name], rest, value)
    else:
        tree[name] = value


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    """What differs, as the sign of an override, its key, and the value; of what is gone, the one before."""
    for name in {**before, **now}:
        key = f"{prefix}{name}"
        if name not in now:
            yield "~", key, before[name]
        elif name not in before:
            yield "+", key, now[name]
        elif isinstance(before[name], Mapping) and isinstance(now[name], Mapping):
            # what was published elsewhere decides nothing
            yield from _changes(before[name], now[name], f"{key}.") if key != "published" else ()
        elif before[name] != now[name]:
            yield "", key, now[name]


def load(path: Path) -> DictConfig:
    """Read and check the config that a run has saved, which is resolved.

    Raises:
        ConfigError: it is not there, is no plain YAML of a sensible size, or cannot work.
    """
    with in_one_line(), explain_errors():
        text = files.read(path)
        try:
            cfg = OmegaConf.create(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"{path}: {files.describe(error)}") from error
        return check_saved(cfg, path)


def offline(cfg: DictConfig) -> DictConfig:
    """A saved config may come from elsewhere: the network is used only where that is typed."""
    if "download" in cfg.data:
        cfg.data.download = False
    return cfg


def check_saved(cfg: Any, path: Path) -> DictConfig:
    """Check a config that was saved in ``path``, perhaps elsewhere.

    Raises:
        ConfigError: it is no mapping, is not resolved, or cannot work.
    """
    with in_one_line(), explain_errors():
        if isinstance(cfg, dict) and any("${" in value for value in strings(cfg)):
            raise ConfigError(f"{path}: holds ${{...}}, the config that a run saves is resolved")
        cfg = OmegaConf.create(cfg) if isinstance(cfg, dict) else cfg
        if not isinstance(cfg, DictConfig):
            raise ConfigError(f"{path}: is not a mapping, as the config of a run is")
        plain = OmegaConf.to_container(cfg)
        if any("${" in value for value in strings(plain)):
            raise ConfigError(f"{path}: holds ${{...}}, the config that a run saves is resolved")
        return check(OmegaConf.create(upgrade.config(cast(dict[str, Any], plain))))


def change(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """A checked config with other values for keys that it has; interpolations are resolved, so each key stands alone.

    Raises:
        ConfigError: an override is no ``key=value``, has no such key, or a value that cannot work.
    """
    changed, errors = cfg.copy(), ConfigErrors()
    with in_one_line(), explain_errors(overrides):
        for key, value in parse_assignments(overrides):
            parent, _, leaf = key.rpartition(".")
            if key in GROUPS and not isinstance(value, dict):
                errors.add(f"{key}: a choice is made when a run starts; here, keys of it can be changed")
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
    """As :func:`change`, of a run that is measured: a change of ``num_steps`` reaches all parts that had the same.

    A choice of a group of :data:`MEASURED_WITH` replaces that node; keys of it that are typed are set in the new one.

    Args:
        cfg: the run's.
        overrides: what was typed.
        folders: more configs, as of ``--config-dir``.

    Raises:
        ConfigError: as :func:`change`, or a key has no effect on an evaluation.
    """
    errors = ConfigErrors()
    typed = [*parse_assignments(overrides)]
    for key, _ in typed:
        node = key.partition(".")[0]
        if node in ("neuron", "readout") and isinstance(domain_in(cfg, key), Parameter):
            errors.add(f"{format_value(key)}: the checkpoint holds its values; train a run with others")
        elif node in ("optimizer", "schedule", "init_from") or key in ONLY_TRAINING:
            errors.add(f"{format_value(key)}: an evaluation does not train")
        elif f"{key}.".startswith("data.scale."):
            errors.add(f"{key}: inputs are scaled as those that the run was trained with; train a run with another")
    changed = cfg = _without_watching(cfg)
    with errors.collect():
        groups = {key for key, value in typed if key in MEASURED_WITH and key in GROUPS and isinstance(value, str)}
        own = [word for word in overrides if key_of(word).partition(".")[0] in groups]
        others = [word for word in overrides if word not in own]
        changed = change_all(_chosen(cfg, own, groups, folders) if own else cfg, others, ("num_steps",))
    errors.add(*_other_splits(cfg.data, changed.data))
    errors.raise_if_any()
    return changed


def _other_splits(trained: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Sentences about other splits of the run's own samples, which would have training samples in the test split."""
    if not _same_samples(trained, now):
        return
    for name in ("val", "test"):
        if trained.get(name) is not None and now.get(name) is None and _is_drawn(name, now):
            told = f"got null, and the run was trained with {format_value(trained[name])}"
            yield f"data.{name}: {told}; keep it, or measure other data"
    for key in SPLITTING:
        split = key.removesuffix("_fraction")
        # samples of a split of their own take the place of a fraction
        replaced = split != key and trained.get(split) != now.get(split)
        if trained.get(key) != now.get(key) and not replaced:
            before, after = format_value(trained.get(key)), format_value(now.get(key))
            yield f"data.{key}: got {after}, and the run was trained with {before}; keep it, or measure other data"


def _is_drawn(name: str, data: Mapping[str, Any]) -> bool:
    """Whether a split without samples of its own is taken from the training samples."""
    return name == "test" or bool(data.get(f"{name}_fraction"))


def require_split(split: str, trained: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to measure a split of the run's own samples that others have become part of.

    Where a file takes the place of a split by fraction, the other splits are drawn without that.

    Args:
        split: that is measured.
        trained: the data of the run.
        now: those of the evaluation.

    Raises:
        ConfigError: it is such a split.
    """
    if (now.get(split) is not None and split != "train") or not _same_samples(trained, now):
        return
    for name in ("val", "test"):
        if name != split and trained.get(name) is None and now.get(name) is not None:
            told = f"which would have samples of the {name} split of the run; leave out data.{name}"
            raise ConfigError(f"split: got {split}, {told}")


def _same_samples(trained: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether samples are split that the run was trained with."""
    return all(_source(trained.get(key)) == _source(now.get(key)) for key in SOURCES)


def _source(value: Any) -> Any:
    """A file is the same however its path is written."""
    return os.path.realpath(os.path.expanduser(value)) if isinstance(value, str) else value


def _chosen(cfg: DictConfig, words: Sequence[str], groups: Collection[str], folders: Sequence[Path]) -> DictConfig:
    """A saved config with other choices of ``groups``, which ``words`` make and change.

    What the choices take from other nodes, such as ``${num_steps}``, is that of the saved config.
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


def _without_watching(cfg: DictConfig) -> DictConfig:
    """A config of which nothing watches a measure in training: other data may have no validation split."""
    changed = cfg.copy()
    if parts.of(cfg.schedule["_target_"]).fact("watches") is not False:
        changed.schedule = {"_target_": upgrade.SCHEDULES["constant"]}
    if cfg.trainer.get("early_stopping") is not None:
        changed.trainer.early_stopping = None
    return changed


def change_all(cfg: DictConfig, overrides: Sequence[str], shared: Sequence[str] = ("seed", "num_steps")) -> DictConfig:
    """As :func:`change`, where a change of a ``shared`` key reaches all parts that had the same.

    Raises:
        ConfigError: as :func:`change`.
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
    """Whether a composed config asks for what a saved one does, up to keys that do not decide what is computed.

    Raises:
        ConfigError: it cannot work.
    """
    old, new = flat(saved), flat(check(cfg))
    return all(old.get(key) == new.get(key) for key in old.keys() | new.keys() if not key.startswith(MAY_CHANGE))


def require_same(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to resume a run under a config that would compute something else than the run has so far.

    Args:
        before: the config that the run was computed under.
        now: the one to resume it under.

    Raises:
        ConfigError: a key differs that decides what is computed, ``key: old -> new``.
    """
    old, new, errors = flat(before), flat(now), ConfigErrors()
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) == new.get(key) or key.startswith(MAY_CHANGE):
            continue
        both = [format_value(config[key]) if key in config else "nothing" for config in (old, new)]
        change = f"{key}: {' -> '.join(both)}"
        if key != "trainer.max_epochs":
            errors.add(f"{change}, and the run so far depends on it; put it back, or start a new run")
        elif _depends_on_length(now["schedule"]):
            errors.add(f"{change}, and the learning rates so far depend on it; start a new run")
        elif new[key] < old[key]:
            errors.add(f"{change}, and a run cannot become shorter")
    errors.raise_if_any()


def _depends_on_length(schedule: Mapping[str, Any]) -> bool:
    fact = parts.of(schedule["_target_"]).fact("depends_on_length")
    if isinstance(fact, tuple):
        argument, *values = fact
        return schedule.get(argument) in values
    return fact is not False


def command(overrides: Sequence[str], node: Mapping[str, Any], folders: Iterable[str | Path] = ()) -> str:
    """The command that trains ``overrides`` again, as a shell reads it.

    Args:
        overrides: in Hydra's grammar.
        node: the config that they compose to; packages that it names besides this one have to be allowed.
        folders: more configs, as of ``--config-dir``.
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
