"""The places of a config where parts are built, and what each accepts."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class Place(NamedTuple):
    """What may stand at a key of a config.

    Args:
        module: that lists the shipped ones.
        base: the class that they derive from; "" for functions that are marked by :func:`snnexp.spec.parts.part`.
        given: arguments that the assembly gives, and no config.
        offered: arguments that it gives where the constructor has them and the config does not set them.
        stacked: whether a part computes for all members of a stack at once.
        many: whether the node is a mapping of names to parts.
    """

    module: str
    base: str = ""
    given: tuple[str, ...] = ()
    offered: tuple[str, ...] = ()
    stacked: bool = True
    many: bool = False


NEURON = Place("snnexp.neurons", "snnexp.neurons.neuron.Neuron", ("features",))
PLACES = {
    "data": Place("snnexp.data"),
    "encoder": Place("snnexp.encoders", "snnexp.encoders.Encoder"),
    "network": Place(
        "snnexp.network", "snnexp.network.network.Network", ("inputs", "outputs", "neuron", "readout"), ("num_steps",)
    ),
    "neuron": NEURON,
    "readout": NEURON,
    "surrogate": Place("snnexp.surrogates", "snnexp.surrogates.Surrogate"),
    "loss": Place("snnexp.losses", "snnexp.losses.loss.Loss"),
    "decoder": Place("snnexp.decoders", "snnexp.decoders.Decoder"),
    "regularizer": Place("snnexp.regularizers", "snnexp.regularizers.Penalty", many=True),
    "measure": Place("snnexp.metrics", "snnexp.metrics.measure.Measure", many=True),
    "optimizer": Place("snnexp.optimizers", "snnexp.optimizers.OptimizerFactory"),
    "schedule": Place("snnexp.schedules", "snnexp.schedules.Schedule"),
    "trainer": Place("snnexp.training.assembly", stacked=False),
    "initializer": Place("snnexp.initializers", "snnexp.initializers.Initializer", stacked=False),
}
"""By key; an initializer takes the place of a neuron's parameter."""

SYNAPSE = ("inputs", "in_features", "in_channels", "num_features", "num_channels", "normalized_shape")
"""What a network offers to the constructor of a synapse: the shape that it reads, and sizes by the names of PyTorch."""
MODULE = "torch.nn.modules.module.Module"

KINDS = {place.base for place in PLACES.values() if place.base}
"""The classes that parts derive from."""


def nodes(cfg: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """The path, the place and the node of each part that a config names; of a place with many, of each of them."""
    for key, node in cfg.items():
        if key in PLACES and PLACES[key].many and isinstance(node, Mapping):
            yield from ((f"{key}.{name}", key, each) for name, each in node.items())
        elif key in PLACES:
            yield key, key, node
