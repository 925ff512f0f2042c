"""Second-order leaky integrate-and-fire neuron, for a linear or convolutional synapse with bias.

    j[t] = i[t-1] + I[t]
    u[t] = v[t-1] + dt tau_mem_inv ((v_leak - v[t-1]) + j[t])
    z[t] = H(u[t] - v_th)                        backward: dz/du = surrogate(u - v_th)
    v[t] = (1 - z[t]) u[t] + z[t] v_reset        gradients flow through z here
    i[t] = j[t] - dt tau_syn_inv j[t]

u, v membrane before and after reset, i synaptic current, z spike, I input current: all dimensionless; dt in s,
tau_mem_inv and tau_syn_inv in 1/s. v and i start at 0. The input synapse has PyTorch's default initialization and a
bias. The recorded membrane is u. Source: Pehle and Pedersen, Norse (2021), ``LIFCell``.
"""

from collections.abc import Sequence
from typing import Literal

from torch import nn

from snnexp.neurons.neuron import Neuron, NeuronParameter, Rate
from snnexp.neurons.parametrized_lif import ParametrizedLIF
from snnexp.spec.annotations import Features, Scale
from snnexp.spec.checked import checked
from snnexp.surrogates import SuperSpike, Surrogate


class LIF(ParametrizedLIF):
    """Second-order leaky integrate-and-fire layer; see the module docstring for the equation.

    Args:
        features: neuron axes, an int or a tuple.
        tau_mem_inv: inverse membrane time constant, 1/s; 0 < dt tau_mem_inv <= 1.
        tau_syn_inv: inverse synaptic time constant, 1/s; 0 < dt tau_syn_inv <= 1.
        v_th: threshold.
        v_leak: resting membrane.
        v_reset: membrane after a spike.
        learn: names of the parameters to train.
        log_tau: train log(tau_mem_inv) and log(tau_syn_inv), so that both stay positive.
        dt: time step, s.
        surrogate: surrogate derivative of the spike.

    Raises:
        ConfigError: an argument is out of range.
    """

    stackable = True
    synapse_bias = True
    reset_gradient = True

    @checked
    def __init__(
        self,
        features: Features,
        tau_mem_inv: NeuronParameter[Rate] = 100.0,
        tau_syn_inv: NeuronParameter[Rate] = 200.0,
        v_th: NeuronParameter[float] = 1.0,
        v_leak: NeuronParameter[float] = 0.0,
        v_reset: NeuronParameter[float] = 0.0,
        learn: Sequence[Literal["tau_mem_inv", "tau_syn_inv", "v_th", "v_leak", "v_reset"]] = (),
        log_tau: bool = False,
        dt: Scale = 1e-3,
        surrogate: Surrogate = SuperSpike(alpha=100.0),
    ) -> None:
        super().__init__(
            features, False, tau_mem_inv, tau_syn_inv, v_th, v_leak, v_reset, learn, log_tau, dt, surrogate
        )

    def reset_synapse(self, synapse: nn.Linear | nn.Conv2d) -> None:
        Neuron.reset_synapse(self, synapse)
