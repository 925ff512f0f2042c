"""Objects from a config: the only door from a config to code, and ``targets`` says for what it opens."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from snnexp.config import targets, user_parts
from snnexp.errors import ConfigError, located
from snnexp.spec import checked, rules


def instantiate(node: Mapping[str, Any], path: str, **arguments: Any) -> Any:
    """Build the object that a node describes: ``_target_`` is called with the node's other keys and ``arguments``.

    Raises:
        ConfigError: the target is not allowed, or refuses its arguments; the sentence begins with the key.
        PartError: code of a part of the user's own raised another error.
    """
    return factory(node, path, given=arguments)(**arguments)


def factory(node: Mapping[str, Any], path: str, given: Iterable[str] = ()) -> Callable[..., Any]:
    """A function that builds the object of a node each time it is called, with what is still missing.

    Args:
        node: a mapping with ``_target_``.
        path: where the node stands in the config, for messages.
        given: names of the arguments that the caller will pass.
    """
    with user_parts.running(path):
        target = targets.resolve(str(node.get("_target_")), path)
    signature = inspect.signature(target)
    known = signature.parameters
    own = {key: value for key, value in node.items() if key != "_target_"}
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        rules.require_arguments(path, target.__name__, own, [name for name in known if name not in given])
    values = {key: _built(value, f"{path}.{key}") for key, value in own.items()}

    def make(*positional: Any, **more: Any) -> Any:
        try:
            signature.bind(*positional, **values, **more)
        except TypeError as error:
            raise ConfigError(f"{path}: {target.__name__} is {error}") from error
        with user_parts.constructing(path), located(path):
            if not targets.is_own(str(node["_target_"])):
                # those of this package check by themselves, however they are called
                checked.check(checked.constructor(target) if inspect.isclass(target) else target, values)
            return target(*positional, **values, **more)

    return make


def _built(value: Any, path: str) -> Any:
    """A value of a config, with the objects that it describes in place of their nodes."""
    if isinstance(value, list):
        return [_built(each, f"{path}.{index}") for index, each in enumerate(value)]
    return instantiate(value, path) if isinstance(value, Mapping) and "_target_" in value else value
