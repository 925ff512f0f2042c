"""The keys of a config that belong to no part, annotated as the arguments of parts are."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from annotated_types import doc

from snnexp.spec import checked, parts
from snnexp.spec.annotations import Count, Index, Name, NonNegative, Positive, Seed, Steps
from snnexp.spec.places import PLACES
from snnexp.spec.reader import Spec
from snnexp.spec.values import Domain


class Run:
    """Of the run itself."""

    seed: Seed
    num_steps: Steps
    kernel: Literal["auto", "reference", "fused", "triton"]
    name: Name
    published: Annotated[Mapping[str, float], doc("a mapping of metric names to figures")]


class Logger:
    """Of ``logger``."""

    root: str
    tensorboard: bool
    save_every_n_epochs: Count
    save_every_s: NonNegative
    draw_every_n_epochs: Index
    draw_every_s: NonNegative


class Data:
    """Of ``data``, beside the arguments of the part."""

    spikes: bool | None


class Launcher:
    """Of ``hydra.launcher``; each kind has some of them."""

    kind: Literal["processes", "stacked", "slurm"]
    workers: Count | None
    threads: Count | None
    gpus: Index | None
    members: Count
    timeout_s: Positive | None
    memory_gb: Positive | None
    cluster: Literal["slurm", "local"]
    timeout_min: Count
    partition: Name | None
    account: Name | None
    qos: Name | None
    constraint: Name | None


OTHERS: dict[str, type] = {"": Run, "logger": Logger, "data": Data, "hydra.launcher": Launcher}
"""By the node that they stand in."""


def domain_in(cfg: Mapping[str, Any], key: str) -> Domain | None:
    """What a key may be in a config, by the part that takes it; None for anything."""
    *path, name = key.split(".")
    node: Any = cfg
    for word in path:
        node = node.get(word) if isinstance(node, Mapping) else None
    target = node.get("_target_") if isinstance(node, Mapping) else None
    argument = parts.of(target).arguments.get(name) if isinstance(target, str) else None
    if argument is not None:
        return argument.domain
    other = checked.taken(OTHERS[".".join(path)]).get(name) if ".".join(path) in OTHERS else None
    return None if other is None else other.domain


def domains_of(key: str) -> list[Domain]:
    """What a key such as ``network.hidden`` may be, whichever of the shipped parts is chosen."""
    node, _, name = key.rpartition(".")
    found = [spec.arguments[name].domain for spec in _shipped(node) if name in spec.arguments]
    other = checked.taken(OTHERS[node]).get(name) if node in OTHERS else None
    return [domain for domain in (*found, other and other.domain) if domain is not None]


def _shipped(node: str) -> Iterable[Spec]:
    return parts.shipped(node).values() if node in PLACES else ()
