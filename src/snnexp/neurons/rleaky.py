"""Leaky integrate-and-fire neuron whose spikes feed back into its own layer.

    R[t] = H(U[t-1] - theta)                     reset by the previous membrane; no gradient flows through R
    base = beta U[t-1] + I[t] + rec(S[t-1])
    subtract:  U[t] = base - R[t] theta      zero:  U[t] = (1 - R[t]) base      none:  U[t] = base
    S[t] = H(U[t] - theta)                       backward: dS/dU = surrogate(U - theta)

    rec:  linear      W S + b          all to all
          one_to_one  V S              each neuron to itself
          conv2d      conv(S, W) + b   neighbours on a map, padded to keep its size

U membrane, S spike, I input current, beta decay per step (clamped to [0, 1]), theta threshold; all dimensionless.
Gradients flow through the feedback, and the bias b acts from the first step on.
Source: Eshraghian et al., Proc. IEEE 111(9), 2023, as computed by snnTorch's ``RLeaky``.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from snnexp.errors import ConfigError
from snnexp.neurons.leaky import Reset
from snnexp.neurons.neuron import Neuron, NeuronParameter, decay, in_precision
from snnexp.neurons.trace import Trace
from snnexp.spec.annotations import Count, Features, Fraction, NonNegative
from snnexp.spec.checked import checked
from snnexp.surrogates import ATan, Surrogate, heaviside, spike
from snnexp.text import shown


class RLeakyState(NamedTuple):
    """Membrane and spikes ``[B, *N]`` after the last step."""

    membrane: Tensor
    spikes: Tensor


class RLeaky(Neuron):
    """Recurrent leaky integrate-and-fire layer; the module's docstring has the equation.

    Args:
        features: neuron axes, an int or a tuple.
        beta: decay per step, in [0, 1].
        threshold: membrane above which a neuron fires.
        feedback: ``linear`` (an ``nn.Linear``), ``conv2d`` (an ``nn.Conv2d``) or ``one_to_one`` (``V``).
        kernel_size: side of the conv2d feedback's kernel, odd.
        V: weight of one_to_one feedback.
        learn_recurrent: train the feedback.
        learn_beta: train the decay.
        learn_threshold: train the threshold.
        reset: what a spike does to the membrane at the next step: ``subtract``, ``zero`` or ``none``.
        surrogate: derivative of the spike.

    Raises:
        ConfigError: an argument lies outside its domain, or the feedback does not fit the features.
    """

    stackable = True
    weights = ("V",)
    beta: Tensor
    threshold: Tensor
    V: Tensor

    @checked
    def __init__(
        self,
        features: Features,
        beta: NeuronParameter[Fraction] = 0.9,
        threshold: NeuronParameter[NonNegative] = 1.0,
        feedback: Literal["linear", "one_to_one", "conv2d"] = "linear",
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
        self.recurrent: nn.Linear | nn.Conv2d | None = None
        if feedback == "one_to_one":
            self.add_parameter("V", V, learn=learn_recurrent)
        else:
            self.recurrent = _synapse(self.features, kernel_size if feedback == "conv2d" else None)
            self.recurrent.requires_grad_(learn_recurrent)
        self.reset = reset
        self.update = {"subtract": _subtract, "zero": _zero, "none": _none}[reset]
        self.surrogate = surrogate

    @staticmethod
    def fits(features: tuple[int, ...], feedback: str, kernel_size: int | None) -> None:
        """Refuse a feedback that the shape of the layer does not allow."""
        if feedback == "linear" and len(features) != 1:
            raise ConfigError(
                f"feedback: linear feedback needs a flat layer, these neurons form a map {list(features)}; "
                "use conv2d or one_to_one"
            )
        if feedback == "conv2d" and len(features) != 3:
            raise ConfigError(
                f"feedback: conv2d feedback needs a map [C, H, W], these neurons are {list(features)}; "
                "use linear or one_to_one"
            )
        if feedback == "conv2d" and (kernel_size is None or kernel_size % 2 == 0):
            raise ConfigError(f"kernel_size: got {shown(kernel_size)}, conv2d feedback needs an odd whole number")

    def reset_feedback(self) -> None:
        if self.recurrent is not None:
            self.recurrent.reset_parameters()

    @property
    def feedback_synapse(self) -> nn.Linear | nn.Conv2d | int:
        return 1 if self.recurrent is None else self.recurrent

    def zero_state(self, current: Tensor) -> RLeakyState:
        return RLeakyState(torch.zeros_like(current), torch.zeros_like(current))

    def scan(self, current: Sequence[Tensor], state: RLeakyState) -> Trace:
        beta, theta = decay(self.beta), self.threshold
        recurrent = self.recurrent
        rec: Callable[[Tensor], Tensor] = lambda S: self.V * S  # noqa: E731
        if recurrent is not None:
            weight = recurrent.weight
            rec = lambda S: recurrent(in_precision(S, weight))  # noqa: E731
        U, S = state
        spikes, membrane = [], []
        for I in current:
            R = heaviside(U.detach() - theta.detach())
            U = self.update(beta * U + I + rec(S), R, theta)
            S = spike(U - theta, self.surrogate)
            spikes.append(S)
            membrane.append(U)
        return Trace(torch.stack(spikes), torch.stack(membrane), RLeakyState(U, S))


def _synapse(features: tuple[int, ...], kernel_size: int | None) -> nn.Linear | nn.Conv2d:
    if kernel_size is None:
        return nn.Linear(features[0], features[0])
    return nn.Conv2d(features[0], features[0], kernel_size, padding=kernel_size // 2)


def _subtract(base: Tensor, R: Tensor, theta: Tensor) -> Tensor:
    return base - R * theta


def _zero(base: Tensor, R: Tensor, theta: Tensor) -> Tensor:
    return (1 - R) * base


def _none(base: Tensor, R: Tensor, theta: Tensor) -> Tensor:
    return base
