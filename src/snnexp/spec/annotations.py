"""The vocabulary in which a constructor says what each argument may be.

    def __init__(self, features: Features, beta: NeuronParameter[Fraction] = 0.9, dt: Scale = 1e-3) -> None: ...

``float`` is a number that is finite in 32 bits, ``int`` a whole number below 2^31, ``bool``, ``str``, ``None`` and
``Literal`` are themselves, ``Sequence`` and ``tuple`` lists, and a class is an object that a config describes by
``_target_``. Bounds are those of annotated-types and stand on the number, never on a union:
``Annotated[float, Interval(ge=0, lt=1)]``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

from annotated_types import Ge, Gt, Interval

T = TypeVar("T")


@dataclass(frozen=True)
class AtMost:
    """A number may not exceed the value of an expression in the other arguments: ``AtMost("1 / dt", unit="per s")``."""

    bound: str
    unit: str = ""


@dataclass(frozen=True)
class AtLeast:
    """A number may not be below the value of an expression in the other arguments: ``AtLeast("low")``."""

    bound: str
    unit: str = ""


@dataclass(frozen=True)
class Matching:
    """A text that matches a regular expression, and what that is called."""

    pattern: str
    name: str


@dataclass(frozen=True)
class _Stackable:
    """Members of a stack may differ in this argument; so they may where it can be a tensor."""


STACKABLE = _Stackable()
Stackable = Annotated[T, STACKABLE]

Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Interval(ge=0, le=1)]
BelowOne = Annotated[float, Interval(ge=0, lt=1)]
Scale = Annotated[float, Interval(ge=1e-30, le=1e30)]
"""Of what is inverted and multiplied by others in 32 bits."""
Count = Annotated[int, Ge(1)]
Index = Annotated[int, Ge(0)]
Seed = Annotated[int, Interval(ge=0, le=2**32 - 1)]
Steps = Annotated[int, Interval(ge=1, le=1_000_000)]
Workers = Annotated[int, Interval(ge=0, le=1024)]
Name = Annotated[
    str,
    Matching(r"(?!\.)[\w.-]{1,100}", "a text of letters, digits, '.', '_' and '-', at most 100, the first no '.'"),
]
Features = int | Sequence[int]
"""The neuron axes of a layer, which the network gives."""
