"""Which points of a sweep can be trained as one model: told from their configs, without torch.

Members of a stack differ in numbers alone that stand in tensors: seeds, learning rates, start values, numbers of the
surrogate and of the loss. What decides shapes, or what is computed, is the same for all.
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
    """Why a point cannot be trained in a stack, in a few words; None where it can."""
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
        return "its steps are several batches"
    if plain["kernel"] == "triton":
        return "kernel=triton knows no stacks"
    if plain["data"].get("num_workers"):
        return "its batches come from data workers"
    return None


def key(cfg: DictConfig | Mapping[str, Any]) -> Hashable:
    """Equal for points that can share a stack: the config without what may differ."""
    plain = {name: value for name, value in _plain(cfg).items() if name not in ("seed", "published")}
    # weights stand in tensors, and what is not trained of them decides what is computed
    plain["init_from"] = list(config.get_init_from(plain).freeze)
    return json.dumps(_shared(plain), sort_keys=True)


def _plain(cfg: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    return OmegaConf.to_container(cfg, resolve=True) if isinstance(cfg, DictConfig) else dict(cfg)  # type: ignore[return-value]


def _shared(node: Mapping[str, Any]) -> dict[str, Any]:
    """A node with what may differ left out of it."""
    target = node.get("_target_")
    free = _free(parts.of(target)) if isinstance(target, str) else ()
    return {name: _kind(value) if name in free else _of_value(value) for name, value in node.items()}


def _of_value(value: Any) -> Any:
    if isinstance(value, list):
        return [_of_value(each) for each in value]
    return _shared(value) if isinstance(value, Mapping) else value


def _free(spec: Spec) -> set[str]:
    """The arguments of a part in which members may differ: those of layers where they are kept as tensors alone."""
    layers = {PLACES["neuron"].base, PLACES["network"].base}
    found = {name: argument for name, argument in spec.arguments.items() if argument.stackable}
    if layers.intersection(spec.bases):
        found = {name: argument for name, argument in found.items() if isinstance(argument.domain, Parameter)}
    return {*found}


def _kind(value: Any) -> str | None:
    """What is left of a value that may differ: a number and one that is drawn per neuron differ in shape."""
    return "drawn" if isinstance(value, Mapping) else None


def _specs(node: Any) -> Iterator[Spec]:
    """The parts that compute for all members at once: not those that another part may take as any object."""
    if isinstance(node, Mapping):
        arguments: Mapping[str, Argument] = {}
        if isinstance(node.get("_target_"), str):
            spec = parts.of(node["_target_"])
            arguments = spec.arguments
            yield spec
        node = [value for name, value in node.items() if not (name in arguments and ANY in arguments[name].kinds)]
    for value in node if isinstance(node, list) else ():
        yield from _specs(value)
