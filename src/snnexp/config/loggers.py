"""Loggers of Lightning that a config names below ``logger.also``, beside the run's own."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from snnexp.config import targets
from snnexp.errors import ConfigError, Refusals
from snnexp.text import shown

PLACE = "logger.also"
PACKAGES = {
    "CometLogger": "comet_ml",
    "MLFlowLogger": "mlflow",
    "NeptuneLogger": "neptune",
    "WandbLogger": "wandb",
}
"""What they need, by class."""
EXTRAS = ("mlflow", "wandb")
"""Those that an extra of this package installs."""


def check(nodes: Any, refusals: Refusals) -> None:
    """Refuse nodes that are no loggers, and those whose package is not installed."""
    if not isinstance(nodes, Mapping):
        return
    for name, node in nodes.items():
        with refusals.collected():
            path = f"{PLACE}.{shown(name)}"
            if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
                raise ConfigError(f"{path}: got {shown(node)}, must be a mapping with _target_")
            target = node["_target_"]
            if not (targets.is_logger(target) or targets.may_be_named(target)):
                raise ConfigError(f"{path}._target_: got {shown(target)}, must be a class of lightning.pytorch.loggers")
            targets.require_targets(node, path, "")
            kind = target.rpartition(".")[2]
            package = PACKAGES.get(kind) if targets.is_logger(target) else None
            if package is not None and find_spec(package) is None:
                install = f"'snnexp[{package}]'" if package in EXTRAS else package
                raise ConfigError(f"{path}: {kind} needs the package {package}; pip install {install}")
