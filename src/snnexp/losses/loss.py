"""What losses have in common."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from snnexp.neurons.statistics import Reads, statistic_names
from snnexp.spec.checked import check_fields

Number = float | Tensor
"""A number of a loss; a scalar tensor if each member of a stack has its own."""


@dataclass(frozen=True)
class Loss:
    """A loss with its numbers; ``loss(trace, target)`` is a scalar."""

    targets: ClassVar[tuple[str, ...]] = ("labels",)
    """What it can be compared with, of ``labels``, ``trace``, ``values`` and ``step_labels``."""
    reads: ClassVar[Reads] = "membrane"
    """The statistics that it needs of a readout, such as ``membrane`` or ``spike_count``: one, or several.

    See :mod:`snnexp.neurons.statistics`."""
    decoder: ClassVar[str] = "spike_count"
    """The choice of ``decoder`` that goes with it where none is typed; of a readout that never fires, ``max_membrane``
    takes the place of one that reads spikes."""
    stackable: ClassVar[bool] = False
    """Whether members of a stack may share it: :meth:`compare` can be mapped over them by ``torch.func.vmap``.

    Not inherited: a class says it of what it computes itself."""

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, trace: Any, target: Tensor) -> Tensor:
        return self.compare(trace, target, *self.numbers(trace.num_steps))

    def numbers(self, num_steps: int) -> tuple[float | Sequence[float], ...]:
        """The numbers, or lists of them, that :meth:`compare` takes for a sequence of ``num_steps`` steps."""
        return ()

    def sees_labels(self, num_steps: int) -> bool:
        """Whether the label makes a difference after ``num_steps`` steps."""
        return True

    def require_range(self, low: float, high: float) -> None:
        """Refuse targets that the loss cannot compare with.

        Args:
            low: the lowest target.
            high: the highest.

        Raises:
            ConfigError: one of them is out of range.
        """

    def compare(self, trace: Any, target: Tensor, *numbers: Any) -> Tensor:
        """The loss with numbers that are handed over; members of a stack share what it reads of its own."""
        raise NotImplementedError

    def compared(self, trace: Any, target: Tensor) -> tuple[Tensor, Tensor]:
        """What measures of a difference compare: the first statistic that it ``reads``, and the target.

        A statistic without time is compared with the last step of a target ``[T, B, K]``, and one of every step with
        values ``[B, K]`` that stand for all steps.
        """
        output: Tensor = getattr(trace, statistic_names(self.reads)[0])
        return output, target[-1] if target.ndim > output.ndim else target.expand_as(output)
