"""Spiking neuron layers: they map input currents and a state to a :class:`Trace` of spikes and membranes."""

from snnexp.neurons.alif import ALIF, ALIFState
from snnexp.neurons.identity import Identity, IdentityState
from snnexp.neurons.leaky import Leaky, LeakyState
from snnexp.neurons.leaky_integrator import LeakyIntegrator, LeakyIntegratorState
from snnexp.neurons.lif import LIF
from snnexp.neurons.neuron import Kernel, Neuron, NeuronParameter, is_plain, reference, stacked_linear, time_distributed
from snnexp.neurons.parametrized_lif import ParametrizedLIF, ParametrizedLIFState, Recurrence
from snnexp.neurons.rleaky import RLeaky, RLeakyState
from snnexp.neurons.rsynaptic import RSynaptic, RSynapticState
from snnexp.neurons.statistics import STATISTICS, Reads, Statistic, need_spikes, need_trace, statistic_names
from snnexp.neurons.synaptic import Synaptic, SynapticState
from snnexp.neurons.trace import ReducedTrace, Trace, TupleTrace, as_trace

__all__ = [
    "ALIF",
    "LIF",
    "STATISTICS",
    "ALIFState",
    "Identity",
    "IdentityState",
    "Kernel",
    "Leaky",
    "LeakyIntegrator",
    "LeakyIntegratorState",
    "LeakyState",
    "Neuron",
    "NeuronParameter",
    "ParametrizedLIF",
    "ParametrizedLIFState",
    "RLeaky",
    "RLeakyState",
    "RSynaptic",
    "RSynapticState",
    "Reads",
    "Recurrence",
    "ReducedTrace",
    "Statistic",
    "Synaptic",
    "SynapticState",
    "Trace",
    "TupleTrace",
    "as_trace",
    "is_plain",
    "need_spikes",
    "need_trace",
    "reference",
    "stacked_linear",
    "statistic_names",
    "time_distributed",
]
