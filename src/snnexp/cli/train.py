"""``snnexp train``: compose and check a config, then show it, run it, or run a sweep."""

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
    """Run ``snnexp train ARGUMENTS``; return the exit code.

    Raises:
        SnnexpError: a single run could not start, diverged or was interrupted.
    """
    return _start(arguments)[0]


def sweep(words: Sequence[str]) -> "Ledger | None":
    """Run the sweep of ``snnexp train -m WORD ...``; return its ledger, or None if a flag only prints information.

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
        path = locate(source)
        folders, overrides, saved = config_of_run(path, flags, overrides)
        if saved is not None:
            _run_saved(saved, str(path), flags, overrides, folders)
            return 0, None
    if any(flag in SHOW for flag in flags):
        # check for security before Hydra composes it again
        cfg, node = config.compose_unchecked(overrides, folders)
        warn_all(config.left_out([cfg], overrides))
        decoder = node["runtime"]["choices"].get("decoder")
        # chosen by the loss unless given on the command line
        others = [word for word in overrides if key_of(word) != "decoder"]
        words = [*others, f"decoder={decoder}"] if decoder else [*overrides]
        if (resolved := config.resolve_num_steps(cfg)) is not cfg:
            words.append(f"num_steps={resolved.num_steps}")
        _show(flags, words, folders)
    elif any(flag in SWEEP for flag in flags):
        return _sweep(overrides, folders)
    else:
        _run(check(overrides, folders), run_overrides(overrides), folders)
    return 0, None


def config_of_run(
    source: Path, flags: Sequence[str], changes: Sequence[str]
) -> tuple[list[Path], list[str], DictConfig | None]:
    """Return the config of a new run that starts from ``--from RUN``.

    Args:
        source: the run directory.
        flags: the other flags.
        changes: additional overrides.

    Returns:
        The additional config folders; the overrides of the run, updated by ``changes``; and None, or the saved config
        of the run with ``changes`` applied as on resume, if the overrides no longer compose to the saved config.

    Raises:
        ConfigError: it is not a run directory, or a change is invalid.
        CheckpointError: its record is corrupt.
    """
    run = Run.open(source)
    saved = config.load(run.path / "config.yaml")
    # these raise for corrupt files; `facts` does not
    run.read()
    run.overrides()
    facts = run.facts()
    folders = folders_of(flags) or [folder for folder in origin(facts).folders if folder.is_dir()]
    # the record may not be trusted: only the command line can enable downloads
    excluded = ("hydra", "data.download")
    recorded = [word for word in facts.effective_overrides if not key_of(word).startswith(excluded)]
    keys = {key_of(word) for word in changes}
    overrides = [*(word for word in recorded if key_of(word) not in keys), *changes]
    try:
        same = config.computes_same(config.compose_unchecked(recorded, folders)[0], saved)
    except ConfigError:
        same = False
    if same:
        if "data.download" not in keys:
            cfg, _ = config.compose_unchecked(config.first_point(run_overrides(overrides), folders), folders)
            overrides += ["data.download=false"] if config.downloads(cfg) else []
        return folders, config.quoted(overrides), None
    if needs := [flag for flag in flags if flag in (*SWEEP, *INFO_FLAGS)]:
        raise ConfigError(f"{FROM}: the config of this run cannot be composed again, which {needs[0]} needs")
    changed = config.change_all(saved, changes)
    if not any(key.partition(".")[0] == "decoder" for key in map(key_of, overrides)):
        # another composition may choose another decoder by the loss
        overrides += config.decoder_overrides(config.plain(changed))
    return folders, overrides, changed if "data.download" in keys else config.offline(changed)


def _show(flags: Sequence[str], overrides: Sequence[str], folders: Sequence[Path]) -> None:
    """Print Hydra's output for ``--cfg``, ``--info``, ``--hydra-help``, ``--version`` or shell completion."""
    if "--version" in flags:
        print(f"Hydra {hydra.__version__}")
        return
    words = [config.NO_SEARCH, *config.with_cleared_parts(overrides)]
    with config.explain_errors(overrides, folders), config.initialized_hydra(folders) as hydra_app:
        if any(flag in COMPLETE for flag in flags):
            # Hydra expects it from the shell
            os.environ.setdefault("COMP_LINE", "")
            hydra_app.shell_completion("train", [*overrides])
        elif "--hydra-help" in flags:
            parser = get_args_parser()
            hydra_app.hydra_help("train", parser, parser.parse_args(words))
        elif (info := value_of(flags, *INFO_FLAGS)) is not None:
            hydra_app.show_info(info, "train", words)
        elif (part := value_of(flags, *CFG_FLAGS)) is not None:
            hydra_app.show_cfg("train", words, part, value_of(flags, *PACKAGE), "--resolve" in flags)


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """Compose, resolve and check the config of one run, as ``snnexp train`` would.

    If an override replaces a choice of a recipe, a warning on stderr names the keys of the recipe that are dropped.

    Args:
        overrides: overrides in Hydra's grammar, ``["experiment=mnist_leaky", "neuron.beta=0.9", "seed=3"]``.

    Raises:
        ConfigError: the config is invalid; the message names the key.
    """
    cfg = config.compose(overrides)
    warn_all(config.left_out([cfg], overrides))
    return cfg


def check(overrides: Sequence[str], folders: Sequence[Path] = ()) -> DictConfig:
    """Compose and check the config of one run; print it if stdout is a terminal.

    Raises:
        ConfigError: the config is invalid, or describes a sweep.
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
        prefixes = (f"hydra/{starter}", f"hydra.{starter}")
        if any(override.lstrip("+~").startswith(prefixes) for override in overrides):
            errors.add(f"hydra/{starter}: is for sweeps only; add -m")
    if sweep := choices.get("sweep"):
        errors.add(f"sweep: {sweep} is a sweep; add -m")
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
    """Print the choices, and the values that differ from their defaults: those of the recipe and of the overrides."""
    chosen = {group: choices[group] for group in config.NODES if choices.get(group)}
    alone, _ = config.compose_unchecked([f"{group}={choice}" for group, choice in chosen.items()], folders)
    # unresolved, so that a value interpolated from a changed one does not count as changed
    default, actual = (cast(dict[str, Any], OmegaConf.to_container(node, resolve=False)) for node in (alone, cfg))
    plain = config.plain(checked)
    values = {"": {"seed": plain["seed"], **_differing(default, actual, plain, ("num_steps", "kernel"))}}
    for group in chosen:
        if isinstance(default[group], dict) and isinstance(actual[group], dict):
            values[group] = _differing(default[group], actual[group], plain[group], actual[group])
    overridden = {key_of(override) for override in overrides}
    # Rich is slow to import
    from snnexp import terminal

    terminal.console().print(terminal.config_tree(chosen, values, overridden, plain["name"]))


def _differing(
    default: Mapping[str, Any], actual: Mapping[str, Any], resolved: Mapping[str, Any], keys: Iterable[str]
) -> dict[str, Any]:
    return {key: resolved[key] for key in keys if key not in default or default[key] != actual[key]}


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
    """Run or show the saved config of a run whose overrides no longer compose to it."""
    if "--hydra-help" in flags:
        _show(flags, [], folders)
    elif any(flag in SHOW for flag in flags):
        print(OmegaConf.to_yaml(cfg), end="")
    else:
        from snnexp import terminal

        terminal.warn(f"{source}: the overrides of this run now compose to another config; using its config.yaml")
        _run(cfg, overrides, folders)


def _sweep(overrides: Sequence[str], folders: Sequence[Path]) -> "tuple[int, Ledger]":
    source, launcher = prepare_sweep(overrides, folders)
    cfg = source[0][1] if isinstance(source, list) else source.checked
    path = Path(cfg["logger"]["root"]) / "sweeps" / cfg["name"] / new_id()
    from snnexp.sweeps import driver

    if isinstance(source, list):
        return driver.start(path, cfg["name"], source, launcher, folders)
    return driver.search(path, source, launcher)
