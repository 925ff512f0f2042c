"""Predictions of a trained network as CSV."""

from collections.abc import Iterator, Mapping
from typing import Any

from lightning.pytorch import Trainer
from numpy.typing import NDArray
from torch import Tensor

from snnexp.decoders import Decoder
from snnexp.losses import Loss
from snnexp.record.files import write_all, write_atomically
from snnexp.record.run import Run
from snnexp.training.members import Member, Observer


class Rows:
    """Formats the predictions of a split as lines of CSV, batch by batch, in the order of the split.

    Labels: one row per sample, ``index,target,predicted,score_0,...``, with the decoder's score of each class.
    Regression: ``index,target_0,...,output_0,...``, the values that the loss compares, in the unit of the target. If
    these vary over time, there is a row per time step and a column ``step`` after ``index``. Numbers have enough
    digits to identify a float32.

    Args:
        decoder: predicts a class from the readout; None for regression.
        loss: the training loss.
    """

    def __init__(self, decoder: Decoder | None, loss: Loss) -> None:
        self.decoder, self.loss = decoder, loss
        self.samples = 0
        """Samples formatted so far."""

    def format(self, outputs: Any, target: Tensor) -> bytes:
        """Return the rows of the next batch; the header precedes the first."""
        trace = outputs["traces"][-1]
        if self.decoder is None:
            output, wanted = self.loss.compared(trace, target)
            columns, is_timed = {"target_": wanted, "output_": output}, output.ndim > 2
        else:
            scores = self.decoder.scores(trace)
            columns = {"target": target, "predicted": self.decoder(trace), "score_": scores}
            is_timed = scores.ndim > 2
        arrays = {name: _array(value if is_timed else value.unsqueeze(0)) for name, value in columns.items()}
        steps, samples = next(iter(arrays.values())).shape[:2]
        lines = [] if self.samples else [",".join(["index", *(["step"] if is_timed else []), *_names(arrays)])]
        for sample in range(samples):
            for step in range(steps):
                place = [self.samples + sample, *([step] if is_timed else [])]
                row = (str(value) for array in arrays.values() for value in array[step, sample].ravel())
                lines.append(",".join([*map(str, place), *row]))
        self.samples += samples
        return "".join(f"{line}\n" for line in lines).encode()


class Predictions(Observer):
    """Write the :class:`Rows` of each batch to a file.

    Args:
        handle: file descriptor.
        decoder: as for :class:`Rows`; likewise ``loss``.
    """

    def __init__(self, handle: int, decoder: Decoder | None, loss: Loss) -> None:
        self.handle, self.rows = handle, Rows(decoder, loss)

    def on_test_batch_end(self, trainer: Trainer, member: Member, outputs: Any, target: Tensor) -> None:
        write_all(self.handle, self.rows.format(outputs, target))


class PredictionsOfRun(Observer):
    """Write the :class:`Rows` of a run's test to ``predictions.csv``, atomically.

    Args:
        run: the run.
        decoder: as for :class:`Rows`; likewise ``loss``.
    """

    def __init__(self, run: Run, decoder: Decoder | None, loss: Loss) -> None:
        self.run, self.decoder, self.loss = run, decoder, loss

    def on_test_start(self, trainer: Trainer, member: Member) -> None:
        self.rows, self.written = Rows(self.decoder, self.loss), bytearray()

    def on_test_batch_end(self, trainer: Trainer, member: Member, outputs: Any, target: Tensor) -> None:
        self.written += self.rows.format(outputs, target)

    def on_test_end(self, trainer: Trainer, member: Member) -> None:
        write_atomically(self.run.path / "predictions.csv", self.written)


def _names(arrays: Mapping[str, NDArray[Any]]) -> Iterator[str]:
    """Yield the column names; a name that ends with ``_`` is numbered."""
    for name, array in arrays.items():
        count = array[0, 0].size
        yield from (f"{name}{k}" for k in range(count)) if name.endswith("_") else (name,)


def _array(values: Tensor) -> NDArray[Any]:
    # NumPy has no bfloat16
    array: NDArray[Any] = (values.float() if values.is_floating_point() else values).detach().cpu().numpy()
    return array
