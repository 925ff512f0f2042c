"""Domains: sets of values. ``value in domain`` checks a value, ``str(domain)`` describes the set."""

import math
import re
import unicodedata
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import UnionType
from typing import Annotated, Any, Literal, Protocol, Union, cast, get_args, get_origin

from annotated_types import DocInfo

from snnexp.spec.annotations import HOLDS_PARTS, OBJECT, STACKABLE, AtLeast, AtMost, Matching
from snnexp.spec.places import KINDS
from snnexp.text import format_value

FLOAT32_MAX = 3.4028234663852886e38
WHOLE_MAX = 2**31 - 1
"""Upper limit of integers whose domain is unbounded, so that products of sizes and counts fit in 64 bits."""


class Domain(Protocol):
    """A set of values with a description."""

    def __contains__(self, value: object) -> bool: ...


@dataclass(frozen=True)
class Number:
    """A number that is finite in float32 and in [low, high]; ``open_low`` and ``open_high`` exclude the ends."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    whole: bool = False

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        # NaN compares false; an int may exceed the range of floats
        above = self.low < value if self.open_low else self.low <= value
        below = value < self.high if self.open_high else value <= self.high
        if self.whole and math.isinf(self.low) and math.isinf(self.high):
            return True
        largest = WHOLE_MAX if self.whole and math.isinf(self.high) else FLOAT32_MAX
        return abs(value) <= largest and above and below

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a finite number"
        above = f"greater than {self.low:g}" if self.open_low else f"of at least {self.low:g}"
        high = str(int(self.high)) if self.whole and math.isfinite(self.high) else f"{self.high:g}"
        if math.isinf(self.low) and math.isinf(self.high):
            return kind
        if math.isinf(self.high):
            return f"{kind} {above}, below 2^31" if self.whole else f"{kind} {above}"
        if self.open_high:
            return f"{kind} {above} and less than {high}"
        if self.open_low:
            return f"{kind} {above} and at most {high}"
        return f"{kind} from {self.low:g} to {high}"


@dataclass(frozen=True)
class Part:
    """An object of a class, or a config node that describes one."""

    kind: type

    def __contains__(self, value: object) -> bool:
        return is_object(value)

    def __str__(self) -> str:
        return f"a mapping such as {{_target_: {self.kind.__module__}.{self._example()}}}"

    def _example(self) -> str:
        # a placeholder class names one
        found: str | None = getattr(self.kind, "_example", None)
        others: list[type] = self.kind.__subclasses__()
        return found or [*(other.__name__ for other in others), self.kind.__name__][0]


@dataclass(frozen=True)
class AnyObject:
    """An object of any class, or a config node that describes one."""

    def __contains__(self, value: object) -> bool:
        return is_object(value)

    def __str__(self) -> str:
        return "a mapping such as {_target_: mypkg.MyClass}"


@dataclass(frozen=True)
class Parameter:
    """A neuron parameter: a number, a tensor or an initializer; the neuron checks the values of the latter two."""

    number: Number
    part: Part

    def __contains__(self, value: object) -> bool:
        return value in self.number or value in self.part

    def __str__(self) -> str:
        name = self.part.kind.__name__.lower()
        return f"{self.number}, or {'an' if name[0] in 'aeiou' else 'a'} {name}"


class OneOf:
    """One of several strings."""

    def __init__(self, *options: str) -> None:
        self.options = options

    def __contains__(self, value: object) -> bool:
        return isinstance(value, str) and value in self.options

    def __str__(self) -> str:
        return f"one of {', '.join(self.options)}"


@dataclass(frozen=True)
class Kind:
    """Any value of a Python type."""

    type: type
    name: str

    def __contains__(self, value: object) -> bool:
        return isinstance(value, self.type)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Text:
    """A string without control characters and surrogates, so that it can be part of a path and a printed line."""

    pattern: str = ".*"
    name: str = "a string without control characters"

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, str) or any(unicodedata.category(letter) in ("Cc", "Cs") for letter in value):
            return False
        return len(value) <= 4096 and re.fullmatch(self.pattern, value) is not None

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class MappingOf:
    """A mapping from strings to values in ``each``."""

    each: Domain
    name: str

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, Mapping) or any(key not in TEXT for key in value):
            return False
        return all(element in self.each for element in value.values())

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class ListOf:
    """A list of elements in ``each``."""

    each: Domain
    length: int | None = None

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, (list, tuple)) or self.length not in (None, len(value)):
            return False
        return all(element in self.each for element in value)

    def __str__(self) -> str:
        return (
            f"a list of {self.length} elements, each {self.each}"
            if self.length
            else f"a list, each element {self.each}"
        )


@dataclass(frozen=True)
class Either:
    """The union of two domains."""

    first: Domain
    second: Domain

    def __contains__(self, value: object) -> bool:
        return value in self.first or value in self.second

    def __str__(self) -> str:
        return f"{self.first}, or {self.second}"


def is_object(value: object) -> bool:
    """Return True if a value is an object, or a config node that describes one."""
    if isinstance(value, Mapping):
        return "_target_" in value
    return not isinstance(value, (bool, int, float, str, list, tuple, type(None)))


ANY = "builtins.object"
"""The name that :func:`kinds` yields for :class:`AnyObject`."""
FINITE = Number()
COUNT = Number(low=1, whole=True)
WHOLE = Number(whole=True)
FLAG = Kind(bool, "true or false")
TEXT = Text()
NULL = Kind(type(None), "null")
PLAIN: dict[Any, Domain] = {
    float: FINITE,
    int: WHOLE,
    bool: FLAG,
    str: TEXT,
    type(None): NULL,
}


def domain(annotation: Any) -> Domain | None:
    """Return the values that an annotation allows, or None if it is not supported and nothing is checked.

    Args:
        annotation: a type, or a form of :mod:`typing` or :mod:`snnexp.spec.annotations`.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if not arguments:
        return _plain(annotation)
    if origin is Annotated:
        return _apply_marks(domain(arguments[0]), arguments[1:])
    if origin in (Union, UnionType):
        return _union(arguments)
    if origin is Literal:
        return OneOf(*arguments) if all(isinstance(option, str) for option in arguments) else None
    if origin is tuple and arguments[-1] is not Ellipsis:
        each = domain(arguments[0])
        return ListOf(each, len(arguments)) if each is not None and len({*map(repr, arguments)}) == 1 else None
    if origin in (list, tuple, Sequence):
        each = domain(arguments[0])
        return None if each is None else ListOf(each)
    if origin in (dict, Mapping) and arguments[0] is str:
        each = domain(arguments[1])
        return None if each is None else MappingOf(each, f"a mapping from strings to values, each {each}")
    return None


def _plain(annotation: Any) -> Domain | None:
    if isinstance(annotation, Hashable) and annotation in PLAIN:
        return PLAIN[annotation]
    # a constructor may convert its argument to other classes, such as a path or an enumeration
    return Part(annotation) if isinstance(annotation, type) and _full_name(annotation) in KINDS else None


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


@dataclass(frozen=True)
class Only:
    """A single value."""

    value: Any

    def __contains__(self, value: object) -> bool:
        return type(value) is type(self.value) and value == self.value

    def __str__(self) -> str:
        return format_value(self.value)


def with_default(inner: Domain | None, default: object) -> Domain | None:
    """Return a domain that includes the default, even if the annotation does not, as in ``n: int = None``."""
    plain = default is None or isinstance(default, bool | int | float | str)
    if inner is None or not plain or default in inner:
        return inner
    return Either(inner, NULL if default is None else Only(default))


def kinds(domain: Domain | None) -> Iterator[str]:
    """Yield the classes whose objects are in a domain, as ``module.name``."""
    match domain:
        case Part():
            yield _full_name(domain.kind)
        case Parameter():
            yield _full_name(domain.part.kind)
        case AnyObject():
            yield ANY
        case ListOf():
            yield from kinds(domain.each)
        case Either():
            yield from kinds(domain.first)
            yield from kinds(domain.second)


def _apply_marks(inner: Domain | None, metadata: Iterable[Any]) -> Domain | None:
    for mark in metadata:
        if mark == OBJECT:
            inner = AnyObject()
        elif isinstance(mark, Matching):
            inner = Text(mark.pattern, mark.name)
        elif mark == HOLDS_PARTS:
            inner = ListOf(Kind(Mapping, "a mapping"))
        elif isinstance(mark, DocInfo) and isinstance(inner, MappingOf):
            inner = replace(inner, name=mark.documentation)
        elif isinstance(inner, Number):
            for name, open_ in (("ge", False), ("gt", True)):
                if (bound := getattr(mark, name, None)) is not None:
                    inner = replace(inner, low=bound, open_low=open_)
            for name, open_ in (("le", False), ("lt", True)):
                if (bound := getattr(mark, name, None)) is not None:
                    inner = replace(inner, high=bound, open_high=open_)
    return inner


def _union(members: Sequence[Any]) -> Domain | None:
    found = [domain(member) for member in members if not _is_tensor(member)]
    if None in found or not found:
        return None
    first, *others = cast(list[Domain], found)
    for other in others:
        if isinstance(first, Number) and isinstance(other, Number) and {first, other} <= {*PLAIN.values()}:
            first = FINITE
        elif isinstance(first, Number) and isinstance(other, Part):
            first = Parameter(first, other)
        else:
            first = Either(first, other)
    return first


def _is_tensor(annotation: Any) -> bool:
    return getattr(annotation, "__name__", "") == "Tensor" and annotation.__module__.startswith("torch")


def _walk(annotation: Any) -> Iterator[Any]:
    """Yield an annotation and, recursively, its arguments, metadata included."""
    yield annotation
    for part in get_args(annotation):
        yield from _walk(part)


def is_stackable(annotation: Any) -> bool:
    """Return True if an argument may differ between the members of a stack: it may be a tensor, or is marked."""
    return any(part == STACKABLE or _is_tensor(part) for part in _walk(annotation))


def holds_parts(annotation: Any) -> bool:
    """Return True if an argument may contain parts at any depth."""
    return any(part == HOLDS_PARTS for part in _walk(annotation))


def takes_tensors(annotation: Any) -> bool:
    """Return True if code may pass a tensor; a config cannot."""
    return any(map(_is_tensor, _walk(annotation)))


def relations(annotation: Any) -> list[AtMost | AtLeast]:
    """Return the bounds of an argument by other arguments."""
    return [part for part in _walk(annotation) if isinstance(part, AtMost | AtLeast)]


def error_message(name: str, value: object, domain: Domain) -> str:
    """Return the message for a value outside the domain of its key."""
    return f"{name}: got {_quoted_hint(value)}{format_value(value)}, must be {domain}"


def _quoted_hint(value: object) -> str:
    """Return a prefix for a string that looks like a value of another type, such as ``"0.5"``."""
    if not isinstance(value, str) or not value:
        return ""
    try:
        float(value)
    except ValueError:
        return "the string " if value.lower() in ("true", "false", "null") else ""
    return "the string "
