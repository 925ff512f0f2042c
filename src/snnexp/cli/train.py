"""``snnexp train``: what was typed is composed and checked, and then shown, run or swept."""

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import hydra
from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig, OmegaConf

from snnexp import config, threads
from snnexp.cli.flags import (
    CFG_FLAGS,
    COMPLETE,
    FROM,
    INFO_FLAGS,
    PACKAGE,
    SHOW,
    SWEEP,
    folders_of,
    split,
    value_of,
)
from snnexp.cli.points import prepare_sweep, run_overrides, warn_all
from snnexp.config import security
from snnexp.errors import ConfigError, ConfigErrors
from snnexp.record.find import locate
from snnexp.record.names import key_of, new_id
from snnexp.record.origin import origin, serialize_folders
from snnexp.record.run import Run
from snnexp.training import launchers

if TYPE_CHECKING:
    from snnexp.sweeps.ledger import Ledger


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
    if (source := value_of(flags, FROM)) is not None:
        path, typed = locate(source), overrides
        folders, overrides, saved = earlier(path, flags, typed)
        if saved is not None:
            _run_saved(saved, str(path), flags, overrides, folders)
            return 0, None
    if any(flag in SHOW for flag in flags):
        # what no config may do is refused before Hydra composes it again
        cfg, node = config.compose_unchecked(overrides, folders)
        warn_all(config.left_out([cfg], overrides))
        decoder = node["runtime"]["choices"].get("decoder")
        # which was chosen by the loss, if it was not typed
        others = [word for word in overrides if key_of(word) != "decoder"]
        words = [*others, f"decoder={decoder}"] if decoder else [*overrides]
        if (decided := config.resolve_num_steps(cfg)) is not cfg:
            words.append(f"num_steps={decided.num_steps}")
        _show(flags, words, folders)
    elif any(flag in SWEEP for flag in flags):
        return _sweep(overrides, folders)
    else:
        _run(check(overrides, folders), run_overrides(overrides), folders)
    return 0, None


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
    run = Run.open(source)
    saved = config.load(run.path / "config.yaml")
    # they raise what is damaged, which `facts` only tells
    run.read()
    run.overrides()
    facts = run.facts()
    folders = folders_of(flags) or [folder for folder in origin(facts).folders if folder.is_dir()]
    # a record may come from elsewhere, and downloads only where that is typed
    kept = ("hydra", "data.download")
    recorded = [word for word in facts.effective_overrides if not key_of(word).startswith(kept)]
    keys = {key_of(word) for word in typed}
    overrides = [*(word for word in recorded if key_of(word) not in keys), *typed]
    try:
        same = config.computes_same(config.compose_unchecked(recorded, folders)[0], saved)
    except ConfigError:
        same = False
    if same:
        if "data.download" not in keys:
            one, _ = config.compose_unchecked(config.first_point(run_overrides(overrides), folders), folders)
            overrides += ["data.download=false"] if config.downloads(one) else []
        return folders, config.quoted(overrides), None
    if needs := [flag for flag in flags if flag in (*SWEEP, *INFO_FLAGS)]:
        raise ConfigError(f"{FROM}: the config of this run cannot be composed again, which {needs[0]} needs")
    changed = config.change_all(saved, typed)
    if not any(key.partition(".")[0] == "decoder" for key in map(key_of, overrides)):
        # composed anew, the loss may have another
        overrides += config.decoder_overrides(config.plain(changed))
    return folders, overrides, changed if "data.download" in keys else config.offline(changed)


def _show(flags: Sequence[str], overrides: Sequence[str], folders: Sequence[Path]) -> None:
    """Print what Hydra tells of a config or of itself."""
    if "--version" in flags:
        print(f"Hydra {hydra.__version__}")
        return
    words = [config.NO_SEARCH, *config.with_cleared_parts(overrides)]
    with config.explain_errors(overrides, folders), config.initialized_hydra(folders) as reading:
        if any(flag in COMPLETE for flag in flags):
            # which Hydra expects from the shell
            os.environ.setdefault("COMP_LINE", "")
            reading.shell_completion("train", [*overrides])
        elif "--hydra-help" in flags:
            parser = get_args_parser()
            reading.hydra_help("train", parser, parser.parse_args(words))
        elif (info := value_of(flags, *INFO_FLAGS)) is not None:
            reading.show_info(info, "train", words)
        elif (part := value_of(flags, *CFG_FLAGS)) is not None:
            reading.show_cfg("train", words, part, value_of(flags, *PACKAGE), "--resolve" in flags)


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """Compose, resolve and check the config of one run, as ``snnexp train`` would.

    Where a choice was typed, a line on stderr names the keys of a recipe that gave way to it.

    Args:
        overrides: in Hydra's grammar, ``["experiment=mnist_leaky", "neuron.beta=0.9", "seed=3"]``.

    Raises:
        ConfigError: it cannot work; the sentence names the key.
    """
    cfg = config.compose(overrides)
    warn_all(config.left_out([cfg], overrides))
    return cfg


def check(overrides: Sequence[str], folders: Sequence[Path] = ()) -> DictConfig:
    """Compose and check the config of one run, and show it in a terminal.

    Raises:
        ConfigError: it cannot work, or asks for a sweep.
    """
    cfg, node = config.compose_unchecked(overrides, folders)
    choices = node["runtime"]["choices"]
    errors, checked = ConfigErrors(), cfg
    with errors.collect():
        checked = config.check(cfg)
        threads.require(checked)
    with errors.collect():
        config.require_used(overrides, cfg)
    for starter in security.STARTERS:
        begins = (f"hydra/{starter}", f"hydra.{starter}")
        if any(override.lstrip("+~").startswith(begins) for override in overrides):
            errors.add(f"hydra/{starter}: belongs to a sweep, which takes -m")
    if sweep := choices.get("sweep"):
        errors.add(f"sweep: {sweep} is a sweep, which takes -m")
    errors.raise_if_any()
    # torchrun and srun start several processes with this command
    is_first = not (launchers.is_distributed(checked["trainer"]) and launchers.rank())
    if is_first:
        warn_all(config.left_out([cfg], overrides))
    if sys.stdout.isatty() and is_first:
        _show_tree(cfg, checked, choices, overrides, folders)
    return checked


def _show_tree(
    cfg: DictConfig, checked: DictConfig, choices: Mapping[str, str], overrides: Sequence[str], folders: Sequence[Path]
) -> None:
    """Print what was chosen, and the values that differ from those of the choices: a recipe's, and what was typed."""
    chosen = {group: choices[group] for group in config.NODES if choices.get(group)}
    alone, _ = config.compose_unchecked([f"{group}={choice}" for group, choice in chosen.items()], folders)
    # as written, for what follows from another value is no change of its own
    before, now = (cast(dict[str, Any], OmegaConf.to_container(node, resolve=False)) for node in (alone, cfg))
    plain = config.plain(checked)
    values = {"": {"seed": plain["seed"], **_differing(before, now, plain, ("num_steps", "kernel"))}}
    for group in chosen:
        if isinstance(before[group], dict) and isinstance(now[group], dict):
            values[group] = _differing(before[group], now[group], plain[group], now[group])
    typed = {key_of(override) for override in overrides}
    # Rich takes longer to import than a refusal should
    from snnexp import terminal

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
            Run(path).update(config_dir=serialize_folders(folders))

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
        from snnexp import terminal

        terminal.warn(f"{source}: what was typed for this run now gives another config; its config.yaml is used")
        _run(cfg, overrides, folders)


def _sweep(overrides: Sequence[str], folders: Sequence[Path]) -> "tuple[int, Ledger]":
    chosen, launcher = prepare_sweep(overrides, folders)
    first = chosen[0][1] if isinstance(chosen, list) else chosen.checked
    place = Path(first["logger"]["root"]) / "sweeps" / first["name"] / new_id()
    from snnexp.sweeps import driver

    if isinstance(chosen, list):
        return driver.start(place, first["name"], chosen, launcher, folders)
    return driver.search(place, chosen, launcher)
