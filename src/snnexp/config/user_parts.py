"""Errors that code of a user's own part raises, told in one sentence: which part, what was raised, and where.

A part is the user's own if its module lies in a package that SNNEXP_ALLOW_TARGETS names.
"""

import pkgutil
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from snnexp import limits, text
from snnexp.config import targets
from snnexp.errors import DISK_ERRNOS, ConfigError, PartError, SnnexpError, is_out_of_memory, is_worker_failure

MAX_MESSAGE_LENGTH = 180
"""Maximum length of a message; its location is never truncated."""


class Place(NamedTuple):
    """Where an error was raised: module and name of the functions or their classes on the way there, and file:line."""

    names: list[tuple[str, str]]
    line: str


def part_error(error: Exception, key: str | None = None, cfg: Mapping[str, Any] | None = None) -> PartError | None:
    """The sentence for an error on whose way code of a user's part was running; None for any other error.

    Args:
        error: what was raised.
        key: the part, where it is known.
        cfg: a config, whose targets tell the part where ``key`` does not.
    """
    if (
        isinstance(error, SnnexpError)
        or is_out_of_memory(error)
        or is_worker_failure(error)
        or limits.describe_limit(error)
    ):
        return None
    if isinstance(error, OSError) and error.errno in DISK_ERRNOS:
        return None
    place = _place(error)
    if place is None:
        return None
    # what was called first is the part, and what it calls may be anything of the user's
    key, (module, name) = (key, place.names[0]) if key else _key(place, cfg or {})
    sentence = _fitting(f"{key}: {module}.{name} raised {type(error).__name__}", str(error), place)
    # as text: what a data worker has raised is not sent
    return PartError(sentence, "".join(traceback.format_exception(error)))


@contextmanager
def wrap_errors(key: str | None = None, cfg: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Raise :class:`PartError` for what code of a user's part raises; arguments as of :func:`part_error`."""
    try:
        yield
    except Exception as error:
        if (found := part_error(error, key, cfg)) is not None:
            raise found from error
        raise


@contextmanager
def wrap_constructor_errors(key: str) -> Iterator[None]:
    """As :func:`wrap_errors`, and a ValueError or TypeError is about the arguments: :class:`ConfigError`."""
    with wrap_errors(key):
        try:
            yield
        except (ValueError, TypeError) as error:
            place = None if isinstance(error, SnnexpError) else _place(error)
            if place is None:
                raise
            refused = ConfigError(_fitting(key, str(error) or type(error).__name__, place))
            refused.has_path = True
            raise refused from error


def _fitting(start: str, message: str, place: Place) -> str:
    message = text.one_line(message)
    room = max(20, MAX_MESSAGE_LENGTH - len(start) - len(place.line))
    message = message if len(message) <= room else f"{message[: room - 3]}..."
    return f"{start}: {message} ({place.line})" if message else f"{start} ({place.line})"


def _place(error: Exception) -> Place | None:
    """The frames of an error that are code of a user's part."""
    frames = [(frame, line) for frame, line in traceback.walk_tb(error.__traceback__) if _is_users(_module(frame))]
    if isinstance(error, SyntaxError) and error.filename and not frames:
        file = Path(error.filename)
        roots = {package.partition(".")[0] for package in targets.allowed_packages()}
        where = f"{'/'.join(file.parts[-2:])}:{error.lineno}"
        return Place([(file.parent.name, file.stem)], where) if roots & {*file.parts} else None
    if not frames:
        return None
    names = [_name(frame) for frame, _ in frames]
    frame, line = frames[-1]
    # from the package on
    levels = _module(frame).count(".") + 1 + (Path(frame.f_code.co_filename).name == "__init__.py")
    return Place(names, f"{'/'.join(Path(frame.f_code.co_filename).parts[-levels:])}:{line}")


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__"))


def _is_users(module: str) -> bool:
    return any(f"{module}.".startswith(f"{package}.") for package in targets.allowed_packages())


def _name(frame: FrameType) -> tuple[str, str]:
    """Module and name of the class whose method runs, or of the function."""
    kind = type(frame.f_locals.get("self"))
    if _is_users(kind.__module__):
        return kind.__module__, kind.__qualname__
    return _module(frame), frame.f_code.co_qualname.partition(".<")[0]


def _key(place: Place, cfg: Mapping[str, Any]) -> tuple[str, tuple[str, str]]:
    """The part of a config that raised, and its name; the module where no single part is from there."""
    targets = {path: name for path, name in _targets(cfg, "") if _is_users(name)}
    by_name: dict[tuple[str, str], str] = {}
    for path, target in targets.items():
        found = pkgutil.resolve_name(target)
        by_name.setdefault((found.__module__, found.__qualname__), path)
    for name in reversed(place.names):
        if name in by_name:
            return by_name[name], name
    first = place.names[0]
    from_there = [path for (module, _), path in by_name.items() if module == first[0]]
    return (from_there[0] if len(from_there) == 1 else first[0]), first


def _targets(node: Mapping[str, Any], path: str) -> Iterator[tuple[str, str]]:
    if isinstance(node.get("_target_"), str):
        yield path, node["_target_"]
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _targets(value, f"{path}.{key}" if path else str(key))
