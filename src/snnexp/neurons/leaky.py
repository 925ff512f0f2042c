"""First-order leaky integrate-and-fire neuron.

    R[t] = H(U[t-1] - theta)                     reset by the previous membrane; no gradient flows through R
    subtract:  U[t] = beta U[t-1] + I[t] - R[t] theta
    zero:      U[t] = beta (1 - R[t]) U[t-1] + I[t]
    none:      U[t] = beta U[t-1] + I[t]
    S[t] = H(U[t] - theta)                       backward: dS/dU = surrogate(U - theta)

U membrane, S spike, I input current, beta decay per step (clamped to [0, 1]), theta threshold; all dimensionless.
Source: Eshraghian et al., "Training Spiking Neural Networks Using Lessons From Deep Learning", Proc. IEEE 111(9), 2023,
as computed by snnTorch's ``Leaky``. The recorded membrane is U[t], before reset.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from snnexp.neurons.neuron import Neuron, NeuronParameter, decay
from snnexp.neurons.reset import Reset
from snnexp.neurons.trace import Trace
from snnexp.spec.annotations import Features, Fraction, NonNegative
from snnexp.spec.checked import checked
from snnexp.surrogates import ATan, Surrogate, heaviside, spike


class LeakyState(NamedTuple):
    """Membrane after the last step, ``[B, *N]``."""

    membrane: Tensor


class Leaky(Neuron):
    """Leaky integrate-and-fire layer; see the module docstring for the equation.

    Args:
        features: neuron axes, an int or a tuple.
        beta: decay per step, in [0, 1].
        threshold: membrane above which the neuron fires.
        learn_beta: train the decay.
        learn_threshold: train the threshold.
        reset: effect of a spike on the membrane of the next step: ``subtract``, ``zero`` or ``none``.
        surrogate: surrogate derivative of the spike.

    Raises:
        ConfigError: an argument is out of range.
    """

    stackable = True
    beta: Tensor
    threshold: Tensor

    @checked
    def __init__(
        self,
        features: Features,
        beta: NeuronParameter[Fraction] = 0.9,
        threshold: NeuronParameter[NonNegative] = 1.0,
        learn_beta: bool = False,
        learn_threshold: bool = False,
        reset: Reset = "subtract",
        surrogate: Surrogate = ATan(),
    ) -> None:
        super().__init__(features)
        self.add_parameter("beta", beta, learn=learn_beta)
        self.add_parameter("threshold", threshold, learn=learn_threshold)
        self.reset = reset
        self.update = {"subtract": _subtract, "zero": _zero, "none": _none}[reset]
        self.surrogate = surrogate

    def zero_state(self, current: Tensor) -> LeakyState:
        return LeakyState(torch.zeros_like(current))

    def scan(self, current: Sequence[Tensor], state: LeakyState) -> Trace:
        beta, theta = decay(self.beta), self.threshold
        (U,) = state
        spikes, membrane = [], []
        for I in current:
            R = heaviside(U.detach() - theta.detach())
            U = self.update(U, I, R, beta, theta)
            spikes.append(spike(U - theta, self.surrogate))
            membrane.append(U)
        return Trace(torch.stack(spikes), torch.stack(membrane), LeakyState(U))


def _subtract(U: Tensor, I: Tensor, R: Tensor, beta: Tensor, theta: Tensor) -> Tensor:
    return beta * U + I - R * theta


def _zero(U: Tensor, I: Tensor, R: Tensor, beta: Tensor, theta: Tensor) -> Tensor:
    return beta * ((1 - R) * U) + I


def _none(U: Tensor, I: Tensor, R: Tensor, beta: Tensor, theta: Tensor) -> Tensor:
    return beta * U + I
