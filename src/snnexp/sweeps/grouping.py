"""Which points of a sweep can be trained as one model: told from their configs, without torch.

Members of a stack differ in numbers alone that stand in tensors: seeds, learning rates, start values, numbers of the
surrogate and of the loss. What decides shapes, or what is computed, is the same for all.
"""

import json
from collections.abc import Hashable, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from snnexp.spec import rules

NEURON = ("beta", "threshold", "V", "tau_mem_inv", "tau_syn_inv", "v_th", "v_leak", "v_reset")
FREE: dict[str, tuple[str, ...]] = {
    "optimizer": ("lr", "betas", "momentum", "weight_decay"),
    "neuron": NEURON,
    "readout": NEURON,
    "surrogate": ("alpha", "slope", "width"),
    "loss": ("correct_rate", "incorrect_rate", "on_target", "off_target"),
    "data": ("seed", "sample_seed"),
}
"""By node, the keys whose values may differ within a stack."""


def obstacle(cfg: DictConfig | Mapping[str, Any]) -> str | None:
    """Why a point cannot be trained in a stack, in a few words; None where it can."""
    plain = _plain(cfg)
    for place in rules.SHIPPED:
        for target in _targets(plain.get(place)):
            if target not in rules.EVERY:
                return f"{target} is not a part of this package"
    if plain["network"]["_target_"] != "snnexp.network.MLP":
        return "its network is convolutional"
    trainer = plain["trainer"]
    if trainer["strategy"] == "ddp" or trainer["devices"] != 1:
        return "it trains on several devices"
    if plain["kernel"] == "triton":
        return "kernel=triton knows no stacks"
    if plain["data"]["num_workers"]:
        return "its batches come from data workers"
    return None


def key(cfg: DictConfig | Mapping[str, Any]) -> Hashable:
    """Equal for points that can share a stack: the config without what may differ."""
    plain = {name: value for name, value in _plain(cfg).items() if name not in ("seed", "published")}
    for node, names in FREE.items():
        plain[node] = {name: _kind(value) if name in names else value for name, value in plain[node].items()}
    for node in ("neuron", "readout"):
        if isinstance(surrogate := plain[node].get("surrogate"), Mapping):
            free = {name: None for name in FREE["surrogate"] if name in surrogate}
            plain[node]["surrogate"] = {**surrogate, **free}
    return json.dumps(plain, sort_keys=True)


def _plain(cfg: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    return OmegaConf.to_container(cfg, resolve=True) if isinstance(cfg, DictConfig) else dict(cfg)  # type: ignore[return-value]


def _kind(value: Any) -> str | None:
    """What is left of a value that may differ: a number and one that is drawn per neuron differ in shape."""
    return "drawn" if isinstance(value, Mapping) else None


def _targets(node: Any) -> list[str]:
    if not isinstance(node, Mapping):
        return []
    own = [str(node["_target_"])] if "_target_" in node else []
    return own + [target for value in node.values() for target in _targets(value)]
