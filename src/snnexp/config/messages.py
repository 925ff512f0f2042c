"""Convert errors of Hydra, OmegaConf and YAML to one-line messages."""

import os
import re
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import yaml
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from snnexp.config import files
from snnexp.config.folders import GLOBAL, GROUPS, choices, conf_dir, require_global
from snnexp.config.plain import flat
from snnexp.errors import ConfigError, SnnexpError
from snnexp.text import format_value, list_options, suggest, truncate

HYDRA_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError)
"""Errors that Hydra raises for invalid overrides and files; :func:`explain` converts them."""


@contextmanager
def explain_errors(overrides: Sequence[str] = (), folders: Sequence[Path] = ()) -> Iterator[None]:
    """Convert errors of Hydra, OmegaConf and YAML in the body to :class:`ConfigError`."""
    try:
        yield
    except RecursionError as error:
        raise ConfigError(f"{format_value(' '.join(overrides))}: nested too deeply") from error
    except Exception as error:
        if isinstance(error, SnnexpError) or not _is_hydras(error):
            raise
        raise explain(error, overrides, folders) from error


def _is_hydras(error: Exception) -> bool:
    """Return True if Hydra or a parser raised an error; for some inputs it is of a builtin class."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    raised_in = str(frame.f_globals.get("__name__")).partition(".")[0]
    return isinstance(error, HYDRA_ERRORS) or raised_in in ("hydra", "omegaconf", "antlr4", "yaml")


@contextmanager
def in_one_line() -> Iterator[None]:
    """Shorten each message of a :class:`ConfigError` in the body to one line of at most 190 characters."""
    try:
        yield
    except ConfigError as error:
        error.args = tuple(truncate(str(message)) for message in error.args)
        raise


def explain(error: Exception, overrides: Sequence[str] = (), folders: Sequence[Path] = ()) -> ConfigError:
    """Convert an error of Hydra, OmegaConf or YAML to one message: the key, what is wrong, and how to fix it.

    Args:
        error: the error.
        overrides: the overrides, for errors that do not name the key.
        folders: additional config folders, from ``--config-dir``.
    """
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return ConfigError(f"{error.problem_mark.name}: {files.describe(error)}")
    if isinstance(error, OverrideParseException):
        return _no_override(error.override, folders)
    if isinstance(error, (*HYDRA_ERRORS, ValueError)) and (
        found := _about_a_key(error) or _about_a_choice(error, overrides, folders)
    ):
        return found
    # an interpolation in the name of a choice, or a bug of a parser
    reason = _first_line(error.__cause__ or error)
    return ConfigError(f"{format_value(' '.join(overrides))}: {reason}" if overrides else reason)


def _no_override(word: str, folders: Sequence[Path]) -> ConfigError:
    text = f"{format_value(word.strip() or repr(word))}: not key=value or group=choice"
    if any(word.count(opening) != word.count(closing) for opening, closing in ("[]", "{}", "()")):
        return ConfigError(f"{text}, brackets do not match; a list with spaces needs quotes: 'key=[1, 2]'")
    if "=" in word:
        return ConfigError(f"{text} in Hydra's grammar; quote a value with a quote, a bracket or '$': key='\"value\"'")
    if group := next((group for group in GROUPS if word in choices(group, folders)), None):
        return ConfigError(f"{text}, did you mean {group}={word}?")
    if word in GROUPS:
        return ConfigError(f"{text}, {list_options(choices(word, folders))}")
    if os.path.exists(word):
        return ConfigError(f"{text}; --from RUN repeats a run, snnexp resume RUN continues it")
    return ConfigError(f"{text}, did you mean {word.replace(':', '=', 1)}?" if ":" in word else text)


def _about_a_key(error: Exception) -> ConfigError | None:
    for cause in _causes(error):
        key = getattr(cause, "full_key", None)
        if key == "_dummy_":
            # Hydra resolves an interpolation in the name of a choice under this key
            return None
        if key and "not in struct" in str(cause):
            parent = getattr(cause, "parent_node", None)
            if isinstance(parent, DictConfig) and [*parent] == ["_target_"]:
                return ConfigError(f"{short(key)}: unknown key, +{short(key)}=... passes it as an argument")
            return ConfigError(unknown(str(key), parent if isinstance(parent, DictConfig) else OmegaConf.create()))
        if key and isinstance(cause, MissingMandatoryValue):
            example = "mypkg.Mine" if str(key).endswith("._target_") else "..."
            return ConfigError(f"{short(str(key))}: has no value, add {key}={example}")
        if key and isinstance(cause, OmegaConfBaseException):
            return ConfigError(f"{short(str(key))}: {_first_line(cause)}")
    return None


def unknown(key: str, parent: DictConfig) -> str:
    """Return the message for a key that its parent node does not have."""
    options = {str(name) for name in parent}
    # Hydra raises the same error for an unknown group
    options |= {*GROUPS} if "." not in key else set()
    path = _elsewhere(parent, key)
    return f"{short(key)}: unknown key, {f'did you mean {path}?' if path else _near(key, options)}"


def _about_a_choice(error: Exception, overrides: Sequence[str], folders: Sequence[Path]) -> ConfigError | None:
    text = str(error)
    if match := re.search(rf"In '((?:{'|'.join(GLOBAL)})/[^']+)': Could not override '[^']+@", text):
        try:
            require_global(match[1], folders)
        except ConfigError as missing:
            return missing
    if match := re.search(r"Could not find '(hydra/[^'/]+|[^'/]+)/([^']*)'", text):
        return _no_choice(match[1], match[2], folders)
    if match := re.search(r"Could not override '([^']+)'\. No match in the defaults list", text):
        return ConfigError(f"{match[1]}: no such group, {suggest(match[1].split('@')[0], GROUPS)}")
    if match := re.search(r"Ambiguous value for argument '([^']+)'", text):
        key = match[1].partition("=")[0]
        return ConfigError(f"{key}: has several values; add -m for a sweep, or brackets for a list: key=[1,2]")
    if match := re.search(r"Could not (?:append|delete) .*?'([^']+)'", text):
        return ConfigError(f"{short(match[1])}: {_first_line(error)}")
    if "Config group override must be" in text:
        # Hydra's message does not name the group
        for group, _, choice in (override.partition("=") for override in overrides):
            if group in GROUPS and choice not in choices(group, folders):
                return _no_choice(group, choice, folders)
    return None


def short(key: str) -> str:
    """Abbreviate a long key, so that the rest of a message fits in the line."""
    return key if len(key) <= 80 else f"{key[:40]}...{key[-30:]}"


def _no_choice(group: str, choice: str, folders: Sequence[Path]) -> ConfigError:
    known = choices(group, folders)
    if choice in ("", "null"):
        return ConfigError(f"{group}: every run needs one, {list_options(known)}")
    if any((place / group / f"{choice}.yml").is_file() for place in (*folders, conf_dir())):
        return ConfigError(f"{group}={choice}: the file name must end with .yaml, not .yml")
    return ConfigError(f"{group}={choice}: no such choice, {suggest(Path(choice).name, known)}")


def _elsewhere(cfg: DictConfig, key: str) -> str | None:
    """Return the only key of a config whose last component is ``key`` or ``max_<key>``, else None."""
    plain = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=False))
    paths = [path for path in flat(plain) if not path.startswith(("hydra.", "published."))]
    for found in (
        [path for path in paths if path.rpartition(".")[2] == key],
        [path for path in paths if path.rpartition(".")[2] == f"max_{key}"],
    ):
        # a key of both neuron and readout counts once
        if len({path.replace("readout.", "neuron.", 1) for path in found}) == 1:
            return found[0]
    return None


def _near(key: str, options: set[str]) -> str:
    options = options - {"hydra", "_target_"}
    parent, _, leaf = key.rpartition(".")
    if not options and parent == "readout":
        return "readout=same copies the neuron; choose another readout to set its keys"
    prefix = f"{parent}." if parent else ""
    return suggest(leaf, options, prefix) if options else f"add an argument that its file does not set by +{key}=..."


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
