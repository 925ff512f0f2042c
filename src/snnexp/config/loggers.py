"""Lightning loggers in ``logger.also``, in addition to the run's own logger."""

import re
from collections.abc import Collection, Mapping
from importlib.util import find_spec
from typing import Any

from snnexp.config import targets
from snnexp.errors import ConfigError, ConfigErrors
from snnexp.text import format_value

PLACE = "logger.also"
PACKAGES = {
    "CometLogger": "comet_ml",
    "MLFlowLogger": "mlflow",
    "NeptuneLogger": "neptune",
    "WandbLogger": "wandb",
}
"""Required package, by logger class."""
EXTRAS = ("mlflow", "wandb")
"""Packages that an extra of this package installs."""
SECRET = re.compile(r"(^|_)(passw(or)?d|tokens?|secrets?|credentials?|(api|access|private)_?key)$", re.IGNORECASE)
WITH_PASSWORD = re.compile(r"://[^/@\s]*:[^/@\s]*@")


def check(nodes: Any, errors: ConfigErrors) -> None:
    """Reject nodes that are not loggers, and secrets, which would be saved in config.yaml."""
    if not isinstance(nodes, Mapping):
        errors.add(f"{PLACE}: got {format_value(nodes)}, must be a mapping from names to loggers")
        return
    for name, node in nodes.items():
        with errors.collect():
            path = f"{PLACE}.{format_value(name)}"
            target = node.get("_target_") if isinstance(node, Mapping) else None
            if not isinstance(target, str):
                raise ConfigError(f"{path}: got {format_value(node)}, must be a mapping with _target_")
            if not (targets.is_logger(target) or targets.is_allowed(target)):
                raise ConfigError(
                    f"{path}._target_: got {format_value(target)}, must be a class of lightning.pytorch.loggers"
                )
            targets.require_targets(node, path, "")
            if without_secrets(node) != node:
                raise ConfigError(
                    f"{path}: contains a password or key, which config.yaml would show; set its environment variable"
                )


def require_packages(also: Any, overrides: Collection[str]) -> None:
    """Reject loggers whose package is not installed.

    Args:
        also: the node ``logger.also``.
        overrides: command-line overrides; the message names the choice among them that added the logger.

    Raises:
        ConfigError: packages are missing; one message for each.
    """
    errors = ConfigErrors()
    for name, node in also.items() if isinstance(also, Mapping) else ():
        target = str(node.get("_target_")) if isinstance(node, Mapping) else ""
        package = PACKAGES.get(target.rpartition(".")[2]) if targets.is_logger(target) else None
        if package is not None and find_spec(package) is None:
            key = f"logger={name}" if f"logger={name}" in overrides else f"{PLACE}.{name}"
            install = f"'snnexp[{package}]'" if package in EXTRAS else package
            errors.add(f"{key}: needs the package {package}; pip install {install}")
    errors.raise_if_any()


def without_secrets(node: Any) -> Any:
    """Return a copy without keys that are named like secrets, and without URLs that contain a password."""
    if isinstance(node, Mapping):
        return {key: without_secrets(value) for key, value in node.items() if not _is_secret(str(key), value)}
    return [without_secrets(each) for each in node if not _is_secret("", each)] if isinstance(node, list) else node


def _is_secret(key: str, value: Any) -> bool:
    address = isinstance(value, str) and WITH_PASSWORD.search(value) is not None
    return value is not None and (address or SECRET.search(key) is not None)
