"""Encoders: values ``[B, *N]`` to currents or spikes ``[T, B, *N]``, or ``[1, B, *N]`` if constant over time.

They have no parameters and do not propagate gradients.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from snnexp.errors import ConfigError
from snnexp.sparse import SparseSpikes
from snnexp.spec.annotations import AtMost, Positive, Scale, Steps
from snnexp.spec.checked import check_fields


@dataclass(frozen=True)
class Encoder:
    """Abstract base class of encoders; ``encoder(values)`` returns currents or spikes."""

    spikes: ClassVar[bool] = False
    """Whether the output is spikes, which are counted as synaptic operations, or currents."""
    takes_sequences: ClassVar[bool | Literal["both"]] = False
    """Whether the input is a sequence ``[T, B, *N]``, not ``[B, *N]``; ``both`` if either is supported."""
    constant: ClassVar[bool] = False
    """Whether the output is a single step, constant over time."""
    draws: ClassVar[bool] = False
    """Whether it draws random numbers."""
    stackable: ClassVar[bool] = False
    """Whether it can be stacked: samples are encoded independently.

    Not inherited: each subclass must set it itself."""

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, values: Tensor) -> Tensor:
        raise NotImplementedError

    def for_data(self, sequences: bool) -> "Encoder":
        """Return the encoder to use for sequences, or for data that are constant over time."""
        return self

    def require_range(self, low: float, high: float) -> None:
        """Raise :class:`ConfigError` if values from ``low`` to ``high`` cannot be encoded."""

    def sparse(self, values: Tensor) -> SparseSpikes:
        """Return the same spikes in sparse format; optional, for encoders with few spikes."""
        raise NotImplementedError


@dataclass(frozen=True)
class Sequence(Encoder):
    """Pass sequences ``[T, B, *N]`` through unchanged."""

    stackable = True
    takes_sequences = True

    def __call__(self, values: Tensor) -> Tensor:
        return values.detach()


@dataclass(frozen=True)
class Constant(Encoder):
    """The same current at every step: ``[B, *N]`` becomes ``[1, B, *N]``, so that synapses run once, not T times."""

    stackable = True
    constant = True

    def __call__(self, values: Tensor) -> Tensor:
        return values.detach().unsqueeze(0)


@dataclass(frozen=True)
class Direct(Constant):
    """Use inputs as currents: :class:`Constant` for constant data, :class:`Sequence` for sequences."""

    stackable = True
    takes_sequences = "both"

    def for_data(self, sequences: bool) -> Encoder:
        return Sequence() if sequences else self


@dataclass(frozen=True)
class ConstantCurrentLIF(Encoder):
    """Spikes of a LIF neuron with constant input current x.

    u[t] = v[t-1] + dt tau_mem_inv ((v_leak - v[t-1]) + x)
    z[t] = H(u[t] - v_th),  v[t] = (1 - z[t]) u[t] + z[t] v_reset

    dt in s, tau_mem_inv in 1/s. Source: Norse's ``ConstantCurrentLIFEncoder``.
    """

    stackable = True
    spikes = True
    num_steps: Steps
    tau_mem_inv: Annotated[Positive, AtMost("1 / dt", "per s")] = 100.0
    v_th: float = 1.0
    v_leak: float = 0.0
    v_reset: float = 0.0
    dt: Scale = 1e-3

    @torch.no_grad()
    def __call__(self, values: Tensor) -> Tensor:
        active = self._can_fire(values).flatten().nonzero().squeeze(1)
        spikes = values.new_zeros((self.num_steps, *values.shape))
        spikes.view(self.num_steps, -1)[:, active] = self._fire(values.flatten()[active])
        return spikes

    def require_range(self, low: float, high: float) -> None:
        if not self._fire(torch.tensor([low, high])).any():
            raise ConfigError(
                f"encoder: no value of these data, from {low:g} to {high:g}, causes a spike within {self.num_steps} "
                "steps; use a lower encoder.v_th, more num_steps, or data=mnist_standardized"
            )

    @torch.no_grad()
    def sparse(self, values: Tensor) -> SparseSpikes:
        """Return the same spikes in sparse format."""
        shape, neurons = torch.Size((self.num_steps, *values.shape)), values[0].numel()
        active = self._can_fire(values).flatten().nonzero().squeeze(1)
        step, index = self._fire(values.flatten()[active]).nonzero(as_tuple=True)
        # 32-bit indices halve the memory traffic
        sample, neuron = (active // neurons).int(), (active % neurons).int()
        row = step.int().mul_(len(values)).add_(sample.index_select(0, index))
        return SparseSpikes(shape, row, neuron.index_select(0, index))

    def _can_fire(self, values: Tensor) -> Tensor:
        """Return False where a value never fires: v starts at 0 and converges to v_leak + x below the threshold."""
        rounding = 1e-4 * max(1.0, abs(self.v_th))
        if self.v_th <= rounding:
            return torch.ones_like(values, dtype=torch.bool)
        return self.v_leak + values > self.v_th - rounding

    def _fire(self, values: Tensor) -> Tensor:
        """Return the spikes ``[T, n]`` of values ``[n]``."""
        v, leak = torch.zeros_like(values), values.new_full((), self.v_leak)
        u, change, silent = (torch.empty_like(values) for _ in range(3))
        spikes = values.new_empty((self.num_steps, *values.shape))
        for z in spikes.unbind(0):
            torch.sub(leak, v, out=change).add_(values).mul_(self.dt * self.tau_mem_inv)
            torch.add(v, change, out=u)
            # reuse the buffer change
            torch.gt(torch.sub(u, self.v_th, out=change), 0, out=z)
            torch.le(change, 0, out=silent)
            torch.mul(u, silent, out=v).add_(z, alpha=self.v_reset)
        return spikes


@dataclass(frozen=True)
class Bernoulli(Encoder):
    """Rate coding: a value x in [0, 1] fires with probability x, independently at each step."""

    stackable = True
    spikes = True
    draws = True
    num_steps: Steps

    @torch.no_grad()
    def __call__(self, values: Tensor) -> Tensor:
        require_unit_interval(values)
        return torch.bernoulli(values.expand(self.num_steps, *values.shape))

    def require_range(self, low: float, high: float) -> None:
        require_unit_interval(torch.tensor([low, high]))


@dataclass(frozen=True)
class Rate(Bernoulli):
    """Rate coding with a gain: a value x in [0, 1] fires with probability min(1, gain x) at each step.

    Source: snnTorch's ``spikegen.rate``.
    """

    stackable = True
    gain: Scale = 1.0

    @torch.no_grad()
    def __call__(self, values: Tensor) -> Tensor:
        require_unit_interval(values)
        return super().__call__((self.gain * values).clamp(max=1))


@dataclass(frozen=True)
class Delta(Encoder):
    """Delta modulation of sequences ``[T, B, *N]``: a feature fires if it rises by ``threshold`` or more in one step.

    s[t] = 1 if x[t] - x[t-1] >= threshold, else 0, with x[-1] = 0

    With ``off_spikes``, s[t] = -1 if x[t] - x[t-1] <= -threshold. With ``padding``, x[-1] = x[0], so that there are no
    spikes in the first step. Source: snnTorch's ``spikegen.delta``.
    """

    stackable = True
    spikes = True
    takes_sequences = True
    threshold: Positive = 0.1
    padding: bool = False
    off_spikes: bool = False

    @torch.no_grad()
    def __call__(self, values: Tensor) -> Tensor:
        previous = values[:1] if self.padding else torch.zeros_like(values[:1])
        change = values.diff(dim=0, prepend=previous)
        rises = change >= self.threshold
        if not self.off_spikes:
            return rises.to(values.dtype)
        return rises.to(values.dtype) - (change <= -self.threshold).to(values.dtype)


@dataclass(frozen=True)
class Latency(Encoder):
    """Latency coding: a value x in (0, 1] fires once, at step round((T - 1) (1 - x)), and 0 never fires."""

    stackable = True
    spikes = True
    num_steps: Steps

    @torch.no_grad()
    def __call__(self, values: Tensor) -> Tensor:
        require_unit_interval(values)
        time = torch.round((self.num_steps - 1) * (1 - values))
        time = torch.where(values > 0, time, -1.0)
        steps = torch.arange(self.num_steps, device=values.device).view(-1, *[1] * values.ndim)
        return (time == steps).to(values.dtype)

    def require_range(self, low: float, high: float) -> None:
        require_unit_interval(torch.tensor([low, high]))


def require_unit_interval(values: Tensor) -> None:
    """Raise :class:`ConfigError` unless all values are in [0, 1]."""
    low, high = values.min().item(), values.max().item()
    if not (low >= 0 and high <= 1):
        raise ConfigError(f"encoder: requires values from 0 to 1, got {low:g} to {high:g}; use data=mnist")
