"""Convert errors of users' parts to one-line messages: which part, which error, and where it was raised.

A part is a user's part if its module is in a package that SNNEXP_ALLOW_TARGETS names.
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
    """Where an error was raised: module and name of each function or its class in the traceback, and ``file:line``."""

    names: list[tuple[str, str]]
    line: str


def part_error(error: Exception, key: str | None = None, cfg: Mapping[str, Any] | None = None) -> PartError | None:
    """Return a :class:`PartError` if code of a user's part is in the traceback of an error, else None.

    Args:
        error: the error.
        key: key of the part, if known.
        cfg: a config; its targets identify the part if ``key`` is None.
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
    # the outermost frame belongs to the part; it may call any other code of the user
    key, (module, name) = (key, place.names[0]) if key else _key(place, cfg or {})
    message = _truncate(f"{key}: {module}.{name} raised {type(error).__name__}", str(error), place)
    # as a string: the error of a data worker may not be picklable
    return PartError(message, "".join(traceback.format_exception(error)))


@contextmanager
def wrap_errors(key: str | None = None, cfg: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Raise :class:`PartError` for errors of users' parts in the body; arguments as in :func:`part_error`."""
    try:
        yield
    except Exception as error:
        if (found := part_error(error, key, cfg)) is not None:
            raise found from error
        raise


@contextmanager
def wrap_constructor_errors(key: str) -> Iterator[None]:
    """Like :func:`wrap_errors`, but convert ValueError and TypeError of the constructor to :class:`ConfigError`."""
    with wrap_errors(key):
        try:
            yield
        except (ValueError, TypeError) as error:
            place = None if isinstance(error, SnnexpError) else _place(error)
            if place is None:
                raise
            refused = ConfigError(_truncate(key, str(error) or type(error).__name__, place))
            refused.has_path = True
            raise refused from error


def _truncate(start: str, message: str, place: Place) -> str:
    message = text.one_line(message)
    room = max(20, MAX_MESSAGE_LENGTH - len(start) - len(place.line))
    message = message if len(message) <= room else f"{message[: room - 3]}..."
    return f"{start}: {message} ({place.line})" if message else f"{start} ({place.line})"


def _place(error: Exception) -> Place | None:
    """Return the location of an error in code of a user's part, or None."""
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
    # the path, starting with the package
    levels = _module(frame).count(".") + 1 + (Path(frame.f_code.co_filename).name == "__init__.py")
    return Place(names, f"{'/'.join(Path(frame.f_code.co_filename).parts[-levels:])}:{line}")


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__"))


def _is_users(module: str) -> bool:
    return any(f"{module}.".startswith(f"{package}.") for package in targets.allowed_packages())


def _name(frame: FrameType) -> tuple[str, str]:
    """Return module and name of the class if the frame is a method, else of the function."""
    kind = type(frame.f_locals.get("self"))
    if _is_users(kind.__module__):
        return kind.__module__, kind.__qualname__
    return _module(frame), frame.f_code.co_qualname.partition(".<")[0]


def _key(place: Place, cfg: Mapping[str, Any]) -> tuple[str, tuple[str, str]]:
    """Return the key of the part that raised, and its name; the module if it does not identify a single part."""
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
