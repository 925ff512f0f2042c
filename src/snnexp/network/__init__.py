"""Networks: layers of synapses and neurons, unrolled over time."""

from snnexp.network.chains import MLP, Conv
from snnexp.network.graph import Graph
from snnexp.network.layers import Dense, Layer, NeuronFactory, StackedDense
from snnexp.network.network import Network
from snnexp.network.stacking import stack

__all__ = [
    "MLP",
    "Conv",
    "Dense",
    "Graph",
    "Layer",
    "Network",
    "NeuronFactory",
    "StackedDense",
    "stack",
]
