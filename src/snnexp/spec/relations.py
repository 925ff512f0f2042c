"""What one argument owes others: ``AtMost("1 / dt")``."""

import ast
from collections.abc import Mapping
from typing import Any

from snnexp.spec.annotations import AtLeast, AtMost
from snnexp.spec.source import OPERATIONS
from snnexp.spec.values import Domain, Parameter

ROUNDING = 1e-6
"""A bound of what is kept in float32 counts as met by what exceeds it in the last digits."""


def broken(name: str, relation: AtMost | AtLeast, domain: Domain | None, given: Mapping[str, Any]) -> str | None:
    """The sentence for a number that breaks a relation; None where it does not, or where it cannot be told.

    Args:
        name: of the argument.
        relation: what it owes.
        domain: of the argument; what is drawn for a parameter is held to the relation too.
        given: all arguments, by name.
    """
    value, bound = given.get(name), _evaluated(ast.parse(relation.bound, mode="eval").body, given)
    if not _is_number(value) or bound is None:
        return None
    at_most = isinstance(relation, AtMost)
    slack = abs(bound) * ROUNDING if isinstance(domain, Parameter) else 0
    if value <= bound + slack if at_most else value >= bound - slack:
        return None
    words = f"must be at {'most' if at_most else 'least'}"
    if isinstance(domain, Parameter):
        return f"{name}: a start value is {value:g}, {words} {bound:g}"
    unit = f" {relation.unit}" if relation.unit else ""
    return f"{name}: got {value:g}{unit}, {words} {relation.bound} = {bound:g}{unit}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _evaluated(node: ast.AST, given: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant():
            return node.value
        case ast.Name():
            value = given.get(node.id)
            return value if _is_number(value) else None
        case ast.BinOp():
            sides = [_evaluated(side, given) for side in (node.left, node.right)]
            if None in sides or (isinstance(node.op, ast.Div) and not sides[1]):
                return None
            return OPERATIONS[type(node.op)](*sides)
    raise ValueError(f"a bound is made of names, numbers and + - * /, got {ast.unparse(node)}")
