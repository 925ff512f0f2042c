"""``snnexp train``: Hydra composes, sweeps and completes; each job that it starts becomes a run of ours."""

import itertools
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from snnexp import config, terminal, text, threads
from snnexp.config import security
from snnexp.errors import ConfigError, Refusals
from snnexp.record import run as runs
from snnexp.record.origin import origin
from snnexp.text import closest

if TYPE_CHECKING:
    from snnexp.sweeps.ledger import Ledger
    from snnexp.sweeps.sources import Asked

CFG_FLAGS = ("--cfg", "-c")
DIR_FLAGS = ("--config-dir", "-cd")
FROM = "--from"
VALUED = (FROM, *CFG_FLAGS, *DIR_FLAGS, "--package", "-p")
OTHER_CONF = ("--config-path", "-cp", "--config-name", "-cn")
CFG = ("job", "hydra", "all")
INFO_FLAGS = ("--info", "-i")
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
PLAIN = (
    "--multirun",
    "-m",
    "--run",
    "-r",
    "--resolve",
    "--shell-completion",
    "-sc",
    "--hydra-help",
    "--version",
)
SWEEP = ("--multirun", "-m")
TEXTS = ("--hydra-help", "--version")
SHOW = (*CFG_FLAGS, *INFO_FLAGS, *TEXTS)
COMPLETE = ("--shell-completion", "-sc")
STARTERS = {"launcher": "processes, slurm, stacked", "sweeper": "grid, optuna"}
"""What sweeps are started by, the usual first."""
OPTUNA = "hydra_plugins.snnexp_sweeps.Optuna"
Point = tuple[list[str], DictConfig]
"""The overrides of a point of a sweep, and its config."""


def train(arguments: Sequence[str]) -> int:
    """Run what ``snnexp train ARGUMENTS`` asks for; returns the exit code.

    Raises:
        SnnexpError: a single run could not start, diverged or was interrupted.
    """
    return _start(arguments).code


def sweep(words: Sequence[str]) -> "Ledger | None":
    """Run the sweep of ``snnexp train -m WORD ...``; returns its record, None where the words only ask for help.

    Raises:
        SnnexpError: it could not start, or was interrupted.
    """
    return _start(["--multirun", *words]).ledger


def _start(arguments: Sequence[str]) -> "Jobs":
    flags, overrides = split(arguments)
    overrides = config.quoted(overrides)
    conf = config.conf_dir()
    config.prepare()
    if FROM in flags:
        at = flags.index(FROM) + 1
        flags[at] = source = str(runs.locate(flags[at]))
        flags, overrides, changed = earlier(flags, overrides)
        if changed is not None and any(flag in TEXTS for flag in flags):
            overrides = []
        elif changed is not None:
            jobs = Jobs(flags)
            jobs.run_saved(changed, overrides, source)
            return jobs
    # Hydra then raises what it finds instead of printing pages; `explain` makes it one sentence
    os.environ["HYDRA_FULL_ERROR"] = "1"
    typed = sys.argv
    jobs = Jobs(flags=[flag for flag in flags if flag not in SWEEP])
    try:
        with config.explained(overrides, folder_of(flags)):
            if not any(flag in COMPLETE for flag in flags):
                jobs.chosen, starters = check(flags, overrides)
                jobs.typed, overrides = overrides, [config.NO_SEARCH, *starters, *overrides]
            sys.argv = [typed[0], *flags, *config.replacing(overrides)]
            hydra.main(config_path=str(conf), config_name="train", version_base=config.VERSION_BASE)(jobs)()
    finally:
        sys.argv = typed
    if jobs.error is not None:
        raise jobs.error
    return jobs


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
                if any(flag in DIR_FLAGS for flag in flags):
                    refusals.add(f"{flag}: given twice, takes one folder")
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
    refusals.tell()
    return flags, overrides


def earlier(flags: Sequence[str], typed: Sequence[str]) -> tuple[list[str], list[str], DictConfig | None]:
    """What ``--from RUN`` stands for among ``flags``.

    Returns:
        The other flags; the overrides of the run with those ``typed``; and, where these no longer compose to what the
        run has saved, the config that it has saved, with what was typed changed in it as on resume.

    Raises:
        ConfigError: it is no run, or what was typed cannot be changed so.
        CheckpointError: its record is damaged.
    """
    at = flags.index(FROM)
    run = runs.Run.open(runs.locate(flags[at + 1]))
    saved = config.load(run.path / "config.yaml")
    flags = [*flags[:at], *flags[at + 2 :]]
    # they raise what is damaged, which `facts` only tells
    run.read()
    run.overrides()
    facts = run.facts()
    folder = origin(facts).config_dir
    if folder_of(flags) is None and folder and Path(folder).is_dir():
        flags = [*flags, "--config-dir", folder]
    # a record may come from elsewhere, and downloads only where that is typed
    kept = ("hydra", "data.download")
    recorded = [word for word in facts.typed if not runs.key_of(word).startswith(kept)]
    keys = {runs.key_of(word) for word in typed}
    overrides = [*(word for word in recorded if runs.key_of(word) not in keys), *typed]
    try:
        same = config.computes_same(config.composed(recorded, folder_of(flags))[0], saved)
    except ConfigError:
        same = False
    if same:
        offline = "data.download" not in keys and config.downloads(overrides, folder_of(flags))
        return flags, config.quoted([*overrides, *(["data.download=false"] if offline else [])]), None
    if needs := [flag for flag in flags if flag in (*SWEEP, *INFO_FLAGS)]:
        raise ConfigError(f"{FROM}: the config of this run cannot be composed again, which {needs[0]} needs")
    changed = config.change_all(saved, typed)
    return flags, overrides, changed if "data.download" in keys else config.offline(changed)


def folder_of(flags: Sequence[str]) -> Path | None:
    """What ``--config-dir`` among flags names."""
    return next((Path(value) for flag, value in itertools.pairwise(flags) if flag in DIR_FLAGS), None)


def check(flags: Sequence[str], overrides: Sequence[str]) -> "tuple[list[Point] | Asked, list[str]]":
    """Compose and check what Hydra is going to compose; of a sweep, before the first point starts.

    Returns:
        The points of a sweep, or what a search was asked for; and which launcher and sweeper are still to be chosen.

    Raises:
        ConfigError: a point cannot work, or would make Hydra do more than start runs.
    """
    folder = folder_of(flags)
    if not any(flag in SWEEP for flag in flags):
        cfg, node = config.composed(overrides, folder)
        if not any(flag in SHOW for flag in flags):
            refusals, checked = Refusals(), cfg
            with refusals.collected():
                checked = config.check(cfg)
                threads.require(checked)
            with refusals.collected():
                config.require_taken(overrides, cfg)
            for starter in STARTERS:
                begins = (f"hydra/{starter}", f"hydra.{starter}")
                if any(override.lstrip("+~").startswith(begins) for override in overrides):
                    refusals.add(f"hydra/{starter}: belongs to a sweep, which takes -m")
            if sweep := node["runtime"]["choices"].get("sweep"):
                refusals.add(f"sweep: {sweep} is a sweep, which takes -m")
            refusals.tell()
            # the processes that ddp starts have a rank
            if sys.stdout.isatty() and "LOCAL_RANK" not in os.environ:
                _show(cfg, checked, node["runtime"]["choices"], overrides, folder)
        return [], []
    # Hydra itself starts with what all points share, which another choice may replace in each of them
    shared = config.shared(overrides)
    _, node = config.composed([override for override in shared if not override.startswith("hydra.")], folder)
    # Hydra's basic launcher and sweeper stop at the first failure, so they are replaced
    left = [starter for starter in STARTERS if node[starter]["_target_"] in security.BASIC]
    for starter in left:
        if any(override.startswith(f"hydra/{starter}=") for override in overrides):
            raise ConfigError(f"hydra/{starter}: got basic, there are {STARTERS[starter]}")
    starters = [f"hydra/{starter}={STARTERS[starter].partition(',')[0]}" for starter in left]
    _, node = config.composed([*starters, *shared], folder)
    sweeper = config.plain(OmegaConf.create(node["sweeper"]))
    target, params = sweeper.pop("_target_"), sweeper.pop("params", None) or {}
    typed = [override for override in overrides if not override.lstrip("+~").startswith("hydra")]
    if hydras := [override for override in overrides if override not in typed and override not in shared]:
        raise ConfigError(f"{hydras[0].partition('=')[0]}: Hydra's own settings are no part of a sweep")
    if target == OPTUNA:
        from snnexp.sweeps.sources import Asked

        asked = Asked(sweeper, params, typed, folder)
        # before anything is written
        asked.checked  # noqa: B018
        return asked, starters
    points = [*config.points([*config.params(params), *typed], folder)]
    composed = config.composed_points(points, folder)
    found: list[Point] = []
    refusals = Refusals()
    for point in points:
        with refusals.collected():
            # one that cannot be composed is the last
            if (one := next(composed, None)) is None:
                break
            found.append((point, config.check(one)))
    refusals.tell()
    return found, starters


def _show(
    cfg: DictConfig, checked: DictConfig, choices: Mapping[str, str], overrides: Sequence[str], folder: Path | None
) -> None:
    """Print what was chosen, and the values that differ from those of the choices: a recipe's, and what was typed."""
    chosen = {group: choices[group] for group in config.NODES if choices.get(group)}
    alone, _ = config.composed([f"{group}={choice}" for group, choice in chosen.items()], folder)
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


class Jobs:
    """What Hydra calls: with a composed config for a run, and through our launchers for a sweep."""

    def __init__(self, flags: list[str]) -> None:
        self.flags, self.folder = flags, folder_of(flags)
        self.chosen: list[Point] | Asked = []
        """What :func:`check` has found."""
        self.typed: list[str] = []
        self.code = 0
        self.ledger: Ledger | None = None
        """Of a sweep that has ended."""
        self.error: BaseException | None = None
        self.__name__ = "train"

    def __call__(self, cfg: DictConfig) -> None:
        try:
            self._start(cfg)
        except Exception as error:
            # Hydra would print about it and go on to the next job
            self.error = error

    def _start(self, cfg: DictConfig) -> None:
        job = HydraConfig.get()
        if job.mode == RunMode.MULTIRUN:
            raise ConfigError("hydra.launcher: snnexp sweeps through its own; there are processes, slurm and stacked")
        # as text: an interpolation in it belongs to the config, not to this list
        task: Any = OmegaConf.to_container(job.overrides.task, resolve=False)
        overrides = [word for word in self.typed if word in task]
        checked = config.check(cfg)
        from snnexp.training.execute import run

        run(checked, overrides, begun=self._record_folder)

    def run_saved(self, cfg: DictConfig, overrides: Sequence[str], source: str) -> None:
        """Run, or show, the saved config of ``source``, which no overrides compose to."""
        if any(flag in SHOW for flag in self.flags):
            print(OmegaConf.to_yaml(cfg), end="")
            return
        terminal.tell(f"{source}: what was typed for this run now gives another config; its config.yaml is used")
        from snnexp.training.execute import run

        run(cfg, overrides, begun=self._record_folder)

    def _record_folder(self, path: Path) -> None:
        if self.folder is not None:
            runs.Run(path).update(config_dir=str(self.folder.absolute()))

    def sweep(self, folder: str, launcher: Mapping[str, Any]) -> None:
        """Run the points that were listed or are searched, as a launcher of ours asks for it."""
        from snnexp.sweeps import driver

        try:
            if isinstance(self.chosen, list):
                points = [(overrides, config.plain(cfg)) for overrides, cfg in self.chosen]
                name = str(points[0][1]["name"])
                place = Path(folder).expanduser()
                self.code, self.ledger = driver.start(place, name, points, launcher, self.folder)
            else:
                self.code, self.ledger = driver.search(Path(folder).expanduser(), self.chosen, launcher)
        except Exception as error:
            # Hydra would take it for one of its own
            self.error = error
