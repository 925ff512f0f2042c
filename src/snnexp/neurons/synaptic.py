"""Second-order leaky integrate-and-fire neuron: membrane and synaptic current decay.

    R[t] = H(U[t-1] - theta)                     reset by the previous membrane; no gradient flows through R
    J[t] = alpha J[t-1] + I[t]
    base = beta U[t-1] + J[t]
    subtract:  U[t] = base - R[t] theta      zero:  U[t] = (1 - R[t]) base      none:  U[t] = base
    S[t] = H(U[t] - theta)                       backward: dS/dU = surrogate(U - theta)

U membrane, J synaptic current, S spike, I input current, alpha and beta decays per step of J and U (clamped to [0, 1]),
theta threshold; all dimensionless. The recorded membrane is U[t], before reset.
Source: Eshraghian et al., Proc. IEEE 111(9), 2023, as computed by snnTorch's ``Synaptic``.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from snnexp.neurons.neuron import Neuron, NeuronParameter, decay
from snnexp.neurons.reset import RESETS, Reset
from snnexp.neurons.trace import Trace
from snnexp.spec.annotations import Features, Fraction, NonNegative
from snnexp.spec.checked import checked
from snnexp.surrogates import ATan, Surrogate, heaviside, spike


class SynapticState(NamedTuple):
    """Membrane and synaptic current after the last step, each ``[B, *N]``."""

    membrane: Tensor
    synaptic: Tensor


class Synaptic(Neuron):
    """Second-order leaky integrate-and-fire layer; see the module docstring for the equation.

    Args:
        features: neuron axes, an int or a tuple.
        alpha: decay per step of the synaptic current, in [0, 1].
        beta: decay per step of the membrane, in [0, 1].
        threshold: membrane above which the neuron fires.
        learn_alpha: train the decay of the synaptic current.
        learn_beta: train the decay of the membrane.
        learn_threshold: train the threshold.
        reset: effect of a spike on the membrane of the next step: ``subtract``, ``zero`` or ``none``.
        surrogate: surrogate derivative of the spike.

    Raises:
        ConfigError: an argument is out of range.
    """

    stackable = True
    alpha: Tensor
    beta: Tensor
    threshold: Tensor

    @checked
    def __init__(
        self,
        features: Features,
        alpha: NeuronParameter[Fraction] = 0.9,
        beta: NeuronParameter[Fraction] = 0.8,
        threshold: NeuronParameter[NonNegative] = 1.0,
        learn_alpha: bool = False,
        learn_beta: bool = False,
        learn_threshold: bool = False,
        reset: Reset = "subtract",
        surrogate: Surrogate = ATan(),
    ) -> None:
        super().__init__(features)
        self.add_parameter("alpha", alpha, learn=learn_alpha)
        self.add_parameter("beta", beta, learn=learn_beta)
        self.add_parameter("threshold", threshold, learn=learn_threshold)
        self.reset = reset
        self.update = RESETS[reset]
        self.surrogate = surrogate

    def zero_state(self, current: Tensor) -> SynapticState:
        return SynapticState(torch.zeros_like(current), torch.zeros_like(current))

    def scan(self, current: Sequence[Tensor], state: SynapticState) -> Trace:
        alpha, beta, theta = decay(self.alpha), decay(self.beta), self.threshold
        U, J = state
        spikes, membrane = [], []
        for I in current:
            R = heaviside(U.detach() - theta.detach())
            J = alpha * J + I
            U = self.update(beta * U + J, R, theta)
            spikes.append(spike(U - theta, self.surrogate))
            membrane.append(U)
        return Trace(torch.stack(spikes), torch.stack(membrane), SynapticState(U, J))
