"""Description of a set of samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from snnexp.errors import ConfigError
from snnexp.spec.annotations import Count, Steps
from snnexp.spec.checked import check_fields

Target = Literal["labels", "trace", "values", "step_labels"]
"""Kind of target, for B samples, T steps and K outputs:

``labels`` ``[B]``, integers from 0 to K - 1; ``trace`` ``[T, B, K]``, numbers per step; ``values`` ``[B, K]``, numbers
for the whole sequence; ``step_labels`` ``[T, B]``, a class per step.
"""


@dataclass(frozen=True)
class Description:
    """Shapes and meaning of the samples of a data module.

    Args:
        inputs: shape of one input, without time.
        outputs: number of classes, or of target features.
        target: ``labels``, ``trace``, ``values`` or ``step_labels``.
        sequences: whether inputs have a time axis, ``[T, B, *N]``; otherwise they are constant, ``[B, *N]``.
        num_steps: T, if all sequences have the same length; None for constant inputs, or if unknown.
        spikes: whether inputs are spikes, which count as synaptic operations; None to infer it: all values are 0 or 1.
        classes: names of the classes, if any.
        features: names of the input features, if any.
        groups: by split, one group id per sample, such as a patient; None without groups.

    Raises:
        ConfigError: an argument is outside its domain, or the number of names differs from that of classes.
    """

    inputs: tuple[int, ...]
    outputs: Count
    target: Target = "labels"
    sequences: bool = False
    num_steps: Steps | None = None
    spikes: bool | None = None
    classes: Sequence[str] | None = None
    features: Sequence[str] | None = None
    groups: Mapping[str, Sequence[Any]] | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.classes is not None and len(self.classes) != self.outputs:
            raise ConfigError(f"classes: got {len(self.classes)} names, must be {self.outputs}, one for each class")

    @property
    def is_classified(self) -> bool:
        """Whether targets are classes."""
        return self.target in ("labels", "step_labels")

    @property
    def is_timed(self) -> bool:
        """Whether targets have a time axis."""
        return self.target in ("trace", "step_labels")

    def target_shape(self, num_steps: int) -> tuple[int, ...]:
        """Return the shape of one target for ``num_steps`` steps."""
        return (num_steps,) * self.is_timed + (self.outputs,) * (not self.is_classified)
