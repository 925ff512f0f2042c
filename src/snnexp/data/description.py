"""What a set of samples is: the shapes of a sample, and the meaning of its parts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from snnexp.errors import ConfigError
from snnexp.spec.annotations import Count, Steps
from snnexp.spec.checked import check_fields

Target = Literal["labels", "trace", "values", "step_labels"]
"""What a sample is compared with, by the shape of a batch of B targets over T steps with K outputs:

``labels`` ``[B]``, whole numbers from 0 to K - 1; ``trace`` ``[T, B, K]``, numbers for each step; ``values``
``[B, K]``, numbers that stand for all steps; ``step_labels`` ``[T, B]``, a class for each step.
"""


@dataclass(frozen=True)
class Description:
    """What the samples of a data module are.

    Args:
        inputs: shape of one input, without time.
        outputs: classes, or features of a target.
        target: ``labels``, ``trace``, ``values`` or ``step_labels``.
        sequences: whether inputs have a time axis of their own, ``[T, B, *N]``; else they are constant, ``[B, *N]``.
        num_steps: T, where all sequences have the same; None for constant inputs, and where it is not known.
        spikes: whether inputs are spikes, which cost synaptic operations; None to look whether all are 0 or 1.
        classes: their names, where they have some.
        features: the names of inputs, where they have some.
        groups: by split, one id per sample of what samples have in common, such as a patient; None without groups.

    Raises:
        ConfigError: an argument lies outside its domain, or there are not as many names as classes.
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
        """The shape of one target over ``num_steps`` steps."""
        return (num_steps,) * self.is_timed + (self.outputs,) * (not self.is_classified)
