"""The data module: whole batches out of memory, in an order that depends on the seed and the epoch alone."""

import multiprocessing
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from multiprocessing.queues import Queue
from typing import Any, Literal, Protocol

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader, Sampler
from torch.utils.data._utils import worker as torch_worker

from snnexp import limits
from snnexp.config import user_parts
from snnexp.data.batches import OrderedBatches, ShuffledBatches
from snnexp.data.description import Description, Target
from snnexp.data.scaling import Scaling
from snnexp.data.splits import class_counts
from snnexp.errors import ConfigError, InterruptedRunError, SnnexpError
from snnexp.spec.annotations import Count, Seed, Workers
from snnexp.spec.checked import checked
from snnexp.text import format_value

Sampling = Literal["shuffled", "balanced"]
LONGEST_TMPDIR = 107 - len("/pymp-12345678/listener-12345678")
"""Data workers hand over batches through a socket in a folder there, and the path of a socket has 107 bytes at most."""


class Samples(Protocol):
    """A dataset whose index is a list of samples and whose item is a whole batch.

    All of it is read and checked before a run begins, unless an attribute ``checks_itself`` says that each batch is
    checked when it is read, as for samples that do not fit into memory; such samples are given an attribute
    ``require_range``, a function that raises for a lowest and a highest value that the encoder cannot take.
    Where labels are counted, samples are read for them once, unless an attribute ``targets`` has them all.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Any) -> tuple[Tensor, Tensor]: ...

    def to(self, device: torch.device) -> "Samples":
        """The same samples in the memory of a device."""
        ...


class DataModule(LightningDataModule):
    """Training, validation and test samples, and what they are.

    Args:
        train: training samples.
        test: test samples.
        inputs: as of :class:`~snnexp.data.Description`; with ``outputs``, ``target``, ``sequences`` and ``spikes`` a
            short form of a description.
        outputs: see ``inputs``.
        target: see ``inputs``.
        sequences: see ``inputs``.
        val: validation samples, if any.
        batch_size: samples per optimiser step, over all processes together.
        drop_last: leave out an epoch's last batch where it is not full.
        num_workers: processes that prepare batches; 0 is fastest for data in memory.
        seed: fixes the order of each epoch.
        spikes: see ``inputs``.
        description: of the samples, in place of the short form.
        sampling: what an epoch goes over: all samples, ``shuffled``; or as many, drawn with replacement so that each
            class is drawn equally often on average, ``balanced``.
        scaling: of the inputs, fitted on the training split; a run keeps it for other data.

    Raises:
        ConfigError: an argument lies outside its domain, or no full batch can be made.
    """

    @checked
    def __init__(
        self,
        train: Samples,
        test: Samples,
        inputs: tuple[int, ...] = (),
        outputs: int = 0,
        target: Target = "labels",
        sequences: bool = False,
        val: Samples | None = None,
        batch_size: Count = 128,
        drop_last: bool = False,
        num_workers: Workers = 0,
        seed: Seed = 0,
        spikes: bool | None = None,
        description: Description | None = None,
        sampling: Sampling = "shuffled",
        scaling: Scaling | None = None,
    ) -> None:
        super().__init__()
        short = (tuple(inputs), outputs, target, sequences)
        self.description = description or Description(*short, spikes=spikes)
        limits.require_processes("num_workers", num_workers)
        limits.require_files("num_workers", num_workers)
        if num_workers and (length := len(os.fsencode(tempfile.gettempdir()))) > LONGEST_TMPDIR:
            most = f"TMPDIR has {length} bytes, and data workers need one of at most {LONGEST_TMPDIR}"
            raise ConfigError(f"num_workers: {most}; shorten it, or set num_workers=0")
        if drop_last and batch_size > len(train):
            raise ConfigError(f"batch_size: got {batch_size}, must be at most the {len(train)} training samples")
        if sampling == "balanced" and self.target != "labels":
            raise ConfigError(f"sampling: got balanced, and the targets are no labels, but {self.target}")
        self.train, self.val, self.test, self.sampling = train, val, test, sampling
        self.scaling = scaling
        self.batch_size, self.drop_last, self.num_workers, self.seed = batch_size, drop_last, num_workers, seed
        self.accumulate = 1
        """Batches of an optimiser step, which come as one."""
        self.begin = (0, 0)
        """Where training begins: epochs that are done, and batches of the next one that are."""
        self.waiting_since: float | None = None
        """When the wait for a batch began; None while none is waited for."""
        self.starting_workers = False
        self.workers: set[multiprocessing.process.BaseProcess] = set()
        """The data workers of all loaders."""

    @property
    def inputs(self) -> tuple[int, ...]:
        return self.description.inputs

    @property
    def outputs(self) -> int:
        return self.description.outputs

    @property
    def target(self) -> Target:
        return self.description.target

    @property
    def sequences(self) -> bool:
        return self.description.sequences

    @property
    def num_steps(self) -> int | None:
        return self.description.num_steps

    @property
    def spikes(self) -> bool | None:
        return self.description.spikes

    @property
    def step_size(self) -> int:
        """Samples of an optimiser step."""
        return self.batch_size * self.accumulate

    @cached_property
    def _labels(self) -> Tensor:
        """Those of all training samples, ``[N]``, or of all their steps."""
        known = getattr(self.train, "targets", None)
        if known is None:
            batches = OrderedBatches(len(self.train), self.batch_size)
            known = torch.cat([self.train[indices][1].flatten().cpu() for indices in batches])
        return known.to("cpu", torch.int64).flatten()

    def class_counts(self) -> list[int] | None:
        """How many training samples, or steps of them, each class has; None where targets are no labels."""
        return class_counts(self._labels, self.outputs) if self.description.is_classified else None

    def require_shareable(self, processes: int) -> None:
        """Raise :class:`ConfigError` unless that many processes can share a batch of training samples equally."""
        samples = min(self.batch_size, len(self.train))
        if samples % processes:
            raise ConfigError(
                f"batch_size: {samples} samples per batch cannot be shared equally by {processes} processes"
            )

    def check_range_with(self, require_range: Callable[[float, float], object]) -> None:
        """Let samples that check themselves refuse the lowest and highest value that ``require_range`` refuses."""
        for samples in (self.train, self.val, self.test):
            if getattr(samples, "checks_itself", False):
                samples.require_range = require_range  # type: ignore[union-attr]

    def setup(self, stage: str) -> None:
        """Move the samples to the device that will use them, once and not batch by batch."""
        device = torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
        if device.type != "cpu" and self.num_workers == 0:
            self.train, self.test = self.train.to(device), self.test.to(device)
            self.val = None if self.val is None else self.val.to(device)

    def train_dataloader(self) -> DataLoader[Any]:
        rank, world = self._rank()
        weights = self._weights() if self.sampling == "balanced" else None
        batches = ShuffledBatches(
            len(self.train), self.step_size, self.drop_last, self.seed, rank, world, self.begin, weights
        )
        return self._loader(self.train, batches)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        return [] if self.val is None else self._loader(self.val, self._in_order(self.val))

    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.test, self._in_order(self.test))

    def loader(self, split: str) -> DataLoader[Any]:
        """All samples of ``test``, ``val`` or ``train``, once and in order.

        Raises:
            ConfigError: there is no such split.
        """
        splits = {"test": self.test, "val": self.val, "train": self.train}
        samples = splits.get(split)
        if samples is None:
            there = ", ".join(name for name, samples in splits.items() if samples is not None)
            raise ConfigError(f"split: got {format_value(split)}, these data have {there}")
        return self._loader(samples, self._in_order(samples))

    def smallest_batch(self, limit: int | None) -> int:
        """Samples of the smallest batch of an epoch of training with so many optimiser steps; None for all steps."""
        steps = ShuffledBatches(len(self.train), self.step_size, self.drop_last, self.seed).sizes[:limit]
        return min(samples % self.batch_size or self.batch_size for samples in steps)

    def counts(self, limit: int | None, test_limit: int | None, processes: int = 1) -> dict[str, int]:
        """How many samples an epoch of training, a validation and a test go over, by split.

        Args:
            limit: optimiser steps, and batches of validation; None for all.
            test_limit: batches of the test; None for all.
            processes: that share each batch.
        """
        batches = ShuffledBatches(len(self.train), self.step_size, self.drop_last, self.seed, 0, processes)
        found = {"train": sum(batches.sizes[:limit])}
        for split, samples, most in (("val", self.val, limit), ("test", self.test, test_limit)):
            if samples is not None:
                found[split] = len(samples) if most is None else min(len(samples), most * self.batch_size)
        return found

    @contextmanager
    def wait(self, waits: bool = True) -> Iterator[None]:
        """Note when a wait for a batch began; a signal that ends it ends the data workers, whatever they are at."""
        self.waiting_since = time.monotonic() if waits else None
        try:
            yield
        except InterruptedRunError:
            self.end_workers()
            raise
        finally:
            self.waiting_since = None

    def end_workers(self) -> None:
        """Kill the data workers: the end of the run would wait for the batches that they are at."""
        workers, self.workers = self.workers, set()
        if not workers:
            return
        with _deaths_ignored():
            for worker in workers:
                worker.kill()
            for worker in workers:
                worker.join()

    def _loader(self, samples: Samples, batches: "Sampler[list[int]]") -> DataLoader[Any]:
        # the sampler's items are whole batches, so that the loader neither collates nor pickles single samples
        return _Loader(
            self,
            samples,
            sampler=batches,
            batch_size=None,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            worker_init_fn=_begin_worker if self.num_workers else None,
        )

    def _weights(self) -> Tensor:
        """Of each training sample: one over the samples of its class."""
        return 1 / torch.bincount(self._labels)[self._labels].double()

    def _in_order(self, samples: Samples) -> "Sampler[list[int]]":
        return OrderedBatches(len(samples), self.batch_size, *self._rank())

    def _rank(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)


@contextmanager
def _deaths_ignored() -> Iterator[None]:
    """PyTorch takes the death of a worker for an error; that handler, as any, is set in the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler)


class _Loader(DataLoader[Any]):
    """Notes when it waits: a signal then need not wait as well."""

    def __init__(self, module: DataModule, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._module = module

    def __iter__(self) -> Any:
        others = set(multiprocessing.active_children())
        # persistent workers first finish what they had begun in the epoch before
        with self._module.wait(self._iterator is not None):
            self._module.starting_workers = True
            try:
                batches = super().__iter__()
            finally:
                self._module.starting_workers = False
                self._module.workers |= {*multiprocessing.active_children()} - others
        return _Batches(self._module, batches)


class _Batches:
    def __init__(self, module: DataModule, batches: Iterator[Any]) -> None:
        self.module, self.batches = module, batches

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        with user_parts.wrap_errors("data"), self.module.wait():
            return next(self.batches)


def _begin_worker(worker: int) -> None:
    # Ctrl-C and `timeout` reach workers as well, and the run still needs them to finish its step
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    torch_worker.ExceptionWrapper = _Raised  # type: ignore[attr-defined]
    # a batch is sent in a thread, whose errors are else printed only, and the run waits for the batch for ever
    Queue._on_queue_feeder_error = _send_error  # type: ignore[attr-defined]


def _send_error(queue: "Queue[Any]", error: Exception, item: tuple[int, Any]) -> None:
    if isinstance(item[1], ExceptionWrapper):
        # that an error cannot be sent either is seen by the end of this process
        os._exit(1)
    queue.put((item[0], _NotSent(error)))


class _Raised(ExceptionWrapper):
    """What the run gets instead of a batch for which its data worker has raised an error."""

    def __init__(self, exc_info: Any = None, where: str = "in a data worker") -> None:
        error = sys.exc_info()[1]
        super().__init__(exc_info, where)  # type: ignore[no-untyped-call]
        self.told: SnnexpError | None = None
        if isinstance(error, Exception):
            self.told = error if isinstance(error, SnnexpError) else user_parts.part_error(error, "data")

    def reraise(self) -> None:
        if self.told is None:
            return super().reraise()  # type: ignore[no-untyped-call, no-any-return]
        raise self.told


class _NotSent(ExceptionWrapper):
    """What the run gets instead of a batch that its data worker could not send."""

    def __init__(self, error: Exception) -> None:
        raised = (type(error), error, error.__traceback__)
        super().__init__(raised, "while a data worker sent a batch")  # type: ignore[no-untyped-call]
        # of shared memory, PyTorch tells the system's error as text
        found = re.search(r"\((\d+)\)$", str(error)) if isinstance(error, RuntimeError) else None
        self.errno: int | None = int(found[1]) if found else getattr(error, "errno", None)
        self.file = "/dev/shm" if found else getattr(error, "filename", None) or tempfile.gettempdir()

    def reraise(self) -> None:
        if self.errno is None:
            return super().reraise()  # type: ignore[no-untyped-call, no-any-return]
        reason = f"{os.strerror(self.errno)}, and data workers need it; data.num_workers=0 does without"
        raise OSError(self.errno, reason, self.file)
