"""Blobs of a user that make trouble while they are read."""

import os
import resource
import signal
import time
from pathlib import Path

from torch import Tensor
from torch.utils.data import get_worker_info

from mypkg.data import Table, blobs
from snnexp.data import DataModule
from snnexp.encoders import Constant


def in_training(indices: list[int]) -> bool:
    """Whether a batch is one of training, which are shuffled; data are looked at in order before."""
    return indices != sorted(indices)


def sleep(variable: str) -> None:
    """Take as many seconds as a variable says; a file in the current folder tells that this has begun."""
    Path("sleeping").touch()
    time.sleep(float(os.environ.get(variable, "0")))


class Slow(Table):
    """Batches of training after the first ``after`` take as many seconds as the variable SLOW_S says."""

    after, asked = 0, 0

    def __getitem__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        self.asked += in_training(indices)
        if self.asked > self.after:
            sleep("SLOW_S")
        return super().__getitem__(indices)


class Broken(Table):
    """Raises when the second of several processes trains."""

    def __getitem__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        if os.environ.get("LOCAL_RANK") == "1" and in_training(indices):
            raise KeyError("what rank 1 needs")
        return super().__getitem__(indices)


class Cramped(Table):
    """There is no room for a batch in the memory that data workers share with the run."""

    def __getitem__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        if get_worker_info() is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))
        return super().__getitem__(indices)


class Deadly(Table):
    """Ends its data worker, as a system does that runs out of memory."""

    def __getitem__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        if get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(indices)


KINDS = {"slow": Slow, "broken": Broken, "cramped": Cramped, "deadly": Deadly}


class LongStep(Constant):
    """A step takes as many seconds as the variable STEP_S says, after the first ones that LONG_FROM counts."""

    calls = 0

    def __call__(self, values: Tensor) -> Tensor:
        if self.calls >= int(os.environ.get("LONG_FROM", "0")):
            sleep("STEP_S")
        LongStep.calls += 1
        return super().__call__(values)


def trouble(
    kind: str,
    after: int = 0,
    train: int = 64,
    val: int = 0,
    test: int = 32,
    batch_size: int = 16,
    num_workers: int = 0,
    seed: int = 0,
) -> DataModule:
    """Blobs whose training samples are of a kind that makes trouble."""
    data = blobs(train, val, test, batch_size, num_workers, seed)
    data.train = KINDS[kind](data.train.x, data.train.y)  # type: ignore[attr-defined]
    data.train.after = after
    return data
