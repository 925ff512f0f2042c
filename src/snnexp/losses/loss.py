"""The base class of losses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from snnexp.neurons.statistics import Reads, statistic_names
from snnexp.spec.checked import check_fields

Number = float | Tensor
"""A parameter of a loss; a scalar tensor if it differs between members of a stack."""


@dataclass(frozen=True)
class Loss:
    """Abstract base class of losses; ``loss(trace, target)`` returns a scalar."""

    targets: ClassVar[tuple[str, ...]] = ("labels",)
    """The kinds of target that it supports: ``labels``, ``trace``, ``values`` and ``step_labels``."""
    reads: ClassVar[Reads] = "membrane"
    """The statistics of the readout that it reads, see :mod:`snnexp.neurons.statistics`."""
    decoder: ClassVar[str] = "spike_count"
    """The default ``decoder``; for a non-spiking readout, ``max_membrane`` replaces decoders that read spikes."""
    stackable: ClassVar[bool] = False
    """Whether it can be stacked: :meth:`compare` works under ``torch.func.vmap``.

    Not inherited: each subclass must set it itself."""

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, trace: Any, target: Tensor) -> Tensor:
        return self.compare(trace, target, *self.numbers(trace.num_steps))

    def numbers(self, num_steps: int) -> tuple[float | Sequence[float], ...]:
        """Return the ``numbers`` argument of :meth:`compare` for a sequence of ``num_steps`` steps."""
        return ()

    def sees_labels(self, num_steps: int) -> bool:
        """Return False if the loss does not depend on the label for ``num_steps`` steps."""
        return True

    def require_range(self, low: float, high: float) -> None:
        """Check the range of targets.

        Args:
            low: the lowest target.
            high: the highest target.

        Raises:
            ConfigError: the loss is not defined for these targets.
        """

    def compare(self, trace: Any, target: Tensor, *numbers: Any) -> Tensor:
        """Compute the loss; it must not read ``Stackable`` fields of ``self``, which differ between members."""
        raise NotImplementedError

    def compared(self, trace: Any, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output and the target for regression metrics, by default the first statistic in ``reads``.

        A statistic without a time axis is compared with the last step of a target ``[T, B, K]``; a target ``[B, K]`` is
        expanded over time if the statistic has a value for every step.
        """
        output: Tensor = getattr(trace, statistic_names(self.reads)[0])
        return output, target[-1] if target.ndim > output.ndim else target.expand_as(output)
