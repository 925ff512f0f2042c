"""Configs: where they lie, how they are composed, checked, and turned into objects.

Everything up to :func:`check` works without torch, so that a mistake is answered at once; :func:`instantiate` is the
only door from a config to code, and ``gate`` says for what it opens.
"""

import copy
import inspect
import itertools
import math
import os
import re
import shlex
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import yaml
from hydra import compose as hydra_compose
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException, OverrideParseException
from hydra.version import setbase
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from snnexp import domains, gate, pairs, runs, upgrade, user_parts
from snnexp.errors import ConfigError, Refusals, SnnexpError, located
from snnexp.isolation import HYDRA, restored
from snnexp.runs import key_of

GROUPS = (
    "data",
    "encoder",
    "network",
    "neuron",
    "readout",
    "surrogate",
    "loss",
    "optimizer",
    "trainer",
    "logger",
    "experiment",
    "sweep",
    "debug",
)
NODES, GLOBAL = GROUPS[:-3], GROUPS[-3:]
"""The groups that become a node of the config, and those whose choices only set keys of others."""
REFUSALS = (HydraException, OmegaConfBaseException, yaml.YAMLError)
"""What Hydra raises about what was typed or written; :func:`explain` makes one sentence of it."""
VERSION_BASE = "1.3"
MOST_POINTS = 10_000
MOST_TOLD = 20
"""Refusals of one command: each takes one more composition."""
LONGEST = 4096
"""Characters of an override: Hydra's parser takes seconds for lists that are longer."""
LONGEST_KEY = 200
"""Characters of a key, which may become the name of a file that Hydra looks for."""
NO_SEARCH = "hydra.searchpath=[]"
"""Keeps a config from adding folders, or packages, to where Hydra looks; ``--config-dir`` is for the user."""
MADE_OF = "snnexp_made_of"
"""Under which name a config remembers how it was made."""
MAY_CHANGE = (
    *("logger.", "published.", "data.root", "data.download", "data.num_workers"),
    *("trainer.log_every_n_steps", "trainer.threads"),
)
"""Keys of a run that do not decide what it computes."""
LOGGER = ("root", "tensorboard", "save_every_n_epochs", "save_every_s", "draw_every_n_epochs", "draw_every_s")
KEYS = ("seed", "num_steps", "kernel", "name", "published")


def conf_dir() -> Path:
    """The folder of configs: $SNNEXP_CONF, else inside the installed package, else beside ``src/``.

    Raises:
        ConfigError: it is not there.
    """
    here = Path(__file__).resolve().parent
    given = os.environ.get("SNNEXP_CONF")
    places = [Path(given).expanduser()] if given else [here / "conf", here.parents[1] / "conf"]
    for place in places:
        if (place / "train.yaml").is_file():
            return place.resolve()
    raise ConfigError(f"SNNEXP_CONF: no train.yaml in {places[0]}; unset it, or set it to a folder of configs")


def choices(group: str, folder: Path | None = None) -> dict[str, str]:
    """What can be chosen in a group: name to description, which is the first line of comment in its file.

    Args:
        group: its name.
        folder: more configs, as of ``--config-dir``; a file there stands before one of the same name.
    """
    places = [conf_dir(), *([] if folder is None else [folder])]
    files = {path.stem: path for place in places for path in (place / group).glob("*.yaml")}
    return {name: _description(files[name]) for name in sorted(files)}


def keys_of_choice(group: str, choice: str, folder: Path | None = None) -> dict[str, Any]:
    """The keys that a choice brings or sets, and their values, with interpolations as they are written.

    Raises:
        ConfigError: there is no such choice, or it cannot be composed.
    """

    def values(overrides: Sequence[str]) -> dict[str, Any]:
        cfg, node = composed(overrides, folder)
        points = flat(node["sweeper"].get("params") or {}, "hydra.sweeper.params.")
        return flat(cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=False))) | points

    found = values([f"{group}={choice}"])
    before = values([]) if group in GLOBAL else {}
    return {
        key: value
        for key, value in found.items()
        if (before.get(key, ...) != value if group in GLOBAL else key.startswith(f"{group}.") or key == group)
    }


def _description(path: Path) -> str:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and "@package" not in line:
            return line.lstrip("# ")
    return ""


def prepare() -> None:
    """Register what the configs call by name, and what reads their files, in place of another application's."""
    if not os.environ.get("SNNEXP_DATA_DIR"):
        # an interpolation would take the empty text for a path
        os.environ.pop("SNNEXP_DATA_DIR", None)
    GlobalHydra.instance().clear()
    OmegaConf.register_new_resolver("new_run_id", runs.new_id, use_cache=True, replace=True)
    gate.Files.register()


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """Compose, resolve and check the config of one run, as ``snnexp train`` would.

    Args:
        overrides: in Hydra's grammar, ``["experiment=mnist_leaky", "neuron.beta=0.9", "seed=3"]``.

    Raises:
        ConfigError: it cannot work; the sentence names the key.
    """
    cfg, refusals = composed(overrides)[0], Refusals()
    checked = cfg
    with refusals.collected():
        checked = check(cfg)
    with refusals.collected():
        require_taken(overrides, cfg)
    refusals.tell()
    return remembering(checked, overrides, cfg)


def remembering(cfg: DictConfig, overrides: Sequence[str], unresolved: DictConfig) -> DictConfig:
    """A checked config of which :func:`overridden` knows how it was made; its copies know that too."""
    # OmegaConf copies what it keeps beside the values
    vars(cfg._metadata)[MADE_OF] = ([*overrides], unresolved, plain(cfg))
    return cfg


def overridden(cfg: DictConfig) -> list[str]:
    """The overrides that give ``cfg``: what was typed, and what was changed since; none of a config from elsewhere."""
    if MADE_OF not in vars(cfg._metadata):
        return []
    typed, unresolved, before = vars(cfg._metadata)[MADE_OF]
    now = plain(check(cfg))
    changes = [*_changes(before, now)]
    again = plain(unresolved)
    for sign, key, value in changes:
        if sign != "~":
            _put(again, before, key.split("."), value)
    # what is computed from a value that was changed later, such as data.seed from seed, has not followed
    followed = _at_home(cast(dict[str, Any], OmegaConf.to_container(OmegaConf.create(again), resolve=True)))
    changes += [change for change in _changes(followed, now) if change[0] != "~"]
    words = {key: f"{sign}{key}" if sign == "~" else f"{sign}{key}={written(value)}" for sign, key, value in changes}
    return [*(word for word in typed if key_of(word) not in words), *words.values()]


def _put(tree: dict[str, Any], resolved: Mapping[str, Any], path: Sequence[str], value: Any) -> None:
    name, *rest = path
    if rest:
        # a reference to another part of the config, as of the readout to the neuron, becomes a part of its own
        tree[name] = tree[name] if isinstance(tree[name], dict) else copy.deepcopy(resolved[name])
        _put(tree[name], resolved[name], rest, value)
    else:
        tree[name] = value


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    """What differs, as the sign of an override, its key, and the value."""
    for name in {**before, **now}:
        key = f"{prefix}{name}"
        if name not in now:
            yield "~", key, None
        elif name not in before:
            yield "+", key, now[name]
        elif isinstance(before[name], Mapping) and isinstance(now[name], Mapping):
            # what was published elsewhere decides nothing
            yield from _changes(before[name], now[name], f"{key}.") if key != "published" else ()
        elif before[name] != now[name]:
            yield "", key, now[name]


def composed(overrides: Sequence[str], folder: Path | None = None) -> tuple[DictConfig, dict[str, Any]]:
    """Compose a config and let it through the gate; values are not validated yet.

    Args:
        overrides: in Hydra's grammar.
        folder: more configs, as of ``--config-dir``.

    Returns:
        The config, and Hydra's own node as it was written.

    Raises:
        ConfigError: it cannot be composed, or asks for more than a config may. Each override that is refused is told,
            and what is wrong with the values of the others.
    """
    left, refusals = quoted(overrides), Refusals()
    absent: set[str] = set()
    while True:
        try:
            found = _composed(left, folder)
            break
        except ConfigError as error:
            culprit = _culprit(error, left)
            if not absent or (culprit is not None and not _is_below(culprit, absent)):
                refusals.add(*map(str, error.args))
            left = [override for override in left if key_of(override) != culprit]
            if culprit is None or not left or len(refusals.sentences) >= MOST_TOLD:
                refusals.tell()
            absent |= {*GROUPS} & {culprit}
    if refusals.sentences:
        with refusals.collected():
            check(found[0], together=not absent)
        with refusals.collected():
            require_taken(left, found[0])
        refusals.tell()
    return found


def _is_below(key: str, absent: set[str]) -> bool:
    """Whether a key may belong to a choice that could not be made, without which it looks unknown."""
    return "." in key and (key.partition(".")[0] in absent or not absent.isdisjoint(GLOBAL))


def _culprit(error: ConfigError, overrides: Sequence[str]) -> str | None:
    """The key of the override that a refusal is about, if it is about one."""
    told = str(error.args[0])
    for override in overrides:
        key = key_of(override)
        names = (_short(key), override, domains.shown(override), *(key[:dot] for dot in _dots(key)))
        if told.startswith(tuple(f"{name}:" for name in names)):
            return key
    return None


def _dots(key: str) -> Iterator[int]:
    return (index for index, letter in enumerate(key) if letter == ".")


def _composed(overrides: Sequence[str], folder: Path | None) -> tuple[DictConfig, dict[str, Any]]:
    with _in_one_line(), explained(overrides, folder), _hydra(folder):
        for override in overrides:
            gate.require_own_resolvers(override, override.partition("=")[0])
        gate.Files.visits = 0
        try:
            cfg = hydra_compose("train", [NO_SEARCH, *replacing(overrides)], return_hydra_config=True)
        finally:
            gate.Files.visits = None
        whole = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=False))
        node = whole["hydra"]
        is_batch, trainer = node["runtime"]["choices"].get("debug") == "batch", whole.get("trainer")
        if is_batch and isinstance(trainer, Mapping) and trainer.get("max_epochs") != 1:
            epochs = domains.shown(trainer.get("max_epochs"))
            raise ConfigError(f"trainer.max_epochs: got {epochs}, debug=batch trains one epoch; leave out one of them")
        with open_dict(cfg):
            del cfg["hydra"]
        with user_parts.running("hydra"):
            gate.require_shipped_hydra(node, overrides)
        # what is wrong in a run's part is told by that, and not by what was typed
        gate.require_bounded(whole, sorted(whole, key="hydra".__eq__))
        for group in GLOBAL:
            if group in cfg and (choice := node["runtime"]["choices"].get(group)):
                _require_global(f"{group}/{choice}", folder)
    return cfg, node


def downloads(overrides: Sequence[str], folder: Path | None) -> bool:
    """Whether a run, or the points of a sweep together, would download data; arguments as of :func:`composed`."""
    common = [override for override in shared(overrides) if not key_of(override).startswith("hydra")]
    cfg = composed(common, folder)[0]
    with explained(common):
        return bool(OmegaConf.select(cfg, "data.download"))


def require_taken(overrides: Iterable[str], cfg: DictConfig) -> None:
    """Refuse a surrogate that was typed where no neuron of a composed config takes one."""
    typed = any(key_of(override).partition(".")[0] == "surrogate" for override in overrides)
    if typed and not any("${surrogate" in text for text in _texts(OmegaConf.to_container(cfg, resolve=False))):
        raise ConfigError("surrogate: no neuron of this config takes one")


def _require_global(name: str, folder: Path | None) -> None:
    """Refuse a file of one of the groups that set keys of others, where it does not say so."""
    for place in (folder, conf_dir()):
        path = None if place is None else place / f"{name}.yaml"
        if path is not None and path.is_file() and "@package" not in gate.read(path)[:512]:
            raise ConfigError(f"{path}: begin with the line # @package _global_")


def composed_points(points: Iterable[Sequence[str]], folder: Path | None = None) -> Iterator[DictConfig]:
    """The config of each point of a sweep, as :func:`composed` gives it, in a fifth of the time.

    Hydra makes all choices first and sets values afterwards, so that points which differ in values share what was
    composed. A value that stands beside another one for the same part of the config is left to Hydra.

    Raises:
        ConfigError: as :func:`composed`.
    """
    shared: dict[tuple[str, ...], DictConfig] = {}
    parser = OverridesParser.create()
    for point in points:
        point = quoted(point)
        with explained(point):
            parsed = parser.parse_overrides(point)
        keys = [str(override.key_or_group) for override in parsed]
        values = [override for override in parsed if _is_alone(override, keys)]
        choices = tuple(str(override.input_line) for override in parsed if override not in values)
        if choices not in shared:
            shared[choices] = composed(choices, folder)[0]
        cfg = shared[choices].copy()
        try:
            for override in values:
                OmegaConf.update(cfg, str(override.key_or_group), override.value(), merge=not _is_part(override))
        except OmegaConfBaseException:
            # Hydra's own words tell what is wrong
            cfg = composed(point, folder)[0]
        require_taken(point, cfg)
        yield cfg


def _is_alone(override: Override, keys: Sequence[str]) -> bool:
    """Whether an override sets a value, and no other one sets it, a part of it, or what it is a part of."""
    key = str(override.key_or_group)
    plain = override.get_key_element() == key and "/" not in key and "@" not in key
    mine = [other for other in keys if other == key or other.startswith(f"{key}.") or key.startswith(f"{other}.")]
    return plain and key not in GROUPS and not key.startswith("hydra") and mine == [key]


def points(overrides: Sequence[str], folder: Path | None = None) -> Iterator[list[str]]:
    """The overrides of each point of a sweep.

    Raises:
        ConfigError: an override cannot be parsed, cannot be listed, or there are too many points.
    """
    overrides = quoted(overrides)
    with _in_one_line(), explained(overrides), _hydra(folder):
        parsed = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(overrides)
        # of what is given twice, the last counts
        by_key = {override.get_key_element(): override for override in parsed}
        variants = []
        for key, override in by_key.items():
            try:
                variants.append(list(itertools.islice(_variants(override), MOST_POINTS + 1)))
            except ValueError as error:
                raise error if isinstance(error, ConfigError) else ConfigError(f"{key}: {error}") from error
    if math.prod(map(len, variants)) > MOST_POINTS:
        raise ConfigError(f"-m: a sweep of more than {MOST_POINTS} points; split it")
    return (list(itertools.chain(*point)) for point in itertools.product(*variants))


def shared(overrides: Sequence[str]) -> list[str]:
    """What all points of a sweep have in common.

    Raises:
        ConfigError: an override cannot be parsed.
    """
    overrides = quoted(overrides)
    with _in_one_line(), explained(overrides):
        parsed = OverridesParser.create().parse_overrides(overrides)
        return [str(override.input_line) for override in parsed if not override.is_sweep_override()]


def params(node: Mapping[str, Any]) -> list[str]:
    """The overrides that ``hydra.sweeper.params`` stands for: a text in Hydra's grammar, or a value, or a list of them.

    A list is one value where its key takes it as one, as ``network.hidden`` takes ``[256, 128]``.
    """
    return [f"{key}={_values(str(key), value)}" for key, value in node.items()]


def _values(key: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    domain = domains.DOMAINS.get(key.rpartition(".")[2])
    if isinstance(value, list) and value and (domain is None or value not in domain):
        return ",".join(map(written, value))
    return written(value)


def written(value: Any) -> str:
    """A value of YAML as Hydra's grammar reads it back."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {written(entry)}' for key, entry in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(written, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = str(value)
    if not isinstance(value, str):
        return text
    parser = OverridesParser.create()
    plain = (
        re.fullmatch(r"\S+", text)
        and _parses(f"key={text}", parser)
        and parser.parse_override(f"key={text}").value() == value
    )
    return text if plain else str(QuotedString(text, Quote.single).with_quotes())


def _variants(override: Override) -> Iterator[tuple[str, ...]]:
    if override.is_discrete_sweep():
        yield from ((f"{override.get_key_element()}={value}",) for value in override.sweep_string_iterator())
    elif override.is_sweep_override():
        key = override.get_key_element()
        raise ConfigError(f"{key}: a range without steps cannot be listed; hydra/sweeper=optuna searches in it")
    else:
        yield (str(override.input_line),)


@contextmanager
def _hydra(folder: Path | None) -> Iterator[None]:
    """Hydra, as its own main function sets it up."""
    # another application may be running in this process
    with restored(HYDRA):
        prepare()
        setbase(VERSION_BASE)
        search = create_config_search_path(str(conf_dir()))
        if folder is not None:
            # before the schemas, which come last
            search.prepend("command-line", f"file://{folder.absolute()}", SearchPathQuery(provider="schema"))
        Hydra.create_main_hydra2("snnexp", search)
        yield


def quoted(overrides: Sequence[str]) -> list[str]:
    """Overrides as they were typed, with quotes around values that Hydra reads only then, such as ``/daten/größe``.

    Raises:
        ConfigError: one is too long to be parsed.
    """
    parser = OverridesParser.create()
    with _in_one_line():
        for before, word in itertools.pairwise(["", *overrides]):
            if before and (word.startswith("=") if "=" not in before else before.endswith("=") and "=" not in word):
                key = before.rstrip("=")
                raise ConfigError(f"{key}: no blanks around '=', as in {key}=value")
        return [_quoted(override, parser) for override in overrides]


def replacing(overrides: Sequence[str]) -> list[str]:
    """Overrides for Hydra, which merges mappings: before one that describes an object, its key is emptied.

    That of a group stays, for an empty group would be a choice.
    """
    words: list[str] = []
    for text in overrides:
        override = OverridesParser.create().parse_override(text) if "_target_" in text else None
        if override is not None and _is_part(override) and (empty := f"{override.key_or_group}=null") not in words[-1:]:
            words.append(empty)
        words.append(text)
    return words


def _is_part(override: Override) -> bool:
    key = override.key_or_group
    if override.get_key_element() != key or key in GROUPS or override.is_sweep_override():
        return False
    value = override.value()
    return isinstance(value, dict) and "_target_" in value


def _quoted(override: str, parser: OverridesParser) -> str:
    if len(override) > LONGEST:
        raise ConfigError(f"{domains.shown(override)}: {len(override)} characters, at most {LONGEST} are read")
    key, _, value = override.partition("=")
    if key != key.strip() and value:
        raise ConfigError(f"{key.strip()}: no blanks around '=', as in {key.strip()}=value")
    if len(key) > LONGEST_KEY:
        raise ConfigError(f"{_short(key)}: unknown key, none has more than {LONGEST_KEY} characters")
    if (match := re.fullmatch(r"choice\((.*)\)", value)) and not _parses(override, parser):
        # Hydra's own function takes no null
        listed = f"{key}={match[1]}"
        return listed if _parses(listed, parser) else override
    # what these stand for is the user's to say
    if not value or set(value) & set("[]{}'\"$,") or _parses(override, parser):
        return override
    text = f"{key}={QuotedString(value, Quote.single).with_quotes()}"
    return text if _parses(text, parser) else override


def _parses(override: str, parser: OverridesParser) -> bool:
    try:
        parser.parse_override(override)
    except (HydraException, RecursionError):
        return False
    return True


@contextmanager
def explained(overrides: Sequence[str] = (), folder: Path | None = None) -> Iterator[None]:
    """What Hydra, OmegaConf and YAML raise about a text from outside becomes a :class:`ConfigError`."""
    try:
        yield
    except RecursionError as error:
        raise ConfigError(f"{domains.shown(' '.join(overrides))}: nested too deeply") from error
    except Exception as error:
        if isinstance(error, SnnexpError) or not _is_hydras(error):
            raise
        raise explain(error, overrides, folder) from error


def _is_hydras(error: Exception) -> bool:
    """Whether Hydra or a parser raised it, rather than this package; Hydra has no class of its own for some texts."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    raised_in = str(frame.f_globals.get("__name__")).partition(".")[0]
    return isinstance(error, REFUSALS) or raised_in in ("hydra", "omegaconf", "antlr4", "yaml")


@contextmanager
def _in_one_line() -> Iterator[None]:
    """Keep each sentence of a :class:`ConfigError` that passes to one line of at most 190 characters."""
    try:
        yield
    except ConfigError as error:
        error.args = tuple(domains.sentence(str(said)) for said in error.args)
        raise


def load(path: Path) -> DictConfig:
    """Read and check the config that a run has saved, which is resolved.

    Raises:
        ConfigError: it is not there, is no plain YAML of a sensible size, or cannot work.
    """
    with _in_one_line(), explained():
        text = gate.read(path)
        try:
            cfg = OmegaConf.create(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"{path}: {gate.describe(error)}") from error
        return trusted(cfg, path)


def offline(cfg: DictConfig) -> DictConfig:
    """A saved config may come from elsewhere: the network is used only where that is typed."""
    if "download" in cfg.data:
        cfg.data.download = False
    return cfg


def trusted(cfg: Any, path: Path) -> DictConfig:
    """Check a config that was saved in ``path``, perhaps elsewhere.

    Raises:
        ConfigError: it is no mapping, is not resolved, or cannot work.
    """
    with _in_one_line(), explained():
        if isinstance(cfg, dict) and any("${" in value for value in _texts(cfg)):
            raise ConfigError(f"{path}: holds ${{...}}, the config that a run saves is resolved")
        cfg = OmegaConf.create(cfg) if isinstance(cfg, dict) else cfg
        if not isinstance(cfg, DictConfig):
            raise ConfigError(f"{path}: is not a mapping, as the config of a run is")
        plain = OmegaConf.to_container(cfg)
        if any("${" in value for value in _texts(plain)):
            raise ConfigError(f"{path}: holds ${{...}}, the config that a run saves is resolved")
        return check(OmegaConf.create(upgrade.config(cast(dict[str, Any], plain))))


def _texts(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from (str(key) for key in node)
        node = list(node.values())
    if isinstance(node, list):
        for value in node:
            yield from _texts(value)
    elif isinstance(node, str):
        yield node


def change(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """A checked config with other values for keys that it has; interpolations are resolved, so each key stands alone.

    Raises:
        ConfigError: an override is no ``key=value``, has no such key, or a value that cannot work.
    """
    changed, refusals = cfg.copy(), Refusals()
    with _in_one_line(), explained(overrides):
        for key, value in assigned(overrides):
            parent, _, leaf = key.rpartition(".")
            if key in GROUPS and not isinstance(value, dict):
                refusals.add(f"{key}: a choice is made when a run starts; here, keys of it can be changed")
                continue
            if leaf not in _keys(cfg, parent):
                node = OmegaConf.select(cfg, parent) if parent else cfg
                refusals.add(_unknown(key, node if isinstance(node, DictConfig) else OmegaConf.create()))
                continue
            OmegaConf.update(changed, key, value, merge=False)
        with refusals.collected():
            changed = check(changed)
        refusals.tell()
        return changed


def assigned(overrides: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """The keys and values of overrides that are nothing but ``key=value``, in Hydra's grammar.

    Raises:
        ConfigError: one is something else.
    """
    overrides, refusals = quoted(overrides), Refusals()
    parsed: list[Override] = []
    with _in_one_line():
        for text in overrides:
            with refusals.collected(), explained([text]):
                (override,) = OverridesParser.create().parse_overrides([text])
                if override.get_key_element() != override.key_or_group or override.is_sweep_override():
                    raise ConfigError(f"{text}: only key=value overrides are accepted here")
                parsed.append(override)
        refusals.tell()
    yield from ((override.key_or_group, override.value()) for override in parsed)


def change_evaluation(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """As :func:`change`, of a run that is measured: a change of ``num_steps`` reaches all parts that had the same.

    Raises:
        ConfigError: as :func:`change`, or a key has no effect on an evaluation.
    """
    refusals = Refusals()
    for key, _ in assigned(overrides):
        node, name, *_ = [*key.split("."), ""]
        if node in ("neuron", "readout") and isinstance(domains.DOMAINS.get(name), domains.Parameter):
            refusals.add(f"{domains.shown(key)}: the checkpoint holds its values; train a run with others")
        elif node == "optimizer" or key == "trainer.max_epochs":
            refusals.add(f"{domains.shown(key)}: an evaluation does not train")
    changed = cfg
    with refusals.collected():
        changed = change_all(cfg, overrides, ("num_steps",))
    refusals.tell()
    return changed


def change_all(cfg: DictConfig, overrides: Sequence[str], shared: Sequence[str] = ("seed", "num_steps")) -> DictConfig:
    """As :func:`change`, where a change of a ``shared`` key reaches all parts that had the same.

    Raises:
        ConfigError: as :func:`change`.
    """
    values = {key: value for key, value in assigned(overrides) if key in shared}
    given = {key_of(override) for override in overrides}
    more = [
        f"{name}.{key}={written(value)}"
        for key, value in values.items()
        for name in NODES
        if key in cfg[name] and cfg[name][key] == cfg[key] and f"{name}.{key}" not in given
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
    """Refuse to go on with a run under a config that would compute something else than the run has so far.

    Args:
        before: the config that the run was computed under.
        now: the one to go on with.

    Raises:
        ConfigError: a key differs that decides what is computed, ``key: old -> new``.
    """
    old, new, refusals = flat(before), flat(now), Refusals()
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) == new.get(key) or key.startswith(MAY_CHANGE):
            continue
        shown = [domains.shown(config[key]) if key in config else "nothing" for config in (old, new)]
        change = f"{key}: {' -> '.join(shown)}"
        if key != "trainer.max_epochs":
            refusals.add(f"{change}, and the run so far depends on it; put it back, or start a new run")
        elif new.get("optimizer.schedule") != "constant":
            refusals.add(f"{change}, and the learning rates so far depend on it; start a new run")
        elif new[key] < old[key]:
            refusals.add(f"{change}, and a run cannot become shorter")
    refusals.tell()


def plain(cfg: DictConfig) -> dict[str, Any]:
    """A checked config as plain values."""
    return cast(dict[str, Any], OmegaConf.to_container(cfg))


def command(overrides: Sequence[str], node: Mapping[str, Any], folder: str | Path | None = None) -> str:
    """The command that trains ``overrides`` again, as a shell reads it.

    Args:
        overrides: in Hydra's grammar.
        node: the config that they compose to; packages that it names besides this one have to be allowed.
        folder: more configs, as of ``--config-dir``.
    """
    targets = (str(value) for key, value in flat(node).items() if key.rpartition(".")[2] == "_target_")
    packages = dict.fromkeys(target.partition(".")[0] for target in targets)
    outside = [package for package in packages if package.isidentifier() and package != "snnexp"]
    allow = [f"SNNEXP_ALLOW_TARGETS={','.join(outside)}"] if outside else []
    more = ["--config-dir", str(folder)] if folder else []
    return shlex.join([*allow, "snnexp", "train", *more, *overrides])


def flat(node: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``."""
    flattened: dict[str, Any] = {}
    for key, value in node.items():
        flattened |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flattened


def _keys(cfg: DictConfig, path: str) -> list[str]:
    node = OmegaConf.select(cfg, path) if path else cfg
    return [str(key) for key in node] if isinstance(node, DictConfig) else []


def check(cfg: DictConfig, together: bool = True) -> DictConfig:
    """Resolve ``cfg`` and hold every value against the domain of its name.

    Args:
        cfg: a composed config.
        together: whether parts are held against each other too.

    Raises:
        ConfigError: values cannot work; one sentence for each key.
    """
    with _in_one_line(), explained():
        if missing := [key for key in (*KEYS, *NODES) if key not in cfg]:
            hints = {key: f", {domains.listed(choices(key))}" for key in NODES}
            raise ConfigError(*(f"{key}: every run needs one{hints.get(key, '')}" for key in missing))
        written = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=False))
        gate.require_bounded(written, written)
        plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        return OmegaConf.create(_checked(cast(dict[str, Any], plain), written, together))


def _checked(plain: dict[str, Any], written: Mapping[str, Any], together: bool) -> dict[str, Any]:
    refusals = Refusals()
    for key, value in plain.items():
        if key in GLOBAL:
            refusals.add(f"{key}: its files set other keys, and must begin with the line # @package _global_")
        elif key not in (*KEYS, *NODES):
            refusals.add(f"{domains.shown(key)}: unknown key, {domains.closest(str(key), (*KEYS, *GROUPS))}")
        elif key in NODES and not isinstance(value, dict):
            hint = "must be a mapping, as a file of this group holds it" if isinstance(value, list) else None
            refusals.add(f"{key}: got {domains.shown(value)}, {hint or domains.listed(choices(key))}")
        else:
            with refusals.collected():
                gate.require_targets(value, key, key if key in pairs.SHIPPED else None)
    for key in plain["logger"] if isinstance(plain["logger"], dict) else ():
        if key not in LOGGER:
            refusals.add(f"logger.{domains.shown(key)}: unknown key, {domains.closest(str(key), LOGGER)}")
    _check_node({key: value for key, value in plain.items() if not refusals.about(str(key))}, "", refusals)
    if together:
        pairs.check(plain, refusals)
    for key in [*refusals.sentences]:
        # what is only read from a key that is refused itself is told once
        if any(origin in refusals.sentences for origin in _origins(key, written)):
            del refusals.sentences[key]
    refusals.tell()
    return _at_home(plain)


def _at_home(plain: dict[str, Any]) -> dict[str, Any]:
    for key in ("data", "logger"):
        # once, so that all who read a path mean the same
        if isinstance(root := plain[key].get("root"), str):
            plain[key]["root"] = os.path.expanduser(root)
    return plain


def _origins(key: str, written: Mapping[str, Any]) -> Iterator[str]:
    """The keys that a key of a config gets its value from, by interpolations as they were written."""
    node: Any = written
    words = key.split(".")
    for index, word in enumerate(words):
        node = node.get(word) if isinstance(node, Mapping) else None
        if isinstance(node, str) and (match := re.fullmatch(r"\$\{([\w.]+)\}", node)):
            origin = ".".join([match[1], *words[index + 1 :]])
            yield origin
            yield from _origins(origin, written)


def _check_node(node: Mapping[str, Any], prefix: str, refusals: Refusals) -> None:
    # names have the meanings of `domains` in this package; the constructors of others check for themselves
    if node.get("_target_") in (None, *pairs.EVERY):
        with refusals.collected():
            domains.check(node, prefix)
    for key, value in node.items():
        if isinstance(value, Mapping) and key != "published":
            _check_node(value, f"{prefix}{key}.", refusals)


def instantiate(node: Mapping[str, Any], path: str, **arguments: Any) -> Any:
    """Build the object that a node describes: ``_target_`` is called with the node's other keys and ``arguments``.

    Raises:
        ConfigError: the target is not allowed, or refuses its arguments; the sentence begins with the key.
        PartError: code of a part of the user's own raised another error.
    """
    return factory(node, path, given=arguments)(**arguments)


def factory(node: Mapping[str, Any], path: str, given: Iterable[str] = ()) -> Callable[..., Any]:
    """A function that builds the object of a node each time it is called, with what is still missing.

    Args:
        node: a mapping with ``_target_``.
        path: where the node stands in the config, for messages.
        given: names of the arguments that the caller will pass.
    """
    with user_parts.running(path):
        target = gate.resolve(str(node.get("_target_")), path)
    signature = inspect.signature(target)
    known = signature.parameters
    own = {key: value for key, value in node.items() if key != "_target_"}
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        pairs.require_arguments(path, target.__name__, own, [name for name in known if name not in given])
    values = {
        key: instantiate(value, f"{path}.{key}") if isinstance(value, Mapping) and "_target_" in value else value
        for key, value in own.items()
    }

    def make(*positional: Any, **more: Any) -> Any:
        try:
            signature.bind(*positional, **values, **more)
        except TypeError as error:
            raise ConfigError(f"{path}: {target.__name__} is {error}") from error
        with user_parts.constructing(path), located(path):
            return target(*positional, **values, **more)

    return make


def explain(error: Exception, overrides: Sequence[str] = (), folder: Path | None = None) -> ConfigError:
    """One sentence for what Hydra, OmegaConf or YAML refused: the key, what is wrong, what would do.

    Args:
        error: what was raised.
        overrides: what was typed, where the error itself does not name the key.
        folder: more configs, as of ``--config-dir``.
    """
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return ConfigError(f"{error.problem_mark.name}: {gate.describe(error)}")
    if isinstance(error, OverrideParseException):
        return _no_override(error.override, folder)
    if isinstance(error, (*REFUSALS, ValueError)) and (
        found := _about_a_key(error) or _about_a_choice(error, overrides, folder)
    ):
        return found
    # an interpolation in the name of a choice; or a defect of a parser, which only some texts bring out
    reason = _first_line(error.__cause__ or error)
    return ConfigError(f"{domains.shown(' '.join(overrides))}: {reason}" if overrides else reason)


def _no_override(word: str, folder: Path | None) -> ConfigError:
    text = f"{domains.shown(word.strip() or repr(word))}: not key=value or group=choice"
    if any(word.count(opening) != word.count(closing) for opening, closing in ("[]", "{}", "()")):
        return ConfigError(f"{text}, brackets do not match; a list with blanks needs quotes: 'key=[1, 2]'")
    if "=" in word:
        return ConfigError(f"{text} as Hydra reads it; quote what holds a quote, a bracket or '$': key='\"value\"'")
    if group := next((group for group in GROUPS if word in choices(group, folder)), None):
        return ConfigError(f"{text}, did you mean {group}={word}?")
    if word in GROUPS:
        return ConfigError(f"{text}, {domains.listed(choices(word, folder))}")
    if os.path.exists(word):
        return ConfigError(f"{text}; --from RUN repeats a run, snnexp resume RUN continues it")
    return ConfigError(f"{text}, did you mean {word.replace(':', '=', 1)}?" if ":" in word else text)


def _about_a_key(error: Exception) -> ConfigError | None:
    for cause in _causes(error):
        key = getattr(cause, "full_key", None)
        if key == "_dummy_":
            # where Hydra resolves what stands in the name of a choice
            return None
        if key and "not in struct" in str(cause):
            parent = getattr(cause, "parent_node", None)
            return ConfigError(_unknown(str(key), parent if isinstance(parent, DictConfig) else OmegaConf.create()))
        if key and isinstance(cause, OmegaConfBaseException):
            return ConfigError(f"{_short(str(key))}: {_first_line(cause)}")
    return None


def _unknown(key: str, parent: DictConfig) -> str:
    """What is told of a key that ``parent``, where it stands or would stand, does not have."""
    options = {str(name) for name in parent}
    # Hydra refuses a group of no such name in the same words
    options |= {*GROUPS} if "." not in key else set()
    path = _elsewhere(parent, key)
    return f"{_short(key)}: unknown key, {f'did you mean {path}?' if path else _near(key, options)}"


def _about_a_choice(error: Exception, overrides: Sequence[str], folder: Path | None) -> ConfigError | None:
    text = str(error)
    if match := re.search(rf"In '((?:{'|'.join(GLOBAL)})/[^']+)': Could not override '[^']+@", text):
        try:
            _require_global(match[1], folder)
        except ConfigError as missing:
            return missing
    if match := re.search(r"Could not find '(hydra/[^'/]+|[^'/]+)/([^']*)'", text):
        return _no_choice(match[1], match[2], folder)
    if match := re.search(r"Could not override '([^']+)'\. No match in the defaults list", text):
        return ConfigError(f"{match[1]}: no such group, {domains.closest(match[1].split('@')[0], GROUPS)}")
    if match := re.search(r"Ambiguous value for argument '([^']+)'", text):
        key = match[1].partition("=")[0]
        return ConfigError(f"{key}: several values; add -m for a sweep, or brackets for a list: key=[1,2]")
    if match := re.search(r"Could not (?:append|delete) .*?'([^']+)'", text):
        return ConfigError(f"{_short(match[1])}: {_first_line(error)}")
    if "Config group override must be" in text:
        # Hydra does not say which group it means
        for group, _, choice in (override.partition("=") for override in overrides):
            if group in GROUPS and choice not in choices(group, folder):
                return _no_choice(group, choice, folder)
    return None


def _short(key: str) -> str:
    """A key as it is, or its first and last letters; the values of a sentence have to fit behind it."""
    return key if len(key) <= 80 else f"{key[:40]}...{key[-30:]}"


def _no_choice(group: str, choice: str, folder: Path | None) -> ConfigError:
    known = choices(group, folder)
    if choice in ("", "null"):
        return ConfigError(f"{group}: every run needs one, {domains.listed(known)}")
    if any(place is not None and (place / group / f"{choice}.yml").is_file() for place in (folder, conf_dir())):
        return ConfigError(f"{group}={choice}: the name of its file must end with .yaml, not .yml")
    return ConfigError(f"{group}={choice}: no such choice, {domains.closest(Path(choice).name, known)}")


def _elsewhere(cfg: DictConfig, key: str) -> str | None:
    """The one key of a composed config whose last part is ``key``, or max_epochs for epochs."""
    plain = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=False))
    paths = [path for path in flat(plain) if not path.startswith(("hydra.", "published."))]
    for found in (
        [path for path in paths if path.rpartition(".")[2] == key],
        [path for path in paths if path.rpartition(".")[2] == f"max_{key}"],
    ):
        # the readout is another neuron
        if len({path.replace("readout.", "neuron.", 1) for path in found}) == 1:
            return found[0]
    return None


def _near(key: str, options: set[str]) -> str:
    options = options - {"hydra", "_target_"}
    parent, _, leaf = key.rpartition(".")
    if not options and parent == "readout":
        return "readout=same repeats the neuron; choose another readout to set it apart"
    prefix = f"{parent}." if parent else ""
    return domains.closest(leaf, options, prefix) if options else "nothing can be set below it"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
