"""Leaky neuron with an adaptive threshold (ALIF).

Equation (1) and following of Bellec et al., "Long short-term memory and learning-to-learn in networks of spiking
neurons", NeurIPS 2018, with a reset by subtraction::

    b[t] = rho b[t-1] + (1 - rho) S[t-1]
    A[t] = threshold + beta b[t]
    U[t] = alpha U[t-1] + I[t] - A[t-1] S[t-1]
    S[t] = 1 where U[t] > A[t], else 0
"""

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import torch
from annotated_types import Interval
from torch import Tensor

from snnexp.errors import ConfigError
from snnexp.neurons import Neuron, NeuronParameter, Trace
from snnexp.spec.annotations import AtLeast, Fraction, Positive
from snnexp.surrogates import ATan, Surrogate, spike


class State(NamedTuple):
    """State of one step."""

    membrane: Tensor
    adaptation: Tensor
    spikes: Tensor


class Adaptive(Neuron):
    """Leaky integrate-and-fire with a threshold that rises with each spike and decays.

    Args:
        features: neuron axes.
        beta: how far the threshold rises with the adaptation.
        alpha: decay of the membrane per step.
        rho: decay of the adaptation per step, not faster than that of the membrane.
        threshold: threshold of a neuron that has not fired.
        learn_beta: train beta.
        learn_alpha: train alpha.
        learn_rho: train rho.
        learn_threshold: train the threshold.
        surrogate: derivative of the spike.
    """

    stackable = True

    def __init__(
        self,
        features: int | Sequence[int],
        beta: NeuronParameter[Annotated[float, Interval(ge=0, le=2)]] = 1.8,
        alpha: NeuronParameter[Fraction] = 0.0,
        rho: NeuronParameter[Annotated[float, Interval(ge=0, le=1), AtLeast("alpha")]] = 0.9,
        threshold: NeuronParameter[Positive] = 1.0,
        learn_beta: bool = False,
        learn_alpha: bool = False,
        learn_rho: bool = False,
        learn_threshold: bool = False,
        surrogate: Surrogate = ATan(),
    ) -> None:
        super().__init__(features)
        self.add_parameter("beta", beta, learn=learn_beta)
        self.add_parameter("alpha", alpha, learn=learn_alpha)
        self.add_parameter("rho", rho, learn=learn_rho)
        self.add_parameter("threshold", threshold, learn=learn_threshold)
        self.surrogate = surrogate

    @staticmethod
    def requires(beta: object, learn_beta: bool, learn_rho: bool) -> None:
        """Refuse to learn a decay that has no effect."""
        if learn_rho and beta == 0 and not learn_beta:
            raise ConfigError("learn_rho: got True, but beta is 0 and not learned, and rho has no effect")

    def zero_state(self, current: Tensor) -> State:
        """Return zeros."""
        zero = torch.zeros_like(current)
        return State(zero, zero, zero)

    def scan(self, current: Sequence[Tensor], state: State) -> Trace:
        """Compute all steps."""
        U, b, S = state
        spikes, membrane = [], []
        for I in current:
            U = self.alpha * U + I - (self.threshold + self.beta * b) * S
            b = self.rho * b + (1 - self.rho) * S
            S = spike(U - self.threshold - self.beta * b, self.surrogate)
            spikes.append(S)
            membrane.append(U)
        return Trace(torch.stack(spikes), torch.stack(membrane), State(U, b, S))
