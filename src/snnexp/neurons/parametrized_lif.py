"""Second-order leaky integrate-and-fire neuron with learnable time constants and thresholds.

    j[t] = i[t-1] + I[t] + W_rec z[t-1]
    u[t] = v[t-1] + dt tau_mem_inv ((v_leak - v[t-1]) + j[t])
    z[t] = H(u[t] - v_th)                        backward: dz/du = surrogate(u - v_th)
    v[t] = (1 - z[t]) u[t] + z[t] v_reset        no gradient flows through z here
    i[t] = j[t] - dt tau_syn_inv j[t]

u, v membrane before and after reset, i synaptic current, z spike, I input current (of a synapse without bias): all
dimensionless; dt in s, tau_mem_inv and tau_syn_inv in 1/s. There are no autapses: the diagonal of W_rec stays zero.
Weights are initialized as randn sqrt(2 / N). The recorded membrane is u, which shows the threshold crossings.
Source: Pehle and Pedersen, Norse (2021), ``LIFRecurrentCell``; Pehle, "Parameter learning in Spiking Neural Networks".
"""

from collections.abc import Sequence
from math import prod, sqrt
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from snnexp.initializers import Normal
from snnexp.neurons.feedback import require_flat
from snnexp.neurons.neuron import Neuron, NeuronParameter, Rate, is_plain, match_precision, stacked_linear
from snnexp.neurons.trace import Trace
from snnexp.spec.annotations import Features, Scale
from snnexp.spec.checked import checked
from snnexp.surrogates import SuperSpike, Surrogate, spike


class ParametrizedLIFState(NamedTuple):
    """Spikes z, membrane v after reset and synaptic current i after the last step, each ``[B, *N]``."""

    z: Tensor
    v: Tensor
    i: Tensor


class Recurrence(nn.Linear):
    """W z with W ``[n, n]``, whose diagonal is masked."""

    no_autapses: Tensor

    def __init__(self, features: int) -> None:
        super().__init__(features, features, bias=False)
        self.register_buffer("no_autapses", 1 - torch.eye(features), persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        weight = self.weight
        return stacked_linear(match_precision(z, weight), weight * self.no_autapses)


class ParametrizedLIF(Neuron):
    """Parametrized leaky integrate-and-fire layer; see the module docstring for the equation.

    Args:
        features: neuron axes, an int or a tuple; an int if ``recurrent``.
        recurrent: feed spikes back through ``recurrent``, an ``nn.Linear`` without bias.
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
        ConfigError: an argument is out of range, or a recurrent layer has more than one neuron axis.
    """

    stackable = True
    synapse_bias = False
    reset_gradient: ClassVar[bool] = False
    """Whether gradients flow through the reset."""
    tau_mem_inv: Tensor
    tau_syn_inv: Tensor
    v_th: Tensor
    v_leak: Tensor
    v_reset: Tensor

    @checked
    def __init__(
        self,
        features: Features,
        recurrent: bool = True,
        tau_mem_inv: NeuronParameter[Rate] = Normal(100.0, 20.0),
        tau_syn_inv: NeuronParameter[Rate] = 200.0,
        v_th: NeuronParameter[float] = Normal(0.5, 0.1),
        v_leak: NeuronParameter[float] = 0.0,
        v_reset: NeuronParameter[float] = 0.0,
        learn: Sequence[Literal["tau_mem_inv", "tau_syn_inv", "v_th", "v_leak", "v_reset"]] = ("tau_mem_inv", "v_th"),
        log_tau: bool = False,
        dt: Scale = 1e-3,
        surrogate: Surrogate = SuperSpike(alpha=100.0),
    ) -> None:
        super().__init__(features)
        self.fits(self.features, recurrent)
        self.dt, self.learn, self.surrogate = dt, tuple(learn), surrogate
        for name, value in {"tau_mem_inv": tau_mem_inv, "tau_syn_inv": tau_syn_inv}.items():
            self.add_parameter(name, value, learn=name in learn, at_most=1 / dt)
        for name, value in {"v_th": v_th, "v_leak": v_leak, "v_reset": v_reset}.items():
            self.add_parameter(name, value, learn=name in learn)
        for name in ("tau_mem_inv", "tau_syn_inv"):
            if log_tau and name in learn:
                parametrize.register_parametrization(self, name, _Exp())
        self.recurrent: Recurrence | None = None
        if recurrent:
            (size,) = self.features
            self.recurrent = Recurrence(size)
        self.reset_feedback()

    @staticmethod
    def fits(features: tuple[int, ...], recurrent: bool) -> None:
        """Raise :class:`ConfigError` for a recurrent layer with several neuron axes."""
        require_flat(features, recurrent)

    def reset_synapse(self, synapse: nn.Linear | nn.Conv2d) -> None:
        nn.init.normal_(synapse.weight, std=sqrt(2 / prod(self.features)))

    def reset_feedback(self) -> None:
        if self.recurrent is not None:
            self.reset_synapse(self.recurrent)
            with torch.no_grad():
                self.recurrent.weight *= self.recurrent.no_autapses

    @property
    def feedback_weight(self) -> Tensor | None:
        """W_rec without autapses; None if the layer is not recurrent."""
        return None if self.recurrent is None else self.recurrent.weight * self.recurrent.no_autapses

    @property
    def feedback_synapse(self) -> int | None:
        return None if self.recurrent is None else self.recurrent.out_features - 1

    def zero_state(self, current: Tensor) -> ParametrizedLIFState:
        return ParametrizedLIFState(*(torch.zeros_like(current) for _ in range(3)))

    def scan(self, current: Sequence[Tensor], state: ParametrizedLIFState) -> Trace:
        decay_mem, decay_syn = self.dt * self.tau_mem_inv, self.dt * self.tau_syn_inv
        rec = self.recurrent
        # computed once for all steps, unless hooks must see each call
        W_rec = self.feedback_weight if rec is not None and is_plain(rec) else None
        z, v, i = state
        spikes, membrane = [], []
        for I in current:
            j = i + I
            if rec is not None:
                j = j + (rec(z) if W_rec is None else stacked_linear(match_precision(z, W_rec), W_rec))
            u = v + decay_mem * ((self.v_leak - v) + j)
            z = spike(u - self.v_th, self.surrogate)
            fired = z if self.reset_gradient else z.detach()
            v = (1 - fired) * u + fired * self.v_reset
            i = j - decay_syn * j
            spikes.append(z)
            membrane.append(u)
        return Trace(torch.stack(spikes), torch.stack(membrane), ParametrizedLIFState(z, v, i))


class _Exp(nn.Module):
    """Parametrization of a positive value by its logarithm."""

    def forward(self, log: Tensor) -> Tensor:
        return log.exp()

    def right_inverse(self, value: Tensor) -> Tensor:
        return value.log()
