"""Adaptive leaky integrate-and-fire neuron: each spike raises the threshold, which then decays.

    alpha = exp(-dt / tau_m),  rho = exp(-dt / tau_adp)
    b[t] = rho b[t-1] + (1 - rho) S[t-1]
    theta[t] = b_j0 + beta_adp b[t]
    U[t] = alpha U[t-1] + (1 - alpha) R_m (I[t] + rec(S[t-1])) - theta[t] S[t-1] dt
    S[t] = H(U[t] - theta[t])                    backward: dS/dU = surrogate(U - theta)

U membrane, S spike, I input current, b adaptation, theta threshold, b_j0 baseline threshold, beta_adp strength of the
adaptation, R_m membrane resistance: all dimensionless; tau_m, tau_adp and dt in ms (the reset is scaled by dt).
rec(S) = W S + c in a recurrent layer, else 0. Gradients flow through all three occurrences of S. U, S and b start at 0;
the authors' code initializes b to b_j0. The recorded membrane is U[t].
Source: Yin, Corradi and Bohte, "Accurate and efficient time-domain classification with adaptive spiking recurrent
neural networks", Nature Machine Intelligence 3, 2021, as computed by ``mem_update_adp`` in the authors' repository
byin-cwi/Efficient-spiking-networks on GitHub.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from snnexp.initializers import LogNormal
from snnexp.neurons.feedback import require_flat
from snnexp.neurons.neuron import Duration, Neuron, NeuronParameter, match_precision
from snnexp.neurons.trace import Trace
from snnexp.spec.annotations import Features, NonNegative, Scale
from snnexp.spec.checked import checked
from snnexp.surrogates import ATan, Surrogate, spike


class ALIFState(NamedTuple):
    """Membrane U, spikes S and adaptation b after the last step, each ``[B, *N]``."""

    membrane: Tensor
    spikes: Tensor
    adaptation: Tensor


class ALIF(Neuron):
    """Adaptive leaky integrate-and-fire layer; see the module docstring for the equation.

    Args:
        features: neuron axes, an int or a tuple; an int if ``recurrent``.
        recurrent: feed spikes back through ``recurrent``, an ``nn.Linear``.
        tau_m: time constant of the membrane, ms; at least dt.
        tau_adp: time constant of the adaptation, ms; at least dt.
        b_j0: baseline threshold.
        beta_adp: strength of the threshold adaptation.
        R_m: membrane resistance.
        learn: names of the parameters to train.
        dt: time step, ms.
        surrogate: surrogate derivative of the spike.

    Raises:
        ConfigError: an argument is out of range, or a recurrent layer has more than one neuron axis.
    """

    stackable = True
    time_unit_s = 1e-3
    tau_m: Tensor
    tau_adp: Tensor
    b_j0: Tensor
    beta_adp: Tensor
    R_m: Tensor

    @checked
    def __init__(
        self,
        features: Features,
        recurrent: bool = False,
        tau_m: NeuronParameter[Duration] = LogNormal(20.0, 5.0),
        tau_adp: NeuronParameter[Duration] = LogNormal(150.0, 10.0),
        b_j0: NeuronParameter[NonNegative] = 0.01,
        beta_adp: NeuronParameter[NonNegative] = 1.8,
        R_m: NeuronParameter[float] = 1.0,
        learn: Sequence[Literal["tau_m", "tau_adp", "b_j0", "beta_adp", "R_m"]] = ("tau_m", "tau_adp"),
        dt: Scale = 1.0,
        surrogate: Surrogate = ATan(),
    ) -> None:
        super().__init__(features)
        self.fits(self.features, recurrent)
        self.dt, self.surrogate = dt, surrogate
        for name, duration in {"tau_m": tau_m, "tau_adp": tau_adp}.items():
            self.add_parameter(name, duration, learn=name in learn, at_least=dt)
        for name, value in {"b_j0": b_j0, "beta_adp": beta_adp, "R_m": R_m}.items():
            self.add_parameter(name, value, learn=name in learn)
        self.recurrent: nn.Linear | None = None
        if recurrent:
            (size,) = self.features
            self.recurrent = nn.Linear(size, size)

    @staticmethod
    def fits(features: tuple[int, ...], recurrent: bool) -> None:
        """Raise :class:`ConfigError` for a recurrent layer with several neuron axes."""
        require_flat(features, recurrent)

    def reset_feedback(self) -> None:
        if self.recurrent is not None:
            self.recurrent.reset_parameters()

    @property
    def feedback_synapse(self) -> nn.Linear | None:
        return self.recurrent

    def zero_state(self, current: Tensor) -> ALIFState:
        return ALIFState(*(torch.zeros_like(current) for _ in range(3)))

    def scan(self, current: Sequence[Tensor], state: ALIFState) -> Trace:
        alpha, rho = torch.exp(-self.dt / self.tau_m), torch.exp(-self.dt / self.tau_adp)
        rec = self.recurrent
        weight = None if rec is None else rec.weight
        U, S, b = state
        spikes, membrane = [], []
        for I in current:
            total_current = I if rec is None or weight is None else I + rec(match_precision(S, weight))
            b = rho * b + (1 - rho) * S
            theta = self.b_j0 + self.beta_adp * b
            U = alpha * U + (1 - alpha) * self.R_m * total_current - theta * S * self.dt
            S = spike(U - theta, self.surrogate)
            spikes.append(S)
            membrane.append(U)
        return Trace(torch.stack(spikes), torch.stack(membrane), ALIFState(U, S, b))
