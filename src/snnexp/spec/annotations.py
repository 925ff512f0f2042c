"""Types and bounds for the annotations of constructors.

    def __init__(self, features: Features, beta: NeuronParameter[Fraction] = 0.9, dt: Scale = 1e-3) -> None: ...

``float`` is a number that is finite in float32, ``int`` an integer; ``bool``, ``str``, ``None`` and ``Literal`` have
their usual meaning; ``Sequence`` and ``tuple`` are lists. The base class of a kind of part, such as ``Surrogate``, is
an object that a config describes by ``_target_``. Bounds are those of annotated-types. Annotate the number, not a union
that contains it: ``Annotated[float, Interval(ge=0, lt=1)]``.
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
        # fail at the definition, not at the first check
        evaluate_bound(self.bound, {})


class AtMost(_Bound):
    """Upper bound given by an expression in other arguments: ``AtMost("1 / dt", unit="per s")``."""


class AtLeast(_Bound):
    """Lower bound given by an expression in other arguments: ``AtLeast("low")``."""


def evaluate_bound(expression: str, given: Mapping[str, Any]) -> float | None:
    """Evaluate a bound for given arguments; return None if one of them is not a number or the arithmetic fails.

    Raises:
        ValueError: the expression contains anything but names, numbers and + - * /.
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
    raise ValueError(f"a bound may contain only names, numbers and + - * /, got {ast.unparse(node)}")


@dataclass(frozen=True)
class Matching:
    """A string that matches a regular expression, with a description for messages."""

    pattern: str
    name: str


@dataclass(frozen=True)
class _Stackable:
    """Marks an argument that cannot be a tensor but may differ between the members of a stack."""


STACKABLE = _Stackable()


@dataclass(frozen=True)
class _HoldsParts:
    """Marks an argument that contains parts at any depth."""


HOLDS_PARTS = _HoldsParts()
Nodes = Annotated[Sequence[Mapping[str, Any]], HOLDS_PARTS]
"""A list of mappings that contain parts, each described by ``_target_``; the constructor checks them."""
Stackable = Annotated[T, STACKABLE]


@dataclass(frozen=True)
class _Object:
    """Marks an argument that accepts an object of any class."""


OBJECT = _Object()
Object = Annotated[object, OBJECT]
"""An object of any class; in a config, a mapping whose ``_target_`` is in an allowed package."""


@dataclass(frozen=True)
class Given:
    """A fact that equals an argument of the part: ``@part(target=Given("kind"))``; unknown if the argument is None."""

    argument: str


@dataclass(frozen=True)
class InFile:
    """The fact ``num_steps`` is the length of the sequences ``[N, T, *M]`` in a file of arrays.

    Args:
        files: the arguments that may name the file; the first that is set is used.
        array: the argument that names the array.
        sequences: the argument that says whether the array holds sequences; if null, arrays with 3 or 5 axes do.
        per_sample: whether the path is a folder of npz files with one sample ``[T, *M]`` each.
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
"""A factor whose reciprocal and products are finite in float32."""
Count = Annotated[int, Ge(1)]
Index = Annotated[int, Ge(0)]
Seed = Annotated[int, Interval(ge=0, le=2**32 - 1)]
Steps = Annotated[int, Interval(ge=1, le=1_000_000)]
Workers = Annotated[int, Interval(ge=0, le=1024)]
Name = Annotated[
    str,
    Matching(r"(?!\.)[\w.-]{1,100}", "a name of letters, digits, '.', '_' and '-', at most 100, not starting with '.'"),
]
Features = int | Sequence[int]
"""The neuron axes of a layer."""
