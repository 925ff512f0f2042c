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
"""Relative tolerance of bounds on values that are rounded to float32."""


class ArgumentAnnotation(NamedTuple):
    """The annotation of an argument.

    Args:
        domain: the values that it accepts; None for any.
        tensors: whether code may pass a tensor.
        relations: bounds by other arguments.
    """

    domain: Domain | None
    tensors: bool
    relations: tuple[AtMost | AtLeast, ...]


@functools.cache
def argument_annotations(annotated: Any) -> dict[str, ArgumentAnnotation]:
    """Return the annotations of a function or class by argument name, or {} if they cannot be resolved."""
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
        prefix: prepended to the names in messages.

    Raises:
        ConfigError: arguments are outside their domains; one message for each.
    """
    known = argument_annotations(annotated)
    refused = [
        values.error_message(f"{prefix}{name}", value, domain)
        for name, value in given.items()
        if name in known and (domain := known[name].domain) is not None
        if value not in domain and not (known[name].tensors and values.is_object(value))
    ]
    refused = refused or [
        message
        for name, each in known.items()
        for relation in each.relations
        if (message := violation(name, relation, each.domain, given))
    ]
    if refused:
        raise ConfigError(*refused)


def violation(name: str, relation: AtMost | AtLeast, domain: Domain | None, given: Mapping[str, Any]) -> str | None:
    """Return the message for a number that violates its bound, or None if it does not or the bound is unknown.

    Args:
        name: name of the argument.
        relation: its bound.
        domain: its domain; a neuron parameter may exceed the bound by rounding.
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
        return f"{name}: an initial value is {value:.10g}, {words} {bound:.10g}"
    unit = f" {relation.unit}" if relation.unit else ""
    return f"{name}: got {value:.10g}{unit}, {words} {relation.bound} = {bound:.10g}{unit}"


def checked(function: Function) -> Function:
    """Decorate a function or an ``__init__`` to check its arguments against their annotations at each call.

    Raises:
        ConfigError: by the decorated function, if arguments are outside their domains.
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
    """Check the fields of a dataclass against their annotations, as :func:`check` does."""
    check(type(instance), {field.name: getattr(instance, field.name) for field in fields(instance)})


def constructor(kind: type) -> Any:
    """Return the ``__init__`` that a class defines or inherits."""
    return next((vars(base)["__init__"] for base in kind.__mro__ if "__init__" in vars(base)), kind)


def number(kind: type, name: str) -> values.Number:
    """Return the numbers that a constructor argument accepts, from the first class in the MRO that annotates it.

    Without an annotation these are all finite numbers.
    """
    for base in kind.__mro__:
        if name in (known := argument_annotations(constructor(base))):
            domain = known[name].domain
            found = domain.number if isinstance(domain, values.Parameter) else domain
            return found if isinstance(found, values.Number) else values.FINITE
    return values.FINITE
