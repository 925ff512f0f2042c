"""Decide from configs, without importing torch, which points of a sweep can be trained as one model.

Members of a stack differ only in values that can be tensors: seeds, learning rates, initial values, parameters of the
surrogate and the loss. Everything that determines shapes or the computation must be equal.
"""

import json
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from snnexp import config
from snnexp.spec import parts
from snnexp.spec.classes import MISSING
from snnexp.spec.places import PLACES
from snnexp.spec.reader import Argument, Spec
from snnexp.spec.values import ANY, Parameter


def obstacle(cfg: DictConfig | Mapping[str, Any]) -> str | None:
    """Return why a point cannot be trained in a stack, or None if it can."""
    plain = _plain(cfg)
    for spec in _specs(plain):
        if parts.is_stacked(spec) and spec.own_fact("stackable") is not True:
            return f"{spec.target} is not stackable"
    network = parts.of(plain["network"]["_target_"])
    for name in () if network.own_fact("unstackable") is MISSING else network.own_fact("unstackable"):
        if plain["network"].get(name, network.arguments[name].value) != network.arguments[name].value:
            return f"network.{name} cannot be stacked"
    trainer = plain["trainer"]
    if trainer["strategy"] == "ddp" or trainer["devices"] != 1:
        return "it trains on several devices"
    if trainer.get("accumulate", 1) > 1:
        return "it accumulates gradients"
    if plain["kernel"] == "triton":
        return "kernel=triton does not support stacks"
    if plain["data"].get("num_workers"):
        return "it uses data workers"
    return None


def key(cfg: DictConfig | Mapping[str, Any]) -> Hashable:
    """Return a key that is equal for points that can share a stack: the config without values that may differ."""
    plain = {name: value for name, value in _plain(cfg).items() if name not in ("seed", "published")}
    # initial weights may differ; which of them are frozen may not
    plain["init_from"] = list(config.get_init_from(plain).freeze)
    return json.dumps(_shared(plain), sort_keys=True)


def _plain(cfg: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    return OmegaConf.to_container(cfg, resolve=True) if isinstance(cfg, DictConfig) else dict(cfg)  # type: ignore[return-value]


def _shared(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return a node without the values that may differ between members."""
    target = node.get("_target_")
    free = _free_arguments(parts.of(target)) if isinstance(target, str) else ()
    return {name: _kind(value) if name in free else _shared_value(value) for name, value in node.items()}


def _shared_value(value: Any) -> Any:
    if isinstance(value, list):
        return [_shared_value(each) for each in value]
    return _shared(value) if isinstance(value, Mapping) else value


def _free_arguments(spec: Spec) -> set[str]:
    """Return the arguments that may differ between members; for neurons and networks only neuron parameters."""
    layers = {PLACES["neuron"].base, PLACES["network"].base}
    arguments = {name: argument for name, argument in spec.arguments.items() if argument.stackable}
    if layers.intersection(spec.bases):
        arguments = {name: argument for name, argument in arguments.items() if isinstance(argument.domain, Parameter)}
    return {*arguments}


def _kind(value: Any) -> str | None:
    """Return the kind of a value that may differ, which must be equal: a number and an initializer differ in shape."""
    return "drawn" if isinstance(value, Mapping) else None


def _specs(node: Any) -> Iterator[Spec]:
    """Yield the specs of all parts that compute for all members at once, except arguments that accept any object."""
    if isinstance(node, Mapping):
        arguments: Mapping[str, Argument] = {}
        if isinstance(node.get("_target_"), str):
            spec = parts.of(node["_target_"])
            arguments = spec.arguments
            yield spec
        node = [value for name, value in node.items() if not (name in arguments and ANY in arguments[name].kinds)]
    for value in node if isinstance(node, list) else ():
        yield from _specs(value)
