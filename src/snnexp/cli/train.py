"""``snnexp train``: what was typed is composed and checked, and then shown, run or swept."""

import itertools
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import hydra
from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig, OmegaConf

from snnexp import config, terminal, text, threads
from snnexp.config import security
from snnexp.errors import ConfigError, Refusals
from snnexp.record import run as runs
from snnexp.record.origin import as_recorded, origin
from snnexp.text import closest

if TYPE_CHECKING:
    from snnexp.sweeps.ledger import Ledger
    from snnexp.sweeps.sources import Asked

CFG_FLAGS = ("--cfg", "-c")
DIR_FLAGS = ("--config-dir", "-cd")
PACKAGE = ("--package", "-p")
FROM = "--from"
VALUED = (FROM, *CFG_FLAGS, *DIR_FLAGS, *PACKAGE)
OTHER_CONF = ("--config-path", "-cp", "--config-name", "-cn")
CFG = ("job", "hydra", "all")
INFO_FLAGS = ("--info", "-i")
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
SWEEP = ("--multirun", "-m")
RUN = ("--run", "-r")
COMPLETE = ("--shell-completion", "-sc")
TEXTS = ("--hydra-help", "--version")
PLAIN = (*SWEEP, *RUN, "--resolve", *COMPLETE, *TEXTS)
SHOW = (*CFG_FLAGS, *INFO_FLAGS, *TEXTS)
COMMANDS = (RUN, SWEEP, CFG_FLAGS, INFO_FLAGS, COMPLETE)
Point = tuple[list[str], dict[str, Any]]
"""The overrides of a point of a sweep, and its config."""


def train(arguments: Sequence[str]) -> int:
    """Run what ``snnexp train ARGUMENTS`` asks for; returns the exit code.

    Raises:
        SnnexpError: a single run could not start, diverged or was interrupted.
    """
    return _start(arguments)[0]


def sweep(words: Sequence[str]) -> "Ledger | None":
    """Run the sweep of ``snnexp train -m WORD ...``; returns its record, None where the words only ask for help.

    Raises:
        SnnexpError: it could not start, or was interrupted.
    """
    return _start(["--multirun", *words])[1]


def _start(arguments: Sequence[str]) -> "tuple[int, Ledger | None]":
    flags, overrides = split(arguments)
    overrides, folders = config.quoted(overrides), folders_of(flags)
    if any(flag in COMPLETE for flag in flags) or "--version" in flags:
        _show(flags, overrides, folders)
        return 0, None
    if (source := _value(flags, FROM)) is not None:
        path, typed = runs.locate(source), overrides
        folders, overrides, saved = earlier(path, flags, typed)
        if saved is not None:
            _run_saved(saved, str(path), flags, overrides, folders)
            return 0, None
    if any(flag in SHOW for flag in flags):
        # what no config may do is refused before Hydra composes it again
        config.composed(overrides, folders)
        _show(flags, overrides, folders)
    elif any(flag in SWEEP for flag in flags):
        return _sweep(overrides, folders)
    else:
        _run(check(overrides, folders), _own(overrides), folders)
    return 0, None


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Flags with their values, and overrides; Hydra itself wants all overrides in one piece.

    Raises:
        ConfigError: a flag that Hydra does not have, or that lacks its value.
    """
    flags: list[str] = []
    overrides: list[str] = []
    refusals = Refusals()
    rest = iter(arguments)
    for word in rest:
        if not word.startswith("-"):
            overrides.append(word)
        elif word.partition("=")[0] in VALUED:
            flag, _, value = word.partition("=")
            value = value or next(rest, "")
            if flag == FROM and FROM in flags:
                refusals.add(f"{FROM}: given twice, takes one run")
            if not value or (flag in CFG_FLAGS and value not in CFG):
                needed = f"one of {', '.join(CFG)}" if flag in CFG_FLAGS else "a value"
                refusals.add(f"{flag}: got {value or 'nothing'}, must be followed by {needed}")
            if flag in DIR_FLAGS:
                value = os.path.expanduser(value)
                if value and Path(value).resolve() in map(Path.resolve, folders_of(flags)):
                    refusals.add(f"{flag}: given twice, with {text.shown(value)}")
                elif value and not Path(value).is_dir():
                    refusals.add(f"{flag}: {text.shown(value)} is not a folder")
                elif value and not any((Path(value) / group).is_dir() for group in (*config.GROUPS, "hydra")):
                    refusals.add(f"{flag}: {text.shown(value)} has no folder of a group, such as neuron/")
            flags += [flag, value]
        elif word.partition("=")[0] in INFO_FLAGS:
            flag, _, value = word.partition("=")
            # Hydra would take the next word for it
            flags += [flag, value or "all"]
            if flags[-1] not in INFO:
                refusals.add(f"{flag}: got {value}, {closest(value, INFO)}")
        elif word in PLAIN:
            flags.append(word)
        elif word.partition("=")[0] in OTHER_CONF:
            refusals.add(f"{word}: set SNNEXP_CONF to another folder of configs, or add one with --config-dir")
        else:
            key = word.lstrip("-")
            hint = closest(word, [*VALUED, *INFO_FLAGS, *PLAIN])
            if "=" in word or key in (*config.KEYS, *config.GROUPS):
                hint = f"did you mean {key if '=' in key else f'{key}=VALUE'}?"
            refusals.add(f"{word}: no such flag, {hint}")
    commands = [names[0] for names in COMMANDS if any(flag in names for flag in flags)]
    if len(commands) > 1:
        refusals.add(f"{' '.join(commands)}: only one of them can be given")
    if "--resolve" in flags and not any(flag in CFG_FLAGS for flag in flags):
        refusals.add("--resolve: belongs to --cfg")
    refusals.tell()
    return flags, overrides


def earlier(
    source: Path, flags: Sequence[str], typed: Sequence[str]
) -> tuple[list[Path], list[str], DictConfig | None]:
    """What ``--from RUN`` stands for.

    Args:
        source: the run.
        flags: the other flags.
        typed: the overrides beside it.

    Returns:
        The folders of more configs; the overrides of the run with those ``typed``; and, where these no longer compose
        to what the run has saved, the config that it has saved, with what was typed changed in it as on resume.

    Raises:
        ConfigError: it is no run, or what was typed cannot be changed so.
        CheckpointError: its record is damaged.
    """
    run = runs.Run.open(source)
    saved = config.load(run.path / "config.yaml")
    # they raise what is damaged, which `facts` only tells
    run.read()
    run.overrides()
    facts = run.facts()
    folders = folders_of(flags) or [folder for folder in origin(facts).folders if folder.is_dir()]
    # a record may come from elsewhere, and downloads only where that is typed
    kept = ("hydra", "data.download")
    recorded = [word for word in facts.typed if not runs.key_of(word).startswith(kept)]
    keys = {runs.key_of(word) for word in typed}
    overrides = [*(word for word in recorded if runs.key_of(word) not in keys), *typed]
    try:
        same = config.computes_same(config.composed(recorded, folders)[0], saved)
    except ConfigError:
        same = False
    if same:
        if "data.download" not in keys:
            one, _ = config.composed(config.first_point(_own(overrides), folders), folders)
            overrides += ["data.download=false"] if config.downloads(one) else []
        return folders, config.quoted(overrides), None
    if needs := [flag for flag in flags if flag in (*SWEEP, *INFO_FLAGS)]:
        raise ConfigError(f"{FROM}: the config of this run cannot be composed again, which {needs[0]} needs")
    changed = config.change_all(saved, typed)
    return folders, overrides, changed if "data.download" in keys else config.offline(changed)


def folders_of(flags: Sequence[str]) -> list[Path]:
    """What ``--config-dir`` among flags names, in the order typed."""
    return [Path(value) for flag, value in itertools.pairwise(flags) if flag in DIR_FLAGS]


def _value(flags: Sequence[str], *names: str) -> str | None:
    return next((value for flag, value in reversed([*itertools.pairwise(flags)]) if flag in names), None)


def _own(overrides: Sequence[str]) -> list[str]:
    """Overrides of a run, without those of Hydra's own node."""
    return [word for word in overrides if not word.lstrip("+~").startswith(("hydra/", "hydra."))]


def _show(flags: Sequence[str], overrides: Sequence[str], folders: Sequence[Path]) -> None:
    """Print what Hydra tells of a config or of itself."""
    if "--version" in flags:
        print(f"Hydra {hydra.__version__}")
        return
    words = [config.NO_SEARCH, *config.replacing(overrides)]
    with config.explained(overrides, folders), config.hydra_reading(folders) as reading:
        if any(flag in COMPLETE for flag in flags):
            reading.shell_completion("train", [*overrides])
        elif "--hydra-help" in flags:
            parser = get_args_parser()
            reading.hydra_help("train", parser, parser.parse_args(words))
        elif (info := _value(flags, *INFO_FLAGS)) is not None:
            reading.show_info(info, "train", words)
        elif (part := _value(flags, *CFG_FLAGS)) is not None:
            reading.show_cfg("train", words, part, _value(flags, *PACKAGE), "--resolve" in flags)


def check(overrides: Sequence[str], folders: Sequence[Path] = ()) -> DictConfig:
    """Compose and check the config of one run, and show it in a terminal.

    Raises:
        ConfigError: it cannot work, or asks for a sweep.
    """
    cfg, node = config.composed(overrides, folders)
    choices = node["runtime"]["choices"]
    refusals, checked = Refusals(), cfg
    with refusals.collected():
        checked = config.check(cfg)
        threads.require(checked)
    with refusals.collected():
        config.require_taken(overrides, cfg)
    for starter in security.STARTERS:
        begins = (f"hydra/{starter}", f"hydra.{starter}")
        if any(override.lstrip("+~").startswith(begins) for override in overrides):
            refusals.add(f"hydra/{starter}: belongs to a sweep, which takes -m")
    if sweep := choices.get("sweep"):
        refusals.add(f"sweep: {sweep} is a sweep, which takes -m")
    refusals.tell()
    # the processes that ddp starts have a rank
    if sys.stdout.isatty() and "LOCAL_RANK" not in os.environ:
        _show_tree(cfg, checked, choices, overrides, folders)
    return checked


def _show_tree(
    cfg: DictConfig, checked: DictConfig, choices: Mapping[str, str], overrides: Sequence[str], folders: Sequence[Path]
) -> None:
    """Print what was chosen, and the values that differ from those of the choices: a recipe's, and what was typed."""
    chosen = {group: choices[group] for group in config.NODES if choices.get(group)}
    alone, _ = config.composed([f"{group}={choice}" for group, choice in chosen.items()], folders)
    # as written, for what follows from another value is no change of its own
    before, now = (cast(dict[str, Any], OmegaConf.to_container(node, resolve=False)) for node in (alone, cfg))
    plain = config.plain(checked)
    values = {"": {"seed": plain["seed"], **_differing(before, now, plain, ("num_steps", "kernel"))}}
    for group in chosen:
        if isinstance(before[group], dict) and isinstance(now[group], dict):
            values[group] = _differing(before[group], now[group], plain[group], now[group])
    typed = {runs.key_of(override) for override in overrides}
    terminal.console().print(terminal.config_tree(chosen, values, typed, plain["name"]))


def _differing(
    before: Mapping[str, Any], now: Mapping[str, Any], shown: Mapping[str, Any], keys: Iterable[str]
) -> dict[str, Any]:
    return {key: shown[key] for key in keys if key not in before or before[key] != now[key]}


def _run(cfg: DictConfig, overrides: Sequence[str], folders: Sequence[Path]) -> None:
    from snnexp.training.execute import execute
    from snnexp.training.start import Start

    def record_folders(path: Path) -> None:
        if folders:
            runs.Run(path).update(config_dir=as_recorded(folders))

    execute(Start.new(cfg, overrides), record_folders)


def _run_saved(
    cfg: DictConfig, source: str, flags: Sequence[str], overrides: Sequence[str], folders: Sequence[Path]
) -> None:
    """Run, or show, the saved config of a run, which no overrides compose to."""
    if "--hydra-help" in flags:
        _show(flags, [], folders)
    elif any(flag in SHOW for flag in flags):
        print(OmegaConf.to_yaml(cfg), end="")
    else:
        terminal.tell(f"{source}: what was typed for this run now gives another config; its config.yaml is used")
        _run(cfg, overrides, folders)


def _sweep(overrides: Sequence[str], folders: Sequence[Path]) -> "tuple[int, Ledger]":
    chosen, launcher = points(overrides, folders)
    first = chosen[0][1] if isinstance(chosen, list) else chosen.checked
    place = Path(first["logger"]["root"]) / "sweeps" / first["name"] / runs.new_id()
    from snnexp.sweeps import driver

    if isinstance(chosen, list):
        return driver.start(place, first["name"], chosen, launcher, folders)
    return driver.search(place, chosen, launcher)


def points(overrides: Sequence[str], folders: Sequence[Path] = ()) -> "tuple[list[Point] | Asked, dict[str, Any]]":
    """Compose and check a sweep before its first point starts.

    Returns:
        The points of a sweep, or what a search was asked for; and the settings of the launcher.

    Raises:
        ConfigError: a point cannot work, or the points do not agree on what starts them.
    """
    typed = _own(overrides)
    hydras = [word for word in overrides if word not in typed]
    for word in hydras:
        if config.are_swept([word]):
            raise ConfigError(f"{word.partition('=')[0]}: Hydra's own settings are no part of a sweep")
    composer = config.Composer(folders, [word for word in hydras if not word.lstrip("+~").startswith("hydra.")])
    begun = composer.node(config.first_point(typed, folders))
    # a config may list values too, which a part that was typed may need
    listed = config.params(begun["sweeper"].get("params") or {})
    first = config.first_point([*listed, *typed], folders)
    node = _with_settings(composer, hydras, first)
    settings = {key: value for key, value in node["sweeper"].items() if key not in ("_target_", "params")}
    params = node["sweeper"].get("params") or {}
    if security.kind_of(node["sweeper"], "sweeper") == "optuna":
        from snnexp.sweeps.sources import Asked

        chosen: list[Point] | Asked = (asked := Asked(settings, params, typed, composer))
        # before anything is written
        asked.checked  # noqa: B018
        every = asked.ends()
        nodes = [*map(composer.node, every)]
    else:
        every = [*config.points([*config.params(params), *typed], folders)]
        chosen, nodes = _checked(every, composer)
    leading = _leading(nodes)
    if nodes[leading]["launcher"] != begun["launcher"]:
        node = _with_settings(composer, hydras, every[leading])
    launcher = {key: value for key, value in node["launcher"].items() if key != "_target_"}
    return chosen, {"kind": security.kind_of(node["launcher"], "launcher"), **launcher}


def _with_settings(composer: config.Composer, hydras: Sequence[str], point: Sequence[str]) -> dict[str, Any]:
    """Hydra's own node of a point with the settings that were typed, and the usual where nothing was chosen."""
    node, chosen = composer.node(point), [word.partition("=")[0] for word in hydras]
    usual = [
        f"hydra/{name}={known[0]}"
        for name, known in security.STARTERS.items()
        if security.kind_of(node[name], name) == "basic" and f"hydra/{name}" not in chosen
    ]
    _, node = config.composed([*usual, *hydras, *point], composer.folders)
    for name, known in security.STARTERS.items():
        if security.kind_of(node[name], name) == "basic":
            # Hydra's own stop at the first failure
            raise ConfigError(f"hydra/{name}: got basic, there are {', '.join(known)}")
    return node


def _checked(points: Iterable[list[str]], composer: config.Composer) -> tuple[list[Point], list[dict[str, Any]]]:
    """The points with their configs, and Hydra's own nodes."""
    found: list[Point] = []
    nodes: list[dict[str, Any]] = []
    refusals = Refusals()
    for tried, point in enumerate(points, 1):
        with refusals.collected():
            cfg, node = composer.point(point)
            nodes.append(node)
            found.append((point, config.plain(config.check(cfg))))
        if len(nodes) < tried:
            # it could not be composed, and the others would take as long
            break
    refusals.tell()
    return found, nodes


def _leading(nodes: Sequence[Mapping[str, Any]]) -> int:
    """The first point that chooses a launcher, or the first of all.

    Args:
        nodes: Hydra's own, of all points.

    Raises:
        ConfigError: two points choose different ones, or have different sweepers.
    """
    every = range(len(nodes))
    choosing = [index for index in every if security.kind_of(nodes[index]["launcher"], "launcher") != "basic"]
    for starter, indices in (("sweeper", every), ("launcher", choosing)):
        if any(nodes[index][starter] != nodes[indices[0]][starter] for index in indices):
            raise ConfigError(f"hydra/{starter}: the points do not have the same; start a sweep of each")
    if 0 < len(choosing) < len(nodes):
        name = nodes[choosing[0]]["runtime"]["choices"]["hydra/launcher"]
        terminal.tell(f"hydra/launcher: {name} starts all points, though not all of them choose it")
    return choosing[0] if choosing else 0
