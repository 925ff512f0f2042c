"""Build objects from a config. Nothing else calls code that a config names; ``targets`` decides what is allowed."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from snnexp.config import targets, user_parts
from snnexp.errors import ConfigError, key_prefix
from snnexp.spec import checked, parts, rules
from snnexp.spec.places import MODULE, NEURON, PLACES, SYNAPSE


def instantiate(node: Mapping[str, Any], path: str, **arguments: Any) -> Any:
    """Build the object that a node describes: call ``_target_`` with the other keys of the node and ``arguments``.

    Raises:
        ConfigError: the target is not allowed, or rejects its arguments; the message begins with the key.
        PartError: code of a user's part raised another error.
    """
    return factory(node, path, given=arguments)(**arguments)


def make_network(node: Mapping[str, Any], path: str, **arguments: Any) -> Any:
    """Build a network like :func:`instantiate`; pass plain modules only the arguments that their constructor names."""
    with user_parts.wrap_errors(path):
        target = targets.resolve(str(node.get("_target_")), path)
    place = PLACES["network"]
    given = place.given if place.base in targets.class_names(target) else ()
    named = {*inspect.signature(target).parameters} - {*node}
    return instantiate(node, path, **{key: each for key, each in arguments.items() if key in given or key in named})


def factory(node: Mapping[str, Any], path: str, given: Iterable[str] = ()) -> Callable[..., Any]:
    """Return a function that builds the object of a node from the arguments that the node does not set.

    Args:
        node: a mapping with ``_target_``.
        path: key of the node in the config, for messages.
        given: names of the arguments that the caller will pass.
    """
    with user_parts.wrap_errors(path):
        target = targets.resolve(str(node.get("_target_")), path)
    signature = inspect.signature(target)
    known = signature.parameters
    own = {key: value for key, value in node.items() if key != "_target_"}
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        rules.require_arguments(path, target.__name__, own, [name for name in known if name not in given])
    arguments = parts.of(str(node["_target_"])).arguments
    values = {
        key: (_build_nested if key in arguments and arguments[key].holds_parts else _build_value)(
            value, f"{path}.{key}"
        )
        for key, value in own.items()
    }

    def make(*positional: Any, **more: Any) -> Any:
        try:
            signature.bind(*positional, **values, **more)
        except TypeError as error:
            raise _with_path(f"{path}: {target.__name__} is {error}") from error
        if targets.is_library(str(node["_target_"])):
            try:
                return target(*positional, **values, **more)
            except (RuntimeError, TypeError, ValueError) as error:
                reason = " ".join(str(error).split())
                raise _with_path(f"{path}: {target.__name__} rejects its arguments: {reason}") from error
        with user_parts.wrap_constructor_errors(path), key_prefix(path):
            if not targets.is_snnexp(str(node["_target_"])):
                # the constructors of this package check their arguments themselves
                checked.check(checked.constructor(target) if inspect.isclass(target) else target, values)
            return target(*positional, **values, **more)

    return make


def _build_nested(value: Any, path: str) -> Any:
    """Build the parts in a value; a neuron or module whose caller supplies arguments becomes a ``PartFactory``."""
    if isinstance(value, list):
        return [_build_nested(each, f"{path}.{index}") for index, each in enumerate(value)]
    if not isinstance(value, Mapping):
        return value
    if "_target_" not in value:
        return {key: _build_nested(each, f"{path}.{key}") for key, each in value.items()}
    with user_parts.wrap_errors(path):
        target = targets.resolve(str(value["_target_"]), path)
    names = targets.class_names(target)
    if MODULE not in names:
        return instantiate(value, path)
    given = NEURON.given if NEURON.base in names else SYNAPSE
    missing = {*inspect.signature(target).parameters}.intersection(given) - {*value}
    return parts.PartFactory(factory(value, path, missing), missing)


def _build_value(value: Any, path: str) -> Any:
    """Replace the nodes in a value of a config by the objects that they describe."""
    if isinstance(value, list):
        return [_build_value(each, f"{path}.{index}") for index, each in enumerate(value)]
    if not isinstance(value, Mapping):
        return value
    if "_target_" in value:
        return instantiate(value, path)
    return {key: _build_value(each, f"{path}.{key}") for key, each in value.items()}


def _with_path(message: str) -> ConfigError:
    """Return an error whose message has its key already, so that an outer constructor does not prepend its own."""
    error = ConfigError(message)
    error.has_path = True
    return error
