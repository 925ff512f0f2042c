"""Spike sequences of three classes: a wave up the channels, a wave down, and no wave."""

from typing import Self

import torch
from torch import Tensor

from snnexp.data import DataModule
from snnexp.spec.annotations import Count, Fraction, Seed, Stackable, Steps
from snnexp.spec.parts import part

CHANNELS = 12


class Samples:
    """Spikes ``[T, n, N]`` and their classes ``[n]``."""

    def __init__(self, spikes: Tensor, labels: Tensor) -> None:
        self.spikes, self.labels = spikes, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        return self.spikes[:, indices], self.labels[indices]

    def to(self, device: torch.device) -> Self:
        """Move the samples to a device."""
        return type(self)(self.spikes.to(device), self.labels.to(device))


def draw(count: int, num_steps: int, noise: float, seed: int) -> Samples:
    """Draw samples, alternating between the classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    place = torch.arange(CHANNELS) / (CHANNELS - 1)
    time = torch.linspace(0, 1, num_steps)[:, None]
    up, down = (torch.exp(-(((time - mean) / 0.1) ** 2)) for mean in (place, 1 - place))
    rates = torch.stack([up, down, torch.full_like(up, float(up.mean()))])
    chances = (1 - noise) * rates[labels].transpose(0, 1) + noise * 0.5
    return Samples((torch.rand(chances.shape, generator=generator) < chances).float(), labels)


@part(target="labels", sequences=True, inputs=(CHANNELS,), outputs=3, stackable=True)
def waves(
    num_steps: Steps,
    train_samples: Count = 192,
    test_samples: Count = 96,
    val_size: Count = 48,
    noise: Fraction = 0.1,
    sample_seed: Seed = 0,
    batch_size: Count = 32,
    seed: Stackable[Seed] = 0,
) -> DataModule:
    """Waves of spikes.

    Args:
        num_steps: length of a sequence.
        train_samples: sequences for training.
        test_samples: sequences for the test.
        val_size: sequences for validation.
        noise: fraction of spikes that are independent of the wave.
        sample_seed: seed of the sequences.
        batch_size: sequences per batch.
        seed: seed of the order of batches.
    """
    counts = (train_samples, test_samples, val_size)
    train, test, val = (draw(count, num_steps, noise, 3 * sample_seed + place) for place, count in enumerate(counts))
    return DataModule(
        train,
        test,
        val=val,
        inputs=(CHANNELS,),
        outputs=3,
        target="labels",
        sequences=True,
        batch_size=batch_size,
        seed=seed,
    )
