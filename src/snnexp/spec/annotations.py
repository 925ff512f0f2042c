"""Types and bounds for the annotations of constructors.

    def __init__(self, features: Features, beta: NeuronParameter[Fraction] = 0.9, dt: Scale = 1e-3) -> None: ...

``float`` is a number that is finite in 32 bits, ``int`` a whole number, ``bool``, ``str``, ``None`` and ``Literal`` are
themselves, ``Sequence`` and ``tuple`` are lists, and a base class of parts is an object that a config describes by
``_target_``. Bounds are those of annotated-types, on the number and not on a union that it is part of:
``Annotated[float, Interval(ge=0, lt=1)]``.
"""

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from annotated_types import Ge, Gt, Interval

T = TypeVar("T")


OPERATIONS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


@dataclass(frozen=True)
class _Bound:
    bound: str
    unit: str = ""

    def __post_init__(self) -> None:
        # a mistake is told where it is written
        evaluate_bound(self.bound, {})


class AtMost(_Bound):
    """A number is at most the value of an expression in other arguments: ``AtMost("1 / dt", unit="per s")``."""


class AtLeast(_Bound):
    """A number is at least the value of an expression in other arguments: ``AtLeast("low")``."""


def evaluate_bound(expression: str, given: Mapping[str, Any]) -> float | None:
    """The value of a bound for these arguments; None where one of them is no number, or where it has no value.

    Raises:
        ValueError: the expression is made of more than names, numbers and + - * /.
    """
    try:
        found: float | None = _evaluate(ast.parse(str(expression), mode="eval").body, given)
        return found
    except SyntaxError as error:
        raise ValueError(f"a bound is an expression such as 1 / dt, got {expression!r}") from error
    except ArithmeticError:
        return None


def _evaluate(node: ast.AST, given: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=int() | float()):
            return node.value
        case ast.Name():
            value = given.get(node.id)
            return value if isinstance(value, int | float) and not isinstance(value, bool) else None
        case ast.UnaryOp(op=ast.USub()):
            value = _evaluate(node.operand, given)
            return None if value is None else -value
        case ast.BinOp() if type(node.op) in OPERATIONS:
            sides = [_evaluate(side, given) for side in (node.left, node.right)]
            return None if None in sides else OPERATIONS[type(node.op)](*sides)
    raise ValueError(f"a bound is made of names, numbers and + - * /, got {ast.unparse(node)}")


@dataclass(frozen=True)
class Matching:
    """A text that matches a regular expression, and what that is called."""

    pattern: str
    name: str


@dataclass(frozen=True)
class _Stackable:
    """Marks an argument in which members of a stack may differ though it cannot be a tensor."""


STACKABLE = _Stackable()


@dataclass(frozen=True)
class _HoldsParts:
    """Marks an argument with parts somewhere within it."""


HOLDS_PARTS = _HoldsParts()
Nodes = Annotated[Sequence[Mapping[str, Any]], HOLDS_PARTS]
"""A list of mappings with parts in them, each described by ``_target_``; the constructor checks them."""
Stackable = Annotated[T, STACKABLE]


@dataclass(frozen=True)
class _Object:
    """Marks an argument that may be an object of any class."""


OBJECT = _Object()
Object = Annotated[object, OBJECT]
"""An object of any class; in a config, a mapping whose ``_target_`` is of an allowed package."""


@dataclass(frozen=True)
class Given:
    """A fact that a part takes from one of its arguments: ``@part(target=Given("kind"))``; None there says nothing."""

    argument: str


@dataclass(frozen=True)
class InFile:
    """The length of sequences ``[N, T, *M]`` in a file of arrays, which a part takes its fact ``num_steps`` from.

    Args:
        files: the arguments of the part that may name the file, of which the first that does counts.
        array: the argument that names the array.
        sequences: the argument that tells whether these are sequences; null where three axes or five are.
        per_sample: whether it is a folder of npz files with a sample ``[T, *M]`` each.
    """

    files: tuple[str, ...]
    array: str
    sequences: str
    per_sample: bool = False


Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Interval(ge=0, le=1)]
BelowOne = Annotated[float, Interval(ge=0, lt=1)]
Scale = Annotated[float, Interval(ge=1e-30, le=1e30)]
"""A factor whose inverse and products stay finite in 32 bits."""
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
"""The neuron axes of a layer."""
