"""Recurrent feedback: the spikes of a layer as input of the same layer.

linear      W S + b          all to all
one_to_one  V S              each neuron to itself
conv2d      conv(S, W) + b   neighbors on a feature map, padded to keep its size
"""

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from snnexp.errors import ConfigError
from snnexp.neurons.neuron import Neuron, NeuronParameter, match_precision
from snnexp.text import format_value

Feedback = Literal["linear", "one_to_one", "conv2d"]


class _FeedbackNeuron(Neuron):
    """Abstract base class of neurons with feedback.

    A subclass calls :meth:`add_feedback` in its constructor and :meth:`feedback_function` once in its scan.
    """

    weights = ("V",)
    V: Tensor
    recurrent: nn.Linear | nn.Conv2d | None

    @staticmethod
    def fits(features: tuple[int, ...], feedback: str, kernel_size: int | None) -> None:
        """Raise :class:`ConfigError` if the feedback does not support the shape of the layer."""
        if feedback == "linear" and len(features) != 1:
            raise ConfigError(
                f"feedback: linear feedback requires a flat layer, got shape {list(features)}; use conv2d or one_to_one"
            )
        if feedback == "conv2d" and len(features) != 3:
            raise ConfigError(
                f"feedback: conv2d feedback requires a feature map [C, H, W], got shape {list(features)}; "
                "use linear or one_to_one"
            )
        if feedback == "conv2d" and (kernel_size is None or kernel_size % 2 == 0):
            raise ConfigError(
                f"kernel_size: got {format_value(kernel_size)}, conv2d feedback requires an odd whole number"
            )

    def add_feedback(self, feedback: Feedback, kernel_size: int | None, V: NeuronParameter[float], learn: bool) -> None:
        """Create the feedback synapse, or the parameter V of one_to_one feedback.

        Args:
            feedback: ``linear`` (an ``nn.Linear``), ``conv2d`` (an ``nn.Conv2d``) or ``one_to_one`` (``V``).
            kernel_size: side of the convolution kernel of conv2d feedback, odd.
            V: weight of one_to_one feedback.
            learn: train the feedback.
        """
        self.recurrent = None
        if feedback == "one_to_one":
            self.add_parameter("V", V, learn=learn)
        else:
            self.recurrent = _synapse(self.features, kernel_size if feedback == "conv2d" else None)
            self.recurrent.requires_grad_(learn)

    def feedback_function(self) -> Callable[[Tensor], Tensor]:
        """Return the function that maps the previous spikes, ``[B, *N]``, to the feedback current, ``[B, *N]``."""
        recurrent = self.recurrent
        if recurrent is None:
            return lambda S: self.V * S
        # read once: a parametrization recomputes the weight at each access
        weight = recurrent.weight
        return lambda S: recurrent(match_precision(S, weight))

    def reset_feedback(self) -> None:
        if self.recurrent is not None:
            self.recurrent.reset_parameters()

    @property
    def feedback_synapse(self) -> nn.Linear | nn.Conv2d | int:
        return 1 if self.recurrent is None else self.recurrent


def require_flat(features: tuple[int, ...], recurrent: bool) -> None:
    """Raise :class:`ConfigError` for a recurrent layer with several neuron axes."""
    if recurrent and len(features) != 1:
        raise ConfigError(f"recurrent: a recurrent layer must be flat, got shape {list(features)}; use false")


def _synapse(features: tuple[int, ...], kernel_size: int | None) -> nn.Linear | nn.Conv2d:
    if kernel_size is None:
        return nn.Linear(features[0], features[0])
    return nn.Conv2d(features[0], features[0], kernel_size, padding=kernel_size // 2)
