"""Data of a user that are not what they say: ``fault`` names what is wrong, or what is merely unusual."""

from typing import Any

import torch
from torch import Tensor

from snnexp.data import DataModule

from .data import CLASSES, FEATURES, Table, draw

INPUTS = {
    "float64": lambda x: x.double(),
    "float16": lambda x: x.half(),
    "uint8": lambda x: (x * 255).to(torch.uint8),
    "int16": lambda x: (x * 100).to(torch.int16),
    "bool": lambda x: x > 0.5,
    "complex": lambda x: x.to(torch.complex64),
    "not a number": lambda x: torch.where(torch.arange(len(x)).view(-1, 1) == len(x) - 1, torch.nan, x),
    "beyond 1": lambda x: torch.where(torch.arange(len(x)).view(-1, 1) == len(x) - 1, 7.0, x),
    "one feature less": lambda x: x[:, 1:],
    "an axis more": lambda x: x.unsqueeze(1),
}
TARGETS = {
    "labels of int32": lambda y: y.int(),
    "labels of uint8": lambda y: y.to(torch.uint8),
    "labels of float": lambda y: y.float(),
    "labels from 1": lambda y: y + 1,
    "labels from -1": lambda y: y - 1,
    "labels in a column": lambda y: y.unsqueeze(1),
    "one-hot labels": lambda y: torch.nn.functional.one_hot(y, CLASSES),
    "another class": lambda y: torch.where(torch.arange(len(y)) == len(y) - 1, CLASSES, y),
}


def table(fault: str, split: str = "train", **options: Any) -> DataModule:
    """Points of four classes, with a fault in one split."""
    parts = {}
    for index, name in enumerate(("train", "val", "test")):
        x, y = draw(64, index)
        if name == split:
            x, y = INPUTS.get(fault, lambda x: x)(x), TARGETS.get(fault, lambda y: y)(y)
        parts[name] = Table(x, y)
    return DataModule(**parts, inputs=(FEATURES,), outputs=CLASSES, target="labels", batch_size=16, **options)


def sequences(fault: str = "", length: int = 16, num_steps: int = 16, samples: int = 64) -> DataModule:
    """Spike trains; ``batch first`` gives them as [B, T, N]."""

    class Swapped(Table):
        def __getitem__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
            x, y = super().__getitem__(indices)
            return (x.transpose(0, 1) if fault == "batch first" else x), y

    parts = {}
    for index, name in enumerate(("train", "test")):
        x, y = draw(samples, index)
        spikes = torch.bernoulli(x.expand(length, *x.shape), generator=torch.Generator().manual_seed(index))
        parts[name] = Swapped(spikes * 0.5 if fault == "halves" else spikes, y, axis=1)
    return DataModule(**parts, inputs=(FEATURES,), outputs=CLASSES, target="labels", sequences=True, batch_size=16)


def traces(fault: str = "") -> DataModule:
    """A trace of two features that the readout should follow."""
    x = torch.rand((10, 8, 3), generator=torch.Generator().manual_seed(0))
    y = {"one feature": x[..., :1], "a step less": x[1:, :, :2]}.get(fault, x[..., :2])

    class Traces(Table):
        def __getitem__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
            return self.x[:, indices], self.y[:, indices]

        def __len__(self) -> int:
            return self.x.shape[1]

    made = Traces(x, y)
    return DataModule(made, made, inputs=(3,), outputs=2, target="trace", sequences=True, batch_size=4)
