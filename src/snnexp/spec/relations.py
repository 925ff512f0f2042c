"""Bounds of one argument by others: ``AtMost("1 / dt")``."""

from collections.abc import Mapping
from typing import Any

from snnexp.spec.annotations import AtLeast, AtMost, bound_of
from snnexp.spec.values import Domain, Parameter

ROUNDING = 1e-6
"""The relative error by which a value kept in float32 may exceed its bound."""


def violation(name: str, relation: AtMost | AtLeast, domain: Domain | None, given: Mapping[str, Any]) -> str | None:
    """The sentence for a number that exceeds its bound; None where it does not, or where the bound is not known.

    Args:
        name: of the argument.
        relation: its bound.
        domain: of the argument; numbers of a neuron's parameter may exceed the bound by rounding.
        given: all arguments, by name.
    """
    value, bound = given.get(name), bound_of(relation.bound, given)
    if isinstance(value, bool) or not isinstance(value, int | float) or bound is None:
        return None
    at_most = isinstance(relation, AtMost)
    slack = abs(bound) * ROUNDING if isinstance(domain, Parameter) else 0
    if value <= bound + slack if at_most else value >= bound - slack:
        return None
    words = f"must be at {'most' if at_most else 'least'}"
    if isinstance(domain, Parameter):
        return f"{name}: a start value is {value:.10g}, {words} {bound:.10g}"
    unit = f" {relation.unit}" if relation.unit else ""
    return f"{name}: got {value:.10g}{unit}, {words} {relation.bound} = {bound:.10g}{unit}"
