"""Command-line overrides in Hydra's grammar, and the points of a sweep that they describe."""

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, Quote, QuotedString
from hydra.errors import HydraException

from snnexp.config.folders import GROUPS, initialized_hydra
from snnexp.config.keys import SHORTHANDS, domains_of
from snnexp.config.messages import explain_errors, in_one_line, short
from snnexp.errors import ConfigError, ConfigErrors
from snnexp.record.upgrade import SCHEDULE
from snnexp.spec.places import PLACES
from snnexp.text import format_value

MAX_POINTS = 10_000
MAX_LENGTH = 4096
"""Maximum length of an override; Hydra's parser takes seconds for longer lists."""
MAX_KEY_LENGTH = 200
"""Maximum length of a key, which Hydra may use as a file name."""


def independent(overrides: Sequence[Override]) -> list[Override]:
    """Return the overrides that set a value and share no key with another one.

    Keys that contain each other, such as ``a`` and ``a.b``, count as shared. Choices do not count, because Hydra
    applies them first.
    """
    keys = [str(override.key_or_group) for override in overrides if not _is_choice(override)]
    return [override for override in overrides if _is_independent(override, keys)]


def _is_choice(override: Override) -> bool:
    key = override.key_or_group
    return key in GROUPS and override.get_key_element() == key and isinstance(override.value(), str)


def _is_independent(override: Override, keys: Sequence[str]) -> bool:
    key = str(override.key_or_group)
    plain = override.get_key_element() == key and not set(key) & {*"/@"} and not override.is_sweep_override()
    mine = [other for other in keys if other == key or other.startswith(f"{key}.") or key.startswith(f"{other}.")]
    # the chosen part determines which keys are left out, and the default decoder
    chooses = key in (*GROUPS, SCHEDULE) or key.endswith("._target_")
    return plain and not chooses and not key.startswith("hydra") and mine == [key]


def points(overrides: Sequence[str], folders: Sequence[Path] = ()) -> Iterator[list[str]]:
    """Yield the overrides of each point of a sweep.

    Raises:
        ConfigError: an override cannot be parsed or enumerated, or there are too many points.
    """
    with _parsed(overrides, folders) as parsed:
        variants = [list(itertools.islice(_variants(override), MAX_POINTS + 1)) for override in parsed]
    if math.prod(map(len, variants)) > MAX_POINTS:
        raise ConfigError(f"-m: a sweep of more than {MAX_POINTS} points; split it")
    return map(list, itertools.product(*variants))


def first_point(overrides: Sequence[str], folders: Sequence[Path] = ()) -> list[str]:
    """Return the overrides of the first point of a sweep or search.

    Raises:
        ConfigError: an override cannot be parsed, or has no value.
    """
    with _parsed(overrides, folders) as parsed:
        return [*map(_first, parsed)]


def _first(override: Override) -> str:
    key, value = override.get_key_element(), override.value()
    if isinstance(value, IntervalSweep):
        return f"{key}={value.start}"
    for variant in _variants(override):
        return variant
    raise ConfigError(f"{key}: a sweep needs at least one value")


@contextmanager
def _parsed(overrides: Sequence[str], folders: Sequence[Path]) -> Iterator[list[Override]]:
    overrides = quoted(overrides)
    with in_one_line(), explain_errors(overrides), initialized_hydra(folders) as hydra:
        parsed = OverridesParser.create(hydra.config_loader).parse_overrides(overrides)
        # the last of several overrides of a key wins
        yield [*{override.get_key_element(): override for override in parsed}.values()]


def has_sweep(overrides: Sequence[str]) -> bool:
    """Return True if one of the overrides has several values."""
    with in_one_line(), explain_errors(overrides):
        return any(override.is_sweep_override() for override in OverridesParser.create().parse_overrides([*overrides]))


def params_to_overrides(node: Mapping[str, Any]) -> list[str]:
    """Convert ``hydra.sweeper.params`` to overrides. A value may be a string in Hydra's grammar, or a list of values.

    A list is a single value if its key accepts it, as ``network.hidden`` accepts ``[256, 128]``.
    """
    return [f"{key}={_values(str(key), value)}" for key, value in node.items()]


def _values(key: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and not any(value in domain for domain in domains_of(key)):
        return ",".join(map(hydra_literal, value))
    return hydra_literal(value)


def hydra_literal(value: Any) -> str:
    """Format a value so that Hydra's override grammar parses it back."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {hydra_literal(entry)}' for key, entry in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(hydra_literal, value))}]"
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


def _variants(override: Override) -> Iterator[str]:
    key = override.get_key_element()
    if override.is_discrete_sweep():
        try:
            for value in override.sweep_string_iterator():
                yield f"{key}={value}"
        except ValueError as error:
            raise ConfigError(f"{key}: {error}") from error
    elif override.is_sweep_override():
        raise ConfigError(f"{key}: a continuous interval cannot be enumerated; use hydra/sweeper=optuna to search it")
    else:
        yield str(override.input_line)


def quoted(overrides: Sequence[str]) -> list[str]:
    """Quote values that Hydra cannot parse without quotes, such as ``/data/größe``, and expand shorthands.

    A string for a node in :data:`~snnexp.config.keys.SHORTHANDS` is assigned to a key of the node:
    ``init_from=5193`` becomes ``init_from.run=5193``.

    Raises:
        ConfigError: an override is too long, or has spaces around ``=``.
    """
    parser = OverridesParser.create()
    with in_one_line():
        for before, word in itertools.pairwise(["", *overrides]):
            if before and (word.startswith("=") if "=" not in before else before.endswith("=") and "=" not in word):
                key = before.rstrip("=")
                raise ConfigError(f"{key}: no spaces around '=', as in {key}=value")
        return [_quoted(override, parser) for override in overrides]


def with_cleared_parts(overrides: Sequence[str]) -> list[str]:
    """Clear the key of each override that describes an object, because Hydra would merge it into the previous object.

    Groups are not cleared, because ``null`` would be a choice.
    """
    words: list[str] = []
    # Hydra accepts null as a choice only in files
    nothing = {f"{group}=null": f"{group}=none" for group in ("decoder", *(key for key in PLACES if PLACES[key].many))}
    for text in (nothing.get(word, word) for word in overrides):
        override = OverridesParser.create().parse_override(text) if "_target_" in text else None
        if override is not None and is_part(override) and (empty := f"{override.key_or_group}=null") not in words[-1:]:
            words.append(empty)
        words.append(text)
    return words


def is_part(override: Override) -> bool:
    """Return True if an override sets a key to a mapping with ``_target_``."""
    key = override.key_or_group
    if override.get_key_element() != key or key in GROUPS or override.is_sweep_override():
        return False
    value = override.value()
    return isinstance(value, dict) and "_target_" in value


def _quoted(override: str, parser: OverridesParser) -> str:
    if len(override) > MAX_LENGTH:
        raise ConfigError(f"{format_value(override)}: has {len(override)} characters, at most {MAX_LENGTH} are allowed")
    key, _, value = override.partition("=")
    if key in SHORTHANDS and not value.startswith("{"):
        key = SHORTHANDS[key]
        override = f"{key}={value}"
    if key in SHORTHANDS.values() and not set(value) & set("[]{}()'\"$"):
        # the end of a run id may look like a number
        value = ",".join(_quote_number(each, parser) for each in value.split(","))
        override = f"{key}={value}"
    if key != key.strip() and value:
        raise ConfigError(f"{key.strip()}: no spaces around '=', as in {key.strip()}=value")
    if len(key) > MAX_KEY_LENGTH:
        raise ConfigError(f"{short(key)}: unknown key, longer than {MAX_KEY_LENGTH} characters")
    if (match := re.fullmatch(r"choice\((.*)\)", value)) and not _parses(override, parser):
        # Hydra's choice() does not accept null
        options = f"{key}={match[1]}"
        return options if _parses(options, parser) else override
    # the meaning of these characters is ambiguous
    if not value or set(value) & set("[]{}'\"$,") or _parses(override, parser):
        return override
    text = f"{key}={QuotedString(value, Quote.single).with_quotes()}"
    return text if _parses(text, parser) else override


def _quote_number(value: str, parser: OverridesParser) -> str:
    """Quote a value that Hydra would parse as a number."""
    text = f"key={value}"
    if not _parses(text, parser) or not isinstance(parser.parse_override(text).value(), int | float):
        return value
    return str(QuotedString(value, Quote.single).with_quotes())


def _parses(override: str, parser: OverridesParser) -> bool:
    try:
        parser.parse_override(override)
    except (HydraException, RecursionError):
        return False
    return True


def parse_assignments(overrides: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yield the keys and values of overrides of the form ``key=value``.

    Raises:
        ConfigError: an override has another form.
    """
    overrides, errors = quoted(overrides), ConfigErrors()
    parsed: list[Override] = []
    with in_one_line():
        for text in overrides:
            with errors.collect(), explain_errors([text]):
                (override,) = OverridesParser.create().parse_overrides([text])
                if override.get_key_element() != override.key_or_group or override.is_sweep_override():
                    raise ConfigError(f"{text}: only key=value overrides are accepted here")
                parsed.append(override)
        errors.raise_if_any()
    yield from ((override.key_or_group, override.value()) for override in parsed)
