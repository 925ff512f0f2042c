"""The data module: whole batches, in an order that depends only on the seed and the epoch."""

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
MAX_TMPDIR = 107 - len("/pymp-12345678/listener-12345678")
"""Data workers send batches through a Unix socket below TMPDIR, whose path has at most 107 bytes."""


class Samples(Protocol):
    """A dataset that is indexed by a list of indices and returns a whole batch.

    All samples are read and checked before a run starts, unless an attribute ``checks_itself`` is true: then each batch
    is checked when it is read, as for samples that do not fit into memory. The attribute ``require_range`` of such
    samples is set to a function of the lowest and the highest value, which raises if the encoder does not support them.
    To count labels, all samples are read once, unless an attribute ``targets`` has all labels.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Any) -> tuple[Tensor, Tensor]: ...

    def to(self, device: torch.device) -> "Samples":
        """Return a copy on a device."""
        ...


class DataModule(LightningDataModule):
    """Training, validation and test samples, and their description.

    Args:
        train: training samples.
        test: test samples.
        inputs: see :class:`~snnexp.data.Description`; with ``outputs``, ``target``, ``sequences`` and ``spikes`` a
            short form of ``description``.
        outputs: see ``inputs``.
        target: see ``inputs``.
        sequences: see ``inputs``.
        val: validation samples, if any.
        batch_size: samples per optimizer step, over all processes.
        drop_last: drop the last batch of an epoch if it is incomplete.
        num_workers: number of processes that prepare batches; 0 is fastest for data in memory.
        seed: seed of the order of each epoch.
        spikes: see ``inputs``.
        description: description of the samples, instead of the short form.
        sampling: ``shuffled`` for all samples once per epoch; ``balanced`` for the same number of samples, drawn with
            replacement so that all classes are equally frequent on average.
        scaling: scaling of the inputs, fitted on the training split; saved with a run and applied to other data.

    Raises:
        ConfigError: an argument is outside its domain, or there are too few samples for a full batch.
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
        if num_workers and (length := len(os.fsencode(tempfile.gettempdir()))) > MAX_TMPDIR:
            most = f"TMPDIR has {length} bytes, but data workers support at most {MAX_TMPDIR}"
            raise ConfigError(f"num_workers: {most}; shorten it, or set num_workers=0")
        if drop_last and batch_size > len(train):
            raise ConfigError(f"batch_size: got {batch_size}, must be at most the {len(train)} training samples")
        if sampling == "balanced" and self.target != "labels":
            raise ConfigError(f"sampling: got balanced, but the targets are {self.target}, not labels")
        self.train, self.val, self.test, self.sampling = train, val, test, sampling
        self.scaling = scaling
        self.batch_size, self.drop_last, self.num_workers, self.seed = batch_size, drop_last, num_workers, seed
        self.accumulate = 1
        """Batches per optimizer step, which are loaded as one."""
        self.begin = (0, 0)
        """Position at which training starts: completed epochs, and completed batches of the next epoch."""
        self.waiting_since: float | None = None
        """When the wait for the current batch began; None while not waiting."""
        self.starting_workers = False
        self.workers: set[multiprocessing.process.BaseProcess] = set()
        """Data workers of all loaders."""

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
        """Samples per optimizer step."""
        return self.batch_size * self.accumulate

    @cached_property
    def _labels(self) -> Tensor:
        """Labels of all training samples or their steps, flattened."""
        labels = getattr(self.train, "targets", None)
        if labels is None:
            batches = OrderedBatches(len(self.train), self.batch_size)
            labels = torch.cat([self.train[indices][1].flatten().cpu() for indices in batches])
        return labels.to("cpu", torch.int64).flatten()

    def class_counts(self) -> list[int] | None:
        """Return the number of training samples, or of their steps, per class; None if targets are not classes."""
        return class_counts(self._labels, self.outputs) if self.description.is_classified else None

    def require_shareable(self, processes: int) -> None:
        """Raise :class:`ConfigError` if a training batch cannot be divided equally between ``processes``."""
        samples = min(self.batch_size, len(self.train))
        if samples % processes:
            raise ConfigError(
                f"batch_size: {samples} samples per batch cannot be shared equally by {processes} processes"
            )

    def check_range_with(self, require_range: Callable[[float, float], object]) -> None:
        """Set ``require_range`` of samples that check themselves."""
        for samples in (self.train, self.val, self.test):
            if getattr(samples, "checks_itself", False):
                samples.require_range = require_range  # type: ignore[union-attr]

    def setup(self, stage: str) -> None:
        """Move all samples to the device of the trainer, once and not per batch."""
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
        return [] if self.val is None else self._loader(self.val, self._ordered_batches(self.val))

    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.test, self._ordered_batches(self.test))

    def loader(self, split: str) -> DataLoader[Any]:
        """Return a loader of all samples of ``test``, ``val`` or ``train``, once and in order.

        Raises:
            ConfigError: there is no such split.
        """
        splits = {"test": self.test, "val": self.val, "train": self.train}
        samples = splits.get(split)
        if samples is None:
            known = ", ".join(name for name, samples in splits.items() if samples is not None)
            raise ConfigError(f"split: got {format_value(split)}, these data have {known}")
        return self._loader(samples, self._ordered_batches(samples))

    def smallest_batch(self, limit: int | None) -> int:
        """Return the size of the smallest batch in the first ``limit`` optimizer steps of an epoch; None for all."""
        steps = ShuffledBatches(len(self.train), self.step_size, self.drop_last, self.seed).sizes[:limit]
        return min(samples % self.batch_size or self.batch_size for samples in steps)

    def counts(self, limit: int | None, test_limit: int | None, processes: int = 1) -> dict[str, int]:
        """Return the number of samples in a training epoch, a validation and a test, by split.

        Args:
            limit: number of optimizer steps, and of validation batches; None for all.
            test_limit: number of test batches; None for all.
            processes: number of processes that share each batch.
        """
        batches = ShuffledBatches(len(self.train), self.step_size, self.drop_last, self.seed, 0, processes)
        counts = {"train": sum(batches.sizes[:limit])}
        for split, samples, most in (("val", self.val, limit), ("test", self.test, test_limit)):
            if samples is not None:
                counts[split] = len(samples) if most is None else min(len(samples), most * self.batch_size)
        return counts

    @contextmanager
    def wait(self, waits: bool = True) -> Iterator[None]:
        """Record when the wait for a batch began. If a signal interrupts the wait, kill the data workers."""
        self.waiting_since = time.monotonic() if waits else None
        try:
            yield
        except InterruptedRunError:
            self.end_workers()
            raise
        finally:
            self.waiting_since = None

    def end_workers(self) -> None:
        """Kill the data workers; a regular shutdown would wait for the batches that they are loading."""
        workers, self.workers = self.workers, set()
        if not workers:
            return
        with _ignore_worker_exits():
            for worker in workers:
                worker.kill()
            for worker in workers:
                worker.join()

    def _loader(self, samples: Samples, batches: "Sampler[list[int]]") -> DataLoader[Any]:
        # the sampler yields lists of indices, so the loader neither collates nor pickles single samples
        return _Loader(
            self,
            samples,
            sampler=batches,
            batch_size=None,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            worker_init_fn=_init_worker if self.num_workers else None,
        )

    def _weights(self) -> Tensor:
        """Return the sampling weight of each training sample: 1 / (number of samples of its class)."""
        return 1 / torch.bincount(self._labels)[self._labels].double()

    def _ordered_batches(self, samples: Samples) -> "Sampler[list[int]]":
        return OrderedBatches(len(samples), self.batch_size, *self._rank())

    def _rank(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)


@contextmanager
def _ignore_worker_exits() -> Iterator[None]:
    """Disable PyTorch's SIGCHLD handler, which raises an error when a worker dies; only set in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler)


class _Loader(DataLoader[Any]):
    """Records its waits in the data module, so that a signal can interrupt them."""

    def __init__(self, module: DataModule, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._module = module

    def __iter__(self) -> Any:
        others = set(multiprocessing.active_children())
        # persistent workers first finish the batches of the previous epoch
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


def _init_worker(worker: int) -> None:
    # Ctrl-C and `timeout` also signal the workers, which the run still needs to finish its step
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    torch_worker.ExceptionWrapper = _WorkerError  # type: ignore[attr-defined]
    # the thread that sends batches only prints its errors by default, and the run would wait forever
    Queue._on_queue_feeder_error = _send_error  # type: ignore[attr-defined]


def _send_error(queue: "Queue[Any]", error: Exception, item: tuple[int, Any]) -> None:
    if isinstance(item[1], ExceptionWrapper):
        # the error cannot be sent either, so exit; the run detects the exit
        os._exit(1)
    queue.put((item[0], _SendError(error)))


class _WorkerError(ExceptionWrapper):
    """Sent instead of a batch if a data worker raised an error."""

    def __init__(self, exc_info: Any = None, where: str = "in a data worker") -> None:
        error = sys.exc_info()[1]
        super().__init__(exc_info, where)  # type: ignore[no-untyped-call]
        self.error: SnnexpError | None = None
        if isinstance(error, Exception):
            self.error = error if isinstance(error, SnnexpError) else user_parts.part_error(error, "data")

    def reraise(self) -> None:
        if self.error is None:
            return super().reraise()  # type: ignore[no-untyped-call, no-any-return]
        raise self.error


class _SendError(ExceptionWrapper):
    """Sent instead of a batch that a data worker could not send."""

    def __init__(self, error: Exception) -> None:
        raised = (type(error), error, error.__traceback__)
        super().__init__(raised, "while a data worker sent a batch")  # type: ignore[no-untyped-call]
        # for shared memory, PyTorch raises a RuntimeError with the errno in its text
        match = re.search(r"\((\d+)\)$", str(error)) if isinstance(error, RuntimeError) else None
        self.errno: int | None = int(match[1]) if match else getattr(error, "errno", None)
        self.file = "/dev/shm" if match else getattr(error, "filename", None) or tempfile.gettempdir()

    def reraise(self) -> None:
        if self.errno is None:
            return super().reraise()  # type: ignore[no-untyped-call, no-any-return]
        reason = f"{os.strerror(self.errno)}, needed by data workers; use data.num_workers=0"
        raise OSError(self.errno, reason, self.file)
