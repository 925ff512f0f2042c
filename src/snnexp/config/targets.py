"""Which code a config may name: parts of this package at their places, and packages that the user allowed."""

import importlib
import inspect
import os
import re
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

from snnexp.errors import ConfigError
from snnexp.spec import parts
from snnexp.spec.places import MODULE, PLACES
from snnexp.spec.reader import Spec
from snnexp.spec.source import Source
from snnexp.spec.values import ANY
from snnexp.text import format_value, suggest

RULES = ("requires", "fits", "shapes")
"""Static methods of parts that are called while a config is checked."""


def allowed_packages() -> tuple[str, ...]:
    """Return the packages in SNNEXP_ALLOW_TARGETS, whose code a config may name."""
    named = (package.strip() for package in os.environ.get("SNNEXP_ALLOW_TARGETS", "").split(","))
    # ignore invalid names; parts of this package are allowed by PLACES alone
    real = (package for package in named if all(word.isidentifier() for word in package.split(".")))
    return tuple(package for package in real if package.split(".")[0] != "snnexp")


def require_targets(node: Any, path: str, place: str | None) -> None:
    """Reject each ``_target_`` in a node that is not allowed at its key, and keys that are special to Hydra.

    Args:
        node: a resolved node.
        path: its key; that of a place, or a key below it if the place holds several parts by name.
        place: the place in :data:`~snnexp.spec.places.PLACES` that it is built for; "" for any part, None for none.
    """
    if isinstance(node, list):
        for index, value in enumerate(node):
            require_targets(value, f"{path}.{index}", place)
    is_named = place in PLACES and PLACES[place].many and path.rpartition(".")[0] == place
    if not isinstance(node, Mapping):
        if is_named:
            raise ConfigError(f"{path}: got {format_value(node)}, must be a mapping with _target_")
        return
    for key in node:
        if not isinstance(key, str):
            raise ConfigError(f"{path}.{format_value(key)}: a key must be a string")
        if key.startswith("_") and key != "_target_":
            raise ConfigError(f"{path}.{format_value(key)}: unknown key, only _target_ may begin with an underscore")
    spec = None
    if "_target_" in node or place == path or is_named:
        name = _text(node.get("_target_"), path)
        require_target(name, path, place)
        spec = parts.of(name)
    for key, value in node.items():
        require_targets(value, f"{path}.{format_value(key)}", _place(spec, key, place))


def _place(spec: Spec | None, key: str, place: str | None) -> str | None:
    """Return the place that the value of a key is built for, as in :func:`require_targets`."""
    if spec is None:
        return "" if place == "" else None
    argument = spec.arguments.get(key)
    if argument is not None and (argument.holds_parts or ANY in argument.kinds):
        return ""
    found = [parts.place_of(kind) for kind in argument.kinds] if argument is not None else []
    if len(found) == 1:
        return found[0]
    # a user's part may accept anything that is allowed
    return "" if found or not is_snnexp(spec.target) else None


def is_snnexp(target: str) -> bool:
    """Return True if a name is in this package."""
    return _within(target, ("snnexp",))


def is_allowed(target: str) -> bool:
    """Return True if a name is in a package that the user allowed."""
    return all(word.isidentifier() for word in target.split(".")) and _within(target, allowed_packages())


def is_module(target: str) -> bool:
    """Return True if a name has the form of a PyTorch layer, such as ``torch.nn.Conv2d``."""
    return re.fullmatch(r"torch\.nn\.[A-Z]\w*", target) is not None


def is_transform(target: str) -> bool:
    """Return True if a name has the form of a transform, such as ``torchvision.transforms.v2.RandomCrop``."""
    return re.fullmatch(r"torchvision\.transforms\.(v2\.)?(?!Lambda$)[A-Z]\w*", target) is not None


def is_optimizer(target: str) -> bool:
    """Return True if a name has the form of a PyTorch optimizer, such as ``torch.optim.NAdam``."""
    return re.fullmatch(r"torch\.optim\.(?!Optimizer$|LBFGS$|SparseAdam$)[A-Z]\w*", target) is not None


def is_logger(target: str) -> bool:
    """Return True if a name has the form of a logger, such as ``lightning.pytorch.loggers.WandbLogger``."""
    return re.fullmatch(r"lightning\.pytorch\.loggers\.[A-Z]\w*", target) is not None


def is_library(target: str) -> bool:
    """Return True if a name is that of a class of PyTorch, torchvision or Lightning."""
    return is_module(target) or is_transform(target) or is_optimizer(target) or is_logger(target)


def may_call_rules(source: Source) -> bool:
    """Return True if static methods of a file may be called while a config is checked."""
    return _within(source.name, ("snnexp", *allowed_packages()))


def _text(name: object, path: str) -> str:
    if not isinstance(name, str):
        raise ConfigError(
            f"{path}._target_: got {format_value(name)}, must be a dotted name such as snnexp.neurons.Leaky"
        )
    return name


def require_target(name: str, path: str, place: str | None) -> None:
    """Reject a name that is neither a shipped part of a place nor in a package that the user allowed."""
    anywhere = place == "" and (is_module(name) or is_transform(name) or is_logger(name))
    if anywhere or (place == "optimizer" and is_optimizer(name)) or is_allowed(name):
        return
    places = [*PLACES] if place == "" else [place] if place in PLACES else []
    if any(parts.is_shipped(name, each) for each in places):
        return
    formatted = format_value(name)
    if not _within(name, ("snnexp",)):
        packages = ", ".join(("snnexp", *allowed_packages()))
        raise ConfigError(
            f"{path}._target_: {formatted} is not from {packages}; SNNEXP_ALLOW_TARGETS can allow its package"
        )
    if not places:
        raise ConfigError(f"{path}._target_: no part is allowed here, got {formatted}")
    names = [target.rpartition(".")[2] for each in places for target in parts.shipped(each)]
    hint = suggest(formatted.rpartition(".")[2], names)
    raise ConfigError(f"{path}._target_: {formatted} is not allowed here, {hint}")


def _within(name: str, packages: Iterable[str]) -> bool:
    return any(f"{name}.".startswith(f"{package}.") for package in packages)


def resolve(name: str, path: str) -> Any:
    """Import the class or function that the ``_target_`` at ``path`` names.

    Raises:
        ConfigError: it is not allowed, or does not exist.
    """
    require_target(name, path, path if path in PLACES else "")
    if is_module(name) and not is_allowed(name):
        return _layer(name, path)
    if is_transform(name) and not is_allowed(name):
        return _transform(name, path)
    if is_optimizer(name) and not is_allowed(name):
        return locate(name, path, ("torch.optim",))
    if is_logger(name) and not is_allowed(name):
        return locate(name, path, ("lightning.pytorch.loggers",))
    return locate(name, path, ("snnexp",) if is_snnexp(name) else allowed_packages())


def _layer(name: str, path: str) -> Any:
    """Import a layer of PyTorch."""
    found = locate(name, path, ("torch.nn",))
    if MODULE not in class_names(found) or not found.__module__.startswith("torch.nn.modules."):
        raise ConfigError(f"{path}._target_: {format_value(name)} is not a layer")
    return found


def _transform(name: str, path: str) -> Any:
    """Import a transform of torchvision."""
    found = locate(name, path, ("torchvision.transforms",))
    # excludes enumerations such as InterpolationMode
    if not any("__call__" in vars(base) for base in getattr(found, "__mro__", ())):
        raise ConfigError(f"{path}._target_: {format_value(name)} is not a transform")
    return found


def class_names(kind: Any) -> list[str]:
    """Return the names of a class and its bases as ``module.name``; [] for a function."""
    return [f"{base.__module__}.{base.__qualname__}" for base in getattr(kind, "__mro__", ())]


def locate(name: str, path: str, packages: Iterable[str]) -> Any:
    """Import the class or function of a name, if it is defined in one of ``packages``.

    Raises:
        ConfigError: it does not exist, or is defined elsewhere.
        Exception: any error that a module raises while it is imported.
    """
    packages = tuple(packages)
    formatted = format_value(name)
    reason = f"{path}._target_: {formatted} is not from {', '.join(packages) or 'snnexp'}"
    if not _within(name, packages):
        raise ConfigError(f"{reason}; SNNEXP_ALLOW_TARGETS can allow its package")
    target, found, imported = None, "", True
    for word in name.split("."):
        inside, found = found, f"{found}.{word}".lstrip(".")
        module = _module(found) if imported else None
        imported = module is not None
        if not imported and not hasattr(target, word):
            where = f"{inside} has no {word}" if inside else f"no module {word} is installed"
            raise ConfigError(f"{path}._target_: {formatted} does not exist: {where}")
        target = module if imported else getattr(target, word)
    # other callables, such as functools.partial, hide what they call
    if not (inspect.isclass(target) or inspect.isroutine(target)):
        raise ConfigError(f"{path}._target_: {formatted} is neither a class nor a function")
    # an allowed package may have imported the object from another one
    origin = str(getattr(target, "__module__", None))
    if not _within(origin, packages):
        raise ConfigError(f"{reason}, but from {origin}")
    return target


def _module(name: str) -> ModuleType | None:
    """Import the module of a name, or return None if there is none."""
    if not all(word.isidentifier() for word in name.split(".")):
        return None
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # the module exists, but imports a missing one
        if error.name != name:
            raise
        return None
