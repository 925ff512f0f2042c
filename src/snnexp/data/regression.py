"""Linear and square-root targets for the membrane (Henkes and Eshraghian, snnTorch regression tutorial I)."""

from copy import copy
from typing import Annotated, Literal

import torch
from annotated_types import Interval
from torch import Tensor

from snnexp.data.module import DataModule
from snnexp.spec.annotations import Count, Given, Seed, Stackable, Workers
from snnexp.spec.checked import checked
from snnexp.spec.parts import part

Mode = Literal["linear", "sqrt"]
Trajectory = Annotated[int, Interval(ge=2, le=1_000_000)]
"""Number of steps, at least two."""


class RegressionDataset:
    """Random trajectories: x increases linearly from 0 to an end drawn from U(0, 1).

    The target is x itself (``linear``), or sqrt(slope x) with one slope from U(0, 1) per dataset (``sqrt``). The ends
    are drawn in order, then the slope.

    Args:
        num_steps: T.
        num_samples: number of trajectories.
        mode: ``linear`` or ``sqrt``.
        seed: seed of the trajectories; None for PyTorch's global generator, as in the tutorial.

    ``dataset[indices]`` is a batch of inputs and targets, each ``[T, B, 1]``; ``dataset[i]`` a sample ``[T, 1]``.
    """

    @checked
    def __init__(
        self, num_steps: Trajectory = 50, num_samples: Count = 1, mode: Mode = "sqrt", seed: Seed | None = None
    ) -> None:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        ends = torch.rand(num_samples, generator=generator)
        self.features = torch.stack([torch.linspace(0, end, num_steps) for end in ends.tolist()], dim=1).unsqueeze(-1)
        if mode == "linear":
            self.labels = self.features.clone()
        else:
            slope = torch.rand(1, generator=generator)
            self.labels = torch.sqrt(self.features * slope)

    def __len__(self) -> int:
        return self.features.shape[1]

    def __getitem__(self, indices: int | list[int] | Tensor) -> tuple[Tensor, Tensor]:
        return self.features[:, indices], self.labels[:, indices]

    def to(self, device: torch.device) -> "RegressionDataset":
        """Return a copy on a device."""
        other = copy(self)
        other.features, other.labels = self.features.to(device), self.labels.to(device)
        return other


@part(
    target="trace",
    sequences=True,
    inputs=(1,),
    outputs=1,
    num_steps=Given("num_steps"),
    samples=Given("num_samples"),
    stackable=True,
)
@checked
def regression_data(
    mode: Mode,
    num_steps: Trajectory,
    num_samples: Count = 1,
    sample_seed: Stackable[Seed | None] = None,
    batch_size: Count = 1,
    drop_last: bool = False,
    num_workers: Workers = 0,
    seed: Stackable[Seed] = 0,
) -> DataModule:
    """Make the data module of a regression dataset, with the same trajectories for training and test.

    ``sample_seed`` seeds the trajectories, ``seed`` the order of batches. If ``sample_seed`` is null, trajectories are
    drawn from PyTorch's global generator: a run seeds it, draws its data and then its weights, as in the tutorial.
    """
    samples = RegressionDataset(num_steps, num_samples, mode, sample_seed)
    return DataModule(
        samples,
        samples,
        inputs=(1,),
        outputs=1,
        target="trace",
        sequences=True,
        batch_size=batch_size,
        drop_last=drop_last,
        num_workers=num_workers,
        seed=seed,
    )
