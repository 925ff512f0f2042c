"""Signals with a bump at one of three positions; each access shifts the bump and adds noise."""

import random

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

LENGTH = 16


class Bumps(Dataset[tuple[Tensor, int]]):
    """Bumps of three classes.

    Args:
        count: number of samples.
        noise: standard deviation of the noise, drawn at each access.
        jitter: maximum shift of a bump, drawn at each access.
        spikes: number of steps of spike sequences; 0 for constant signals.
        fault_at: index of a sample that raises an error; -1 for none.
        peak_at: index of a sample that is ten times as high; -1 for none.
    """

    classes = ("left", "middle", "right")

    def __init__(
        self,
        count: int = 96,
        noise: float = 0.05,
        jitter: int = 1,
        spikes: int = 0,
        fault_at: int = -1,
        peak_at: int = -1,
    ) -> None:
        self.count, self.noise, self.jitter, self.spikes = count, noise, jitter, spikes
        self.fault_at, self.peak_at = fault_at, peak_at
        self.subjects = [index // 6 for index in range(count)]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == self.fault_at:
            raise KeyError(f"no sample {index}")
        label = index % 3
        place = 3 + 5 * label + random.randint(-self.jitter, self.jitter)
        height = 10 if index == self.peak_at else 1
        signal = height * np.exp(-(((np.arange(LENGTH) - place) / 1.5) ** 2)) * np.random.uniform(0.9, 1.0)
        x = torch.from_numpy(signal).float() + self.noise * torch.randn(LENGTH)
        if self.spikes:
            x = (torch.rand(self.spikes, LENGTH) < x).float()
        return x, label


class Scaled:
    """Multiply x by a factor.

    Args:
        factor: the factor.
    """

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.factor
