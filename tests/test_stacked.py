"""Stacked training: a member is the run that its point would be alone."""

import json
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from snnexp import experiment, kernels
from snnexp.assembly import build
from snnexp.experiment import compose
from snnexp.network import stack
from snnexp.runs import Run
from snnexp.sweeps import stacked
from snnexp.sweeps.stacked import Member, Outcome

REGRESSION = ["experiment=regression_sqrt", "network.hidden=[12,12]", "trainer.max_epochs=50"]
MNIST = ["data.batch_size=8", "trainer.max_epochs=10", "num_steps=5", "network.hidden=[12]"]
CASES = {
    "leaky": REGRESSION,
    "leaky-labels": ["experiment=mnist_leaky", *MNIST, "data.val_size=8"],
    "rleaky": ["experiment=mnist_rleaky_count", *MNIST],
    "rleaky-membrane": ["experiment=mnist_rleaky_membrane", *MNIST, "readout=leaky", "neuron.reset=zero"],
    "one-to-one": ["experiment=mnist_rleaky_count", *MNIST, "neuron.feedback=one_to_one"],
    "parametrized": ["experiment=mnist_parametrized_lif", *MNIST, "num_steps=20"],
    "log-tau": ["experiment=mnist_parametrized_lif", *MNIST, "num_steps=20", "neuron.log_tau=true"],
    "random-spikes": ["experiment=mnist_rleaky_count", *MNIST, "encoder=bernoulli", "data.drop_last=false"],
}
"""Every neuron, with labels and traces, currents, lists of spikes and drawn spikes; 50 steps each."""
ALWAYS = ["trainer=cpu", "logger=jsonl", "trainer.log_every_n_steps=1"]

Ends = dict[int, Outcome]


def member(*overrides: str) -> Member:
    typed = [*ALWAYS, *overrides]
    return Member(compose(typed), typed)


def train(members: Sequence[Member], folder: Path) -> Ends:
    begun: dict[int, Path] = {}
    ends: Ends = {}

    def ended(index: int, outcome: Outcome) -> None:
        assert index not in ends, "each is told once"
        ends[index] = outcome

    stacked.train(members, folder, begun.__setitem__, ended)
    assert begun == {index: outcome.run for index, outcome in ends.items() if outcome.run}
    assert ends.keys() == set(range(len(members)))
    return ends


def alone(member: Member, folder: Path) -> Path:
    return experiment.run(member.cfg, member.overrides, folder).path


def rows(path: Path | None) -> list[dict[str, Any]]:
    assert path is not None
    return list(Run(path).metrics())


def checkpoint(path: Path | None, name: str = "last") -> dict[str, Any]:
    assert path is not None
    found: dict[str, Any] = torch.load(path / "checkpoints" / f"{name}.ckpt", weights_only=True)
    return found


def weights(path: Path | None, name: str = "last") -> dict[str, Tensor]:
    return checkpoint(path, name)["state_dict"]  # type: ignore[no-any-return]


@pytest.fixture
def double() -> Iterator[None]:
    """Whatever is made is made in float64, where two ways to compute the same stay close for many steps."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(autouse=True)
def _data(tiny_mnist: Path) -> None:
    """All cases find the small images."""


def close(rows: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]], rtol: float) -> None:
    assert [list(row) for row in rows] == [list(other) for other in others]
    for row, other in zip(rows, others, strict=True):
        assert row == pytest.approx(other, rel=rtol, abs=1e-12, nan_ok=False)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("kernel", ["fused", "reference"])
@pytest.mark.parametrize("case", CASES)
def test_a_member_is_the_run_that_its_point_would_be_alone(case: str, kernel: str, tmp_path: Path) -> None:
    members = [member(*CASES[case], f"seed={seed}", f"kernel={kernel}") for seed in (3, 1, 2)]
    ends = train(members, tmp_path / "stack")
    for index in (0, 2):
        path = alone(members[index], tmp_path / "alone")
        run = ends[index].run
        assert ends[index].status == "finished"
        for name, weight in weights(path, "init").items():
            assert torch.equal(weights(run, "init")[name], weight), name
        close(rows(run), rows(path), 1e-4)
        assert ends[index].metrics == pytest.approx(Run(path).read()["metrics"], rel=1e-4)
