"""Time an epoch of data loading against a plain PyTorch DataLoader: medians of interleaved rounds, on one thread.

    python scripts/loading.py [ROUNDS]

The 60,000 training images of MNIST below $SNNEXP_DATA_DIR in shuffled batches of 128, from memory (mnist, arrays), from
an uncompressed npz file (arrays, mapped), and image by image through ToTensor and Normalize (dataset).
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset
from torchvision import datasets, transforms

from snnexp.data import DataModule, arrays_data, from_dataset, mnist_data

BATCH = 128
STEPS = [transforms.ToTensor(), transforms.Normalize(0.1307, 0.3081)]


def ours(data: DataModule) -> Callable[[int], None]:
    loader: Any = data.train_dataloader()

    def epoch(number: int) -> None:
        loader.sampler.set_epoch(number)
        for _ in loader:
            pass

    return epoch


def plain(dataset: Any, workers: int = 0) -> Callable[[int], None]:
    loader = DataLoader(
        dataset, BATCH, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
    )

    def epoch(number: int) -> None:
        for _ in loader:
            pass

    return epoch


def cases(root: str, folder: Path) -> dict[str, Callable[[int], None]]:
    """Return the epochs to time, by name."""
    digits = datasets.MNIST(root, train=True)
    images, labels = digits.data[:, None], digits.targets
    file = folder / "digits.npz"
    np.savez(file, inputs=images.numpy(), labels=labels.numpy())
    test = folder / "test.npz"
    np.savez(test, inputs=images[:BATCH].numpy(), labels=labels[:BATCH].numpy())
    common: dict[str, Any] = {"batch_size": BATCH, "drop_last": True}
    files: dict[str, Any] = {"train": str(file), "test": str(test), **common}

    def dataset(workers: int, in_memory: bool = False) -> DataModule:
        other = datasets.MNIST(root, train=False)
        more = {"transform": STEPS, "num_workers": workers, "in_memory": in_memory, "outputs": 10}
        return from_dataset(datasets.MNIST(root, train=True), test=other, **more, **common)

    transformed = datasets.MNIST(root, train=True, transform=transforms.Compose(STEPS))
    return {
        "mnist": ours(mnist_data(root, **common)),
        "arrays": ours(arrays_data(**files)),
        "arrays, mapped": ours(arrays_data(**files, in_memory=False)),
        "plain TensorDataset": plain(TensorDataset(images.float(), labels)),
        "dataset": ours(dataset(0)),
        "plain dataset": plain(transformed),
        "dataset, 2 workers": ours(dataset(2)),
        "plain dataset, 2 workers": plain(transformed, 2),
        "dataset, in memory": ours(dataset(0, True)),
    }


def main(rounds: int = 5) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        epochs = cases(os.environ["SNNEXP_DATA_DIR"], Path(folder))
        seconds: dict[str, list[float]] = {name: [] for name in epochs}
        for number in range(rounds + 1):
            for name, epoch in epochs.items():
                began = time.perf_counter()
                epoch(number)
                # skip the first epoch, which starts the workers
                if number:
                    seconds[name].append(time.perf_counter() - began)
        for name, each in seconds.items():
            print(f"{name:<26}{statistics.median(each):8.3f} s  {min(each):8.3f} to {max(each):.3f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
