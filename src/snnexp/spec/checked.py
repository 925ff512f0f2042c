"""Check the arguments of a function, or the fields of a dataclass, against their annotations."""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, NamedTuple, TypeVar, get_type_hints

from snnexp.errors import ConfigError
from snnexp.spec import values
from snnexp.spec.annotations import AtLeast, AtMost, evaluate_bound
from snnexp.spec.values import Domain, Parameter

Function = TypeVar("Function", bound=Callable[..., Any])
ROUNDING = 1e-6
"""The relative error by which a value kept in float32 may exceed its bound."""


class ArgumentAnnotation(NamedTuple):
    """The annotation of an argument."""

    domain: Domain | None
    tensors: bool
    relations: tuple[AtMost | AtLeast, ...]


@functools.cache
def argument_annotations(annotated: Any) -> dict[str, ArgumentAnnotation]:
    """The annotations of a function or class by argument; empty where they cannot be resolved."""
    try:
        hints = get_type_hints(annotated, include_extras=True)
        parameters = inspect.signature(annotated).parameters
    except (NameError, AttributeError, TypeError, ValueError, SyntaxError, IndexError):
        return {}
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    return {
        name: ArgumentAnnotation(
            values.with_default(values.domain(hint), defaults.get(name, ...)),
            values.takes_tensors(hint),
            tuple(values.relations(hint)),
        )
        for name, hint in hints.items()
    }


def check(annotated: Any, given: Mapping[str, Any], prefix: str = "") -> None:
    """Check arguments against annotations.

    Args:
        annotated: a function, or a class with fields.
        given: arguments by name; unknown ones are ignored.
        prefix: stands before the names in sentences.

    Raises:
        ConfigError: some lie outside their domains; one sentence for each.
    """
    known = argument_annotations(annotated)
    refused = [
        values.refusal(f"{prefix}{name}", value, domain)
        for name, value in given.items()
        if name in known and (domain := known[name].domain) is not None
        if value not in domain and not (known[name].tensors and values.is_object(value))
    ]
    refused = refused or [
        sentence
        for name, each in known.items()
        for relation in each.relations
        if (sentence := violation(name, relation, each.domain, given))
    ]
    if refused:
        raise ConfigError(*refused)


def violation(name: str, relation: AtMost | AtLeast, domain: Domain | None, given: Mapping[str, Any]) -> str | None:
    """The sentence for a number that exceeds its bound; None where it does not, or where the bound is not known.

    Args:
        name: of the argument.
        relation: its bound.
        domain: of the argument; numbers of a neuron's parameter may exceed the bound by rounding.
        given: all arguments, by name.
    """
    value, bound = given.get(name), evaluate_bound(relation.bound, given)
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


def checked(function: Function) -> Function:
    """Decorate a function or an ``__init__``, so that each call checks its arguments against their annotations.

    Raises:
        ConfigError: by the function, for arguments that lie outside their domains.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        bound = signature.bind(*arguments, **named)
        bound.apply_defaults()
        check(function, bound.arguments)
        return function(*arguments, **named)

    return call  # type: ignore[return-value]


def check_fields(instance: Any) -> None:
    """Check the fields of a dataclass against their annotations; errors as of :func:`check`."""
    check(type(instance), {field.name: getattr(instance, field.name) for field in fields(instance)})


def constructor(kind: type) -> Any:
    """The ``__init__`` that a class has or inherits."""
    return next((vars(base)["__init__"] for base in kind.__mro__ if "__init__" in vars(base)), kind)


def number(kind: type, name: str) -> values.Number:
    """The numbers that an argument of a constructor takes; finite ones where neither the class nor a base says more."""
    for base in kind.__mro__:
        if name in (known := argument_annotations(constructor(base))):
            domain = known[name].domain
            found = domain.number if isinstance(domain, values.Parameter) else domain
            return found if isinstance(found, values.Number) else values.FINITE
    return values.FINITE
