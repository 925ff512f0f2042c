"""Predictions of a trained network as CSV."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from numpy.typing import NDArray
from torch import Tensor

from snnexp.decoders import Decoder
from snnexp.record.files import write_whole
from snnexp.training.members import Member, Observer


class Predictions(Observer):
    """Write what the readout says of each sample, batch by batch, in the order of the split.

    Labels: one row per sample, ``index,target,predicted,score_0,...``, with the score of each class that the decoder
    compares. Regression: one row per sample and time step, ``index,step,target_0,...,output_0,...``, in the unit of
    the target. Numbers have as many digits as tell one float32 from another.

    Args:
        handle: of the file.
        decoder: how a class is read off the readout; None for regression.
    """

    def __init__(self, handle: int, decoder: Decoder | None) -> None:
        self.handle, self.decoder = handle, decoder
        self.samples = 0
        """That were written."""

    def on_test_batch_end(self, trainer: Trainer, member: Member, outputs: Any, target: Tensor) -> None:
        trace = outputs["traces"][-1]
        if self.decoder is None:
            names, rows = _of_steps(trace.membrane, target)
        else:
            names, rows = _of_classes(*predicted(trace, self.decoder), target)
        lines = [] if self.samples else [",".join(names)]
        before = self.samples
        for sample, row in rows:
            lines.append(",".join([str(before + sample), *row]))
            self.samples = before + sample + 1
        write_whole(self.handle, "".join(f"{line}\n" for line in lines).encode())


def predicted(trace: Any, decoder: Decoder) -> tuple[Tensor, Tensor]:
    """The class ``[B]`` that a readout's trace means, and the scores ``[B, K]`` that were compared."""
    return decoder(trace), decoder.scores(trace)


Rows = Iterator[tuple[int, list[str]]]
"""The number of a sample within its batch, and the rest of a row."""


def _of_classes(classes: Tensor, scores: Tensor, target: Tensor) -> tuple[list[str], Rows]:
    names = ["index", "target", "predicted", *(f"score_{k}" for k in range(scores.shape[-1]))]
    columns = zip(target.tolist(), classes.tolist(), _array(scores), strict=True)
    return names, ((sample, [str(y), str(k), *_texts(row)]) for sample, (y, k, row) in enumerate(columns))


def _of_steps(output: Tensor, target: Tensor) -> tuple[list[str], Rows]:
    """``output`` and ``target`` are ``[T, B, K]``."""
    wanted, found = _array(target), _array(output)
    numbers = range(found.shape[-1])
    names = ["index", "step", *(f"target_{k}" for k in numbers), *(f"output_{k}" for k in numbers)]
    steps, samples = found.shape[:2]
    places = ((sample, step) for sample in range(samples) for step in range(steps))
    rows = ((s, [str(t), *_texts(wanted[t, s].ravel()), *_texts(found[t, s].ravel())]) for s, t in places)
    return names, rows


def _array(values: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = values.detach().float().cpu().numpy()
    return array


def _texts(row: Iterable[np.float32]) -> list[str]:
    return [str(value) for value in row]
