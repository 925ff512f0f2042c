"""The places of a config where parts are built, and what each accepts."""

from typing import NamedTuple


class Place(NamedTuple):
    """What may stand at a key of a config.

    Args:
        module: that lists the shipped ones.
        base: the class that they derive from; "" for functions that are marked by :func:`snnexp.spec.parts.part`.
        given: arguments that the assembly gives, and no config.
        offered: arguments that it gives where the constructor has them and the config does not set them.
        stacked: whether a part computes for all members of a stack at once.
    """

    module: str
    base: str = ""
    given: tuple[str, ...] = ()
    offered: tuple[str, ...] = ()
    stacked: bool = True


NEURON = Place("snnexp.neurons", "snnexp.neurons.neuron.Neuron", ("features",))
PLACES = {
    "data": Place("snnexp.data"),
    "encoder": Place("snnexp.encoders", "snnexp.encoders.Encoder"),
    "network": Place(
        "snnexp.network", "snnexp.network.graph.Network", ("inputs", "outputs", "neuron", "readout"), ("num_steps",)
    ),
    "neuron": NEURON,
    "readout": NEURON,
    "surrogate": Place("snnexp.surrogates", "snnexp.surrogates.Surrogate"),
    "loss": Place("snnexp.losses", "snnexp.losses.Loss"),
    "optimizer": Place("snnexp.optimizers", "snnexp.optimizers.OptimizerFactory"),
    "trainer": Place("snnexp.training.assembly", stacked=False),
    "initializer": Place("snnexp.initializers", "snnexp.initializers.Initializer", stacked=False),
}
"""By key; an initializer takes the place of a neuron's parameter."""

SYNAPSE = ("inputs", "in_features", "in_channels", "num_features", "num_channels", "normalized_shape")
"""What a network offers to the constructor of a synapse: the shape that it reads, and sizes by the names of PyTorch."""
MODULE = "torch.nn.modules.module.Module"

KINDS = {place.base for place in PLACES.values() if place.base}
"""The classes that parts derive from."""
