"""Leaky integrator, used as a readout: the parametrized LIF neuron without spikes and reset.

    j[t] = i[t-1] + I[t]
    v[t] = v[t-1] + dt tau_mem_inv ((v_leak - v[t-1]) + j[t])
    i[t] = j[t] - dt tau_syn_inv j[t]

v membrane, i synaptic current, I input current (of a synapse without bias): all dimensionless; dt in s, tau_mem_inv and
tau_syn_inv in 1/s. Source: Pehle and Pedersen, Norse (2021), ``LICell``.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from snnexp.neurons.neuron import Neuron, NeuronParameter, Rate
from snnexp.neurons.trace import Trace
from snnexp.spec.annotations import Features, Scale
from snnexp.spec.checked import checked


class LeakyIntegratorState(NamedTuple):
    """Membrane v and synaptic current i after the last step, each ``[B, *N]``."""

    v: Tensor
    i: Tensor


class LeakyIntegrator(Neuron):
    """Non-spiking leaky integrator layer; see the module docstring for the equation.

    Args:
        features: neuron axes, an int or a tuple.
        tau_mem_inv: inverse membrane time constant, 1/s; 0 < dt tau_mem_inv <= 1.
        tau_syn_inv: inverse synaptic time constant, 1/s; 0 < dt tau_syn_inv <= 1.
        v_leak: resting membrane.
        dt: time step, s.

    Raises:
        ConfigError: an argument is out of range.
    """

    stackable = True
    spikes = False
    synapse_bias = False
    tau_mem_inv: Tensor
    tau_syn_inv: Tensor
    v_leak: Tensor

    @checked
    def __init__(
        self,
        features: Features,
        tau_mem_inv: NeuronParameter[Rate] = 100.0,
        tau_syn_inv: NeuronParameter[Rate] = 200.0,
        v_leak: NeuronParameter[float] = 0.0,
        dt: Scale = 1e-3,
    ) -> None:
        super().__init__(features)
        self.dt = dt
        self.add_parameter("tau_mem_inv", tau_mem_inv, at_most=1 / dt)
        self.add_parameter("tau_syn_inv", tau_syn_inv, at_most=1 / dt)
        self.add_parameter("v_leak", v_leak)

    def zero_state(self, current: Tensor) -> LeakyIntegratorState:
        return LeakyIntegratorState(torch.zeros_like(current), torch.zeros_like(current))

    def scan(self, current: Sequence[Tensor], state: LeakyIntegratorState) -> Trace:
        decay_mem, decay_syn = self.dt * self.tau_mem_inv, self.dt * self.tau_syn_inv
        v, i = state
        membrane = []
        for I in current:
            j = i + I
            v = v + decay_mem * ((self.v_leak - v) + j)
            i = j - decay_syn * j
            membrane.append(v)
        trace = torch.stack(membrane)
        return Trace(trace.new_zeros(()).expand_as(trace), trace, LeakyIntegratorState(v, i))
