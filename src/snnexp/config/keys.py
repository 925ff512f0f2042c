"""The config keys that belong to no part, annotated like the arguments of parts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import doc

from snnexp.spec import checked, parts
from snnexp.spec.annotations import Count, Index, Name, NonNegative, Positive, Seed, Steps
from snnexp.spec.places import PLACES
from snnexp.spec.reader import Argument
from snnexp.spec.values import Domain


class Run:
    """Top-level keys."""

    seed: Seed
    num_steps: Steps
    kernel: Literal["auto", "reference", "fused", "triton"]
    name: Name
    published: Annotated[Mapping[str, float], doc("a mapping from metric names to numbers")]


@dataclass(frozen=True)
class InitFrom:
    """Keys of ``init_from``, the weights that a run starts from, with their defaults."""

    run: str | None = None
    ckpt: str = "last"
    freeze: Sequence[str] = ()


class Logger:
    """Keys of ``logger``."""

    root: str
    tensorboard: bool
    csv: bool
    keep: Literal["all", "best", "last", "none"]
    also: Annotated[Mapping[str, Any], doc("a mapping from names to Lightning loggers, each with _target_")]
    save_every_n_epochs: Count
    save_every_s: NonNegative
    draw_every_n_epochs: Index
    draw_every_s: NonNegative
    predictions: bool
    test_every_epoch: bool


class Data:
    """Keys of ``data`` that are not arguments of the part."""

    spikes: bool | None


class Launcher:
    """Keys of ``hydra.launcher``; each kind of launcher has some of them."""

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


NODE_CLASSES: dict[str, type] = {
    "": Run,
    "init_from": InitFrom,
    "logger": Logger,
    "data": Data,
    "hydra.launcher": Launcher,
}
"""By node."""
SHORTHANDS = {"init_from": "init_from.run"}
"""The key that a string given for a whole node is assigned to."""


def lookup(target: Any, node: str, name: str) -> Argument | checked.ArgumentAnnotation | None:
    """Return the annotation of a key: an argument of the part ``target``, or another key of the node."""
    argument = parts.of(target).arguments.get(name) if isinstance(target, str) else None
    return argument or (checked.argument_annotations(NODE_CLASSES[node]).get(name) if node in NODE_CLASSES else None)


def domain_in(cfg: Mapping[str, Any], key: str) -> Domain | None:
    """Return the values that a key of a config accepts; None for any."""
    path, _, name = key.rpartition(".")
    node: Any = cfg
    for word in filter(None, path.split(".")):
        node = node.get(word) if isinstance(node, Mapping) else None
    found = lookup(node.get("_target_") if isinstance(node, Mapping) else None, path, name)
    return None if found is None else found.domain


def domains_of(key: str) -> list[Domain]:
    """Return the domains of a key such as ``network.hidden`` in all shipped parts."""
    node, _, name = key.rpartition(".")
    targets = parts.shipped(node) if node in PLACES else ()
    found = (lookup(target, node, name) for target in (*targets, None))
    return [each.domain for each in found if each is not None and each.domain is not None]
