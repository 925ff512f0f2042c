"""Parts of a user with the mistakes that authors make: ``fault`` names one."""

import builtins
import errno
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from snnexp.data import DataModule
from snnexp.losses import MSEMembrane
from snnexp.network import MLP
from snnexp.neurons import Leaky, Neuron, Trace

from .data import Table, blobs, draw

RAISED = {
    # as PyTorch does from a signal handler, in whatever code is running
    "killed worker": RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
    "too many files": OSError(errno.EMFILE, "Too many open files"),
    "no memory": RuntimeError("can't allocate memory: you tried to allocate 9 bytes"),
}


def fail(fault: str, now: str) -> None:
    """Raise what a fault says where it says so, such as ``KeyError in scan``."""
    kind, _, where = fault.partition(" in ")
    if where == now:
        if kind == "swallowed signal":
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            except Exception as error:
                raise RuntimeError("what it was about to do") from error
        raise RAISED.get(kind) or getattr(builtins, kind)("what it needs")


class Own(Leaky):
    """A leaky neuron."""

    def __new__(cls, features: int, fault: str = "") -> Any:
        return nn.Linear(features, features) if fault == "no neuron" else super().__new__(cls)

    def __init__(self, features: int, fault: str = "") -> None:
        super().__init__(features)
        fail(fault, "init")
        self.fault = fault
        if fault == "no scan":
            self.__class__ = NoScan

    def scan(self, current: Sequence[Tensor], state: Any) -> Trace:
        fail(self.fault, "scan")
        if self.training:
            fail(self.fault, "training")
        trace = super().scan(current, state)
        wrong = {
            "a tuple": (trace.spikes, trace.membrane),
            "too few steps": Trace(trace.spikes[1:], trace.membrane, state),
        }
        return wrong.get(self.fault, trace)  # type: ignore[return-value]

    def zero_state(self, current: Tensor) -> Any:
        return torch.zeros_like(current) if self.fault == "no tuple" else super().zero_state(current)


class NoScan(Neuron):
    """A neuron without an equation."""


@dataclass(frozen=True)
class OwnLoss(MSEMembrane):
    """The shipped loss."""

    fault: str = ""
    targets = ("labels",)

    @property
    def reads(self) -> str:  # type: ignore[override]
        return "spikes" if self.fault == "reads" else "membrane"

    @property
    def decoder(self) -> str:  # type: ignore[override]
        return "latency" if self.fault == "decoder" else "spike_count"

    def __call__(self, trace: Any, target: Tensor) -> Any:
        fail(self.fault, "loss")
        if not torch.is_grad_enabled():
            fail(self.fault, "measuring")
        loss = super().__call__(trace, target)
        wrong = {"a vector": loss.expand(len(target)), "a float": loss.item(), "no gradient": loss.detach()}
        return wrong.get(self.fault, loss)


class Skipping(MLP):
    """Has a forward of its own."""

    def forward(self, *arguments: Any, **named: Any) -> list[Any]:
        return super().forward(*arguments, **named)


def network(inputs: Any, outputs: int, neuron: Any, readout: Any, num_steps: int, fault: str = "") -> Any:
    """A network."""
    if fault == "no network":
        return nn.Linear(2, 2)
    fail(fault, "init")
    return (Skipping if fault == "forward" else MLP)(inputs, outputs, neuron, readout, num_steps, [4])


class Failing(Table):
    """Points that cannot be read in an order that is not theirs, as in training, or not at all."""

    fault = ""

    def __getitem__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        fail(self.fault, "data")
        if indices != sorted(indices):
            fail(self.fault, "training")
        return super().__getitem__(indices)


def data(fault: str = "", num_workers: int = 0) -> Any:
    """Four classes of points."""
    fail(fault, "init")
    if fault == "no module":
        return TensorDataset(*draw(8, 0))
    made: DataModule = blobs(num_workers=num_workers)
    made.train = Failing(made.train.x, made.train.y)  # type: ignore[attr-defined]
    made.train.fault = fault
    return made
