"""Recurrent leaky integrate-and-fire neuron: its spikes feed back into the same layer.

    R[t] = H(U[t-1] - theta)                     reset by the previous membrane; no gradient flows through R
    base = beta U[t-1] + I[t] + rec(S[t-1])
    subtract:  U[t] = base - R[t] theta      zero:  U[t] = (1 - R[t]) base      none:  U[t] = base
    S[t] = H(U[t] - theta)                       backward: dS/dU = surrogate(U - theta)

    rec:  linear      W S + b          all to all
          one_to_one  V S              each neuron to itself
          conv2d      conv(S, W) + b   neighbors on a feature map, padded to keep its size

U membrane, S spike, I input current, beta decay per step (clamped to [0, 1]), theta threshold; all dimensionless.
Gradients flow through the feedback; its bias b is added from the first step.
Source: Eshraghian et al., Proc. IEEE 111(9), 2023, as computed by snnTorch's ``RLeaky``.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from snnexp.neurons.feedback import Feedback, _FeedbackNeuron
from snnexp.neurons.neuron import NeuronParameter, decay
from snnexp.neurons.reset import RESETS, Reset
from snnexp.neurons.trace import Trace
from snnexp.spec.annotations import Count, Features, Fraction, NonNegative
from snnexp.spec.checked import checked
from snnexp.surrogates import ATan, Surrogate, heaviside, spike


class RLeakyState(NamedTuple):
    """Membrane and spikes after the last step, each ``[B, *N]``."""

    membrane: Tensor
    spikes: Tensor


class RLeaky(_FeedbackNeuron):
    """Recurrent leaky integrate-and-fire layer; see the module docstring for the equation.

    Args:
        features: neuron axes, an int or a tuple.
        beta: decay per step, in [0, 1].
        threshold: membrane above which the neuron fires.
        feedback: ``linear`` (an ``nn.Linear``), ``conv2d`` (an ``nn.Conv2d``) or ``one_to_one`` (``V``).
        kernel_size: side of the convolution kernel of conv2d feedback, odd.
        V: weight of one_to_one feedback.
        learn_recurrent: train the feedback.
        learn_beta: train the decay.
        learn_threshold: train the threshold.
        reset: effect of a spike on the membrane of the next step: ``subtract``, ``zero`` or ``none``.
        surrogate: surrogate derivative of the spike.

    Raises:
        ConfigError: an argument is out of range, or the feedback does not support the features.
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
        feedback: Feedback = "linear",
        kernel_size: Count | None = None,
        V: NeuronParameter[float] = 1.0,
        learn_recurrent: bool = True,
        learn_beta: bool = False,
        learn_threshold: bool = False,
        reset: Reset = "subtract",
        surrogate: Surrogate = ATan(),
    ) -> None:
        super().__init__(features)
        self.fits(self.features, feedback, kernel_size)
        self.add_parameter("beta", beta, learn=learn_beta)
        self.add_parameter("threshold", threshold, learn=learn_threshold)
        self.add_feedback(feedback, kernel_size, V, learn_recurrent)
        self.reset = reset
        self.update = RESETS[reset]
        self.surrogate = surrogate

    def zero_state(self, current: Tensor) -> RLeakyState:
        return RLeakyState(torch.zeros_like(current), torch.zeros_like(current))

    def scan(self, current: Sequence[Tensor], state: RLeakyState) -> Trace:
        beta, theta, rec = decay(self.beta), self.threshold, self.feedback_function()
        U, S = state
        spikes, membrane = [], []
        for I in current:
            R = heaviside(U.detach() - theta.detach())
            U = self.update(beta * U + I + rec(S), R, theta)
            S = spike(U - theta, self.surrogate)
            spikes.append(S)
            membrane.append(U)
        return Trace(torch.stack(spikes), torch.stack(membrane), RLeakyState(U, S))
