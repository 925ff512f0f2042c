"""Flags of ``snnexp train``: those of Hydra, and ``--from``."""

import itertools
import os
from collections.abc import Sequence
from pathlib import Path

from snnexp import config, text
from snnexp.errors import ConfigErrors
from snnexp.text import suggest

CFG_FLAGS = ("--cfg", "-c")
DIR_FLAGS = ("--config-dir", "-cd")
PACKAGE = ("--package", "-p")
FROM = "--from"
WITH_VALUE = (FROM, *CFG_FLAGS, *DIR_FLAGS, *PACKAGE)
UNSUPPORTED = ("--config-path", "-cp", "--config-name", "-cn")
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


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split arguments into flags, each followed by its value if it takes one, and overrides.

    Raises:
        ConfigError: a flag is unknown, lacks its value, or conflicts with another one.
    """
    flags: list[str] = []
    overrides: list[str] = []
    errors = ConfigErrors()
    rest = iter(arguments)
    for word in rest:
        if not word.startswith("-"):
            overrides.append(word)
        elif word.partition("=")[0] in WITH_VALUE:
            flag, _, value = word.partition("=")
            value = value or next(rest, "")
            # as argparse: a separate value must not look like a flag
            is_missing = not value or (value.startswith("-") and "=" not in word)
            if flag == FROM and FROM in flags:
                errors.add(f"{FROM}: given twice, takes one run")
            if is_missing or (flag in CFG_FLAGS and value not in CFG):
                needed = f"one of {', '.join(CFG)}" if flag in CFG_FLAGS else "a value"
                errors.add(f"{flag}: got {value or 'nothing'}, must be followed by {needed}")
            if flag in DIR_FLAGS and not is_missing:
                value = os.path.expanduser(value)
                if Path(value).resolve() in map(Path.resolve, folders_of(flags)):
                    errors.add(f"{flag}: given twice, with {text.format_value(value)}")
                elif not Path(value).is_dir():
                    errors.add(f"{flag}: {text.format_value(value)} is not a folder")
                elif not any((Path(value) / group).is_dir() for group in (*config.GROUPS, "hydra")):
                    errors.add(f"{flag}: {text.format_value(value)} has no folder of a group, such as neuron/")
                elif (Path(value) / "train.yaml").is_file():
                    errors.add(f"{flag}: {text.format_value(value)} has a train.yaml, set SNNEXP_CONF to use it")
            flags += [flag, "" if is_missing else value]
        elif word.partition("=")[0] in INFO_FLAGS:
            flag, _, value = word.partition("=")
            # Hydra would take the next word as the value
            flags += [flag, value or "all"]
            if flags[-1] not in INFO:
                errors.add(f"{flag}: got {value}, {suggest(value, INFO)}")
        elif word in PLAIN:
            flags.append(word)
        elif word.partition("=")[0] in UNSUPPORTED:
            errors.add(f"{word}: set SNNEXP_CONF to another folder of configs, or add one with --config-dir")
        else:
            key = word.lstrip("-")
            hint = suggest(word, [*WITH_VALUE, *INFO_FLAGS, *PLAIN])
            if "=" in word or key in (*config.KEYS, *config.GROUPS):
                hint = f"did you mean {key if '=' in key else f'{key}=VALUE'}?"
            errors.add(f"{word}: no such flag, {hint}")
    commands = [names[0] for names in COMMANDS if any(flag in names for flag in flags)]
    if len(commands) > 1:
        errors.add(f"{' '.join(commands)}: only one of them can be given")
    if "--resolve" in flags and not any(flag in CFG_FLAGS for flag in flags):
        errors.add("--resolve: belongs to --cfg")
    errors.raise_if_any()
    return flags, overrides


def folders_of(flags: Sequence[str]) -> list[Path]:
    """Return the folders given by ``--config-dir``, in order."""
    return [Path(value) for flag, value in itertools.pairwise(flags) if flag in DIR_FLAGS]


def value_of(flags: Sequence[str], *names: str) -> str | None:
    """Return the value of the last flag with one of these names, or None."""
    return next((value for flag, value in reversed([*itertools.pairwise(flags)]) if flag in names), None)
