"""The keys of a config at which parts are built, and which parts each accepts."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class Place(NamedTuple):
    """The parts that a key of a config accepts.

    Args:
        module: module of the shipped parts.
        base: their base class; "" for functions that are marked by :func:`snnexp.spec.parts.part`.
        given: arguments that the program supplies; a config cannot set them.
        offered: arguments that the program supplies if the constructor has them and the config does not set them.
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
"""Places by key; an initializer is allowed as the value of a neuron parameter."""

SYNAPSE = ("inputs", "in_features", "in_channels", "num_features", "num_channels", "normalized_shape")
"""Arguments that a network offers to a synapse: the shape of its input, and sizes by the names that PyTorch uses."""
MODULE = "torch.nn.modules.module.Module"

KINDS = {place.base for place in PLACES.values() if place.base}
"""The base classes of parts."""


def nodes(cfg: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Yield the path, the place and the node of each part of a config."""
    for key, node in cfg.items():
        if key in PLACES and PLACES[key].many and isinstance(node, Mapping):
            yield from ((f"{key}.{name}", key, each) for name, each in node.items())
        elif key in PLACES:
            yield key, key, node
