"""Spiking neuron layers: currents in, a :class:`Trace` of spikes and membranes out, state explicit in and out."""

from snnexp.neurons.alif import ALIF, ALIFState
from snnexp.neurons.identity import Identity, IdentityState
from snnexp.neurons.leaky import Leaky, LeakyState
from snnexp.neurons.leaky_integrator import LeakyIntegrator, LeakyIntegratorState
from snnexp.neurons.lif import LIF
from snnexp.neurons.neuron import Kernel, Neuron, NeuronParameter, is_plain, over_samples, product, reference
from snnexp.neurons.parametrized_lif import ParametrizedLIF, ParametrizedLIFState, Recurrence
from snnexp.neurons.rleaky import RLeaky, RLeakyState
from snnexp.neurons.rsynaptic import RSynaptic, RSynapticState
from snnexp.neurons.statistics import STATISTICS, Reads, Statistic, names, need_trace, read_spikes
from snnexp.neurons.synaptic import Synaptic, SynapticState
from snnexp.neurons.trace import CalledTrace, Reduced, Trace, without_tuple

__all__ = [
    "ALIF",
    "LIF",
    "STATISTICS",
    "ALIFState",
    "CalledTrace",
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
    "Reduced",
    "Statistic",
    "Synaptic",
    "SynapticState",
    "Trace",
    "is_plain",
    "names",
    "need_trace",
    "over_samples",
    "product",
    "read_spikes",
    "reference",
    "without_tuple",
]
