"""How parts are wired: layers of a synapse and a neuron, unrolled in time."""

from snnexp.network.graph import MLP, Conv, Dense, Layer, Network, NeuronFactory, StackedDense, stack

__all__ = ["MLP", "Conv", "Dense", "Layer", "Network", "NeuronFactory", "StackedDense", "stack"]
