"""Objects from a config: the only door from a config to code, and ``targets`` says for what it opens."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from snnexp.config import targets, user_parts
from snnexp.errors import ConfigError, key_prefix
from snnexp.spec import checked, parts, rules
from snnexp.spec.places import MODULE, NEURON, PLACES, SYNAPSE


def instantiate(node: Mapping[str, Any], path: str, **arguments: Any) -> Any:
    """Build the object that a node describes: ``_target_`` is called with the node's other keys and ``arguments``.

    Raises:
        ConfigError: the target is not allowed, or refuses its arguments; the sentence begins with the key.
        PartError: code of a part of the user's own raised another error.
    """
    return factory(node, path, given=arguments)(**arguments)


def make_network(node: Mapping[str, Any], path: str, **arguments: Any) -> Any:
    """As :func:`instantiate`, of a network; the constructor of any other module gets those arguments that it names."""
    with user_parts.wrap_errors(path):
        target = targets.resolve(str(node.get("_target_")), path)
    place = PLACES["network"]
    given = place.given if place.base in targets.class_names(target) else ()
    named = {*inspect.signature(target).parameters} - {*node}
    return instantiate(node, path, **{key: each for key, each in arguments.items() if key in given or key in named})


def factory(node: Mapping[str, Any], path: str, given: Iterable[str] = ()) -> Callable[..., Any]:
    """A function that builds the object of a node each time it is called, with what is still missing.

    Args:
        node: a mapping with ``_target_``.
        path: where the node stands in the config, for messages.
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
            raise _refused(f"{path}: {target.__name__} is {error}") from error
        if targets.is_library(str(node["_target_"])):
            try:
                return target(*positional, **values, **more)
            except (RuntimeError, TypeError, ValueError) as error:
                reason = " ".join(str(error).split())
                raise _refused(f"{path}: {target.__name__} refuses its arguments: {reason}") from error
        with user_parts.wrap_constructor_errors(path), key_prefix(path):
            if not targets.is_snnexp(str(node["_target_"])):
                # those of this package check by themselves, however they are called
                checked.check(checked.constructor(target) if inspect.isclass(target) else target, values)
            return target(*positional, **values, **more)

    return make


def _build_nested(value: Any, path: str) -> Any:
    """A value with the parts that it holds: made, or a ``PartFactory`` where their place gives them more."""
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
    """A value of a config, with the objects that it describes in place of their nodes."""
    if isinstance(value, list):
        return [_build_value(each, f"{path}.{index}") for index, each in enumerate(value)]
    if not isinstance(value, Mapping):
        return value
    if "_target_" in value:
        return instantiate(value, path)
    return {key: _build_value(each, f"{path}.{key}") for key, each in value.items()}


def _refused(sentence: str) -> ConfigError:
    """Raised perhaps within the constructor of another part, whose key is not to be put in front."""
    error = ConfigError(sentence)
    error.has_path = True
    return error
