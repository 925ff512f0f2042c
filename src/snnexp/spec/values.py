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
"""What a whole number may be where its domain has no end: sizes and counts that are multiplied still fit 64 bits."""


class Domain(Protocol):
    """A set of values that can say what it contains."""

    def __contains__(self, value: object) -> bool: ...


@dataclass(frozen=True)
class Number:
    """A number that is finite in 32 bits, in [low, high] less the ends that are open."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    whole: bool = False

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        # NaN compares false, and an int may be too large for any float
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
    """An object of a class, or the config node that describes one."""

    kind: type

    def __contains__(self, value: object) -> bool:
        return is_object(value)

    def __str__(self) -> str:
        return f"a mapping such as {{_target_: {self.kind.__module__}.{self._example()}}}"

    def _example(self) -> str:
        # what stands for a class that was only read names one
        found: str | None = getattr(self.kind, "_example", None)
        others: list[type] = self.kind.__subclasses__()
        return found or [*(other.__name__ for other in others), self.kind.__name__][0]


@dataclass(frozen=True)
class AnyObject:
    """An object of any class, or the config node that describes one."""

    def __contains__(self, value: object) -> bool:
        return is_object(value)

    def __str__(self) -> str:
        return "a mapping such as {_target_: mypkg.MyClass}"


@dataclass(frozen=True)
class Parameter:
    """A neuron parameter: a number, or an initializer or tensor, whose drawn values the neuron checks."""

    number: Number
    part: Part

    def __contains__(self, value: object) -> bool:
        return value in self.number or value in self.part

    def __str__(self) -> str:
        name = self.part.kind.__name__.lower()
        return f"{self.number}, or {'an' if name[0] in 'aeiou' else 'a'} {name}"


class OneOf:
    """One of a few words."""

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
    """A text that can be part of a path and of a line: no control characters, no halves of characters."""

    pattern: str = ".*"
    name: str = "a text without control characters"

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, str) or any(unicodedata.category(letter) in ("Cc", "Cs") for letter in value):
            return False
        return len(value) <= 4096 and re.fullmatch(self.pattern, value) is not None

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class MappingOf:
    """A mapping from texts to values that each lie in ``each``."""

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
    """A list whose every element lies in ``each``."""

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
    """Whether a value is an object, or the config node that describes one."""
    if isinstance(value, Mapping):
        return "_target_" in value
    return not isinstance(value, (bool, int, float, str, list, tuple, type(None)))


ANY = "builtins.object"
"""The class of :class:`AnyObject`, as :func:`kinds` names it."""
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
    """The values that an annotation allows; None where it says nothing that could be checked.

    Args:
        annotation: a type, or what :mod:`typing` and :mod:`snnexp.spec.annotations` make of some.
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
        return None if each is None else MappingOf(each, f"a mapping from texts to values, each {each}")
    return None


def _plain(annotation: Any) -> Domain | None:
    if isinstance(annotation, Hashable) and annotation in PLAIN:
        return PLAIN[annotation]
    # of other classes, such as a path or an enumeration, a constructor may make what it is given
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
    """A domain and the default, which a constructor takes though its annotation says otherwise."""
    plain = default is None or isinstance(default, bool | int | float | str)
    if inner is None or not plain or default in inner:
        return inner
    return Either(inner, NULL if default is None else Only(default))


def kinds(domain: Domain | None) -> Iterator[str]:
    """The classes whose objects are in a domain, ``module.name``."""
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
    """An annotation and all that it is made of, with what is written beside them."""
    yield annotation
    for part in get_args(annotation):
        yield from _walk(part)


def is_stackable(annotation: Any) -> bool:
    """Whether members of a stack may differ in an argument: it may be a tensor, or is marked."""
    return any(part == STACKABLE or _is_tensor(part) for part in _walk(annotation))


def holds_parts(annotation: Any) -> bool:
    """Whether there may be parts somewhere within an argument."""
    return any(part == HOLDS_PARTS for part in _walk(annotation))


def takes_tensors(annotation: Any) -> bool:
    """Whether code may pass a tensor; no config can."""
    return any(map(_is_tensor, _walk(annotation)))


def relations(annotation: Any) -> list[AtMost | AtLeast]:
    """What an argument owes the others."""
    return [part for part in _walk(annotation) if isinstance(part, AtMost | AtLeast)]


def refusal(name: str, value: object, domain: Domain) -> str:
    """The sentence for a value that lies outside the domain of its key."""
    return f"{name}: got {_quoted_hint(value)}{format_value(value)}, must be {domain}"


def _quoted_hint(value: object) -> str:
    """What has to be said of a text that reads like another value."""
    if not isinstance(value, str) or not value:
        return ""
    try:
        float(value)
    except ValueError:
        return "the text " if value.lower() in ("true", "false", "null") else ""
    return "the text "
