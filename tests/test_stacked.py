"""Stacked training: a member equals the run of its point alone."""

import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from ends import content
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from snnexp import config, experiment, kernels
from snnexp.errors import DivergedError, InterruptedRunError
from snnexp.experiment import compose
from snnexp.network import stack
from snnexp.record.checkpoint import difference
from snnexp.record.run import Run
from snnexp.sweeps import grouping
from snnexp.training import saving, stack_member, stacked
from snnexp.training.assembly import build
from snnexp.training.members import Observer
from snnexp.training.saving import MemberCheckpoints
from snnexp.training.stack import Stacked
from snnexp.training.stacked import Outcome, Point

REGRESSION = ["experiment=regression_sqrt", "network.hidden=[12,12]", "trainer.max_epochs=50"]
MNIST = ["data.batch_size=8", "trainer.max_epochs=10", "num_steps=5", "network.hidden=[12]"]
CASES = {
    "leaky": REGRESSION,
    "leaky-labels": ["experiment=mnist_leaky", *MNIST, "data.val_size=8", "trainer.max_epochs=13"],
    "rleaky": ["experiment=mnist_rleaky_count", *MNIST],
    "rleaky-membrane": ["experiment=mnist_rleaky_membrane", *MNIST, "readout=leaky", "neuron.reset=zero"],
    "one-to-one": ["experiment=mnist_rleaky_count", *MNIST, "neuron.feedback=one_to_one"],
    "parametrized": ["experiment=mnist_parametrized_lif", *MNIST, "num_steps=12"],
    "log-tau": ["experiment=mnist_parametrized_lif", *MNIST, "num_steps=12", "neuron.log_tau=true"],
    "random-spikes": ["experiment=mnist_rleaky_count", *MNIST, "encoder=bernoulli", "data.drop_last=false"],
}
"""Every neuron, with labels and traces, currents, sparse spikes and random spikes; 50 steps each."""
ALWAYS = ["trainer=cpu", "logger=jsonl", "trainer.log_every_n_steps=1"]

Ends = dict[int, Outcome]


def member(*overrides: str) -> Point:
    typed = [*ALWAYS, *overrides]
    return Point(compose(typed), typed)


def train(members: Sequence[Point], folder: Path) -> Ends:
    created: dict[int, Path] = {}
    ends: Ends = {}

    def ended(index: int, outcome: Outcome) -> None:
        assert index not in ends, "each outcome is reported once"
        ends[index] = outcome

    stacked.train(members, folder, created.__setitem__, ended)
    assert created.items() <= {index: outcome.run for index, outcome in ends.items()}.items()
    assert ends.keys() == set(range(len(members)))
    return ends


def alone(member: Point, folder: Path) -> Path:
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
    """Compute in float64, where two implementations stay close for many steps."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(autouse=True)
def _data(tiny_mnist: Path) -> None:
    """Use small images."""


def close(rows: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]], rtol: float) -> None:
    assert [list(row) for row in rows] == [list(other) for other in others]
    for row, other in zip(rows, others, strict=True):
        assert row == pytest.approx(other, rel=rtol, abs=1e-12, nan_ok=False)


@pytest.mark.slow
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("case", "kernel"), [*((case, "fused") for case in CASES), ("rleaky", "reference")])
def test_a_member_equals_the_run_of_its_point_alone(case: str, kernel: str, tmp_path: Path) -> None:
    """Identical initial weights; 50 steps, all logged values and metrics equal to 1e-4 in float64."""
    members = [member(*CASES[case], f"seed={seed}", f"kernel={kernel}") for seed in (3, 1, 2)]
    ends = train(members, tmp_path / "stack")
    path, run = alone(members[1], tmp_path / "alone"), ends[1].run
    assert {end.status for end in ends.values()} == {"finished"}
    for name, weight in weights(path, "init").items():
        assert torch.equal(weights(run, "init")[name], weight), name
    found, wanted = rows(run), rows(path)
    assert sum("train/loss" in row for row in wanted) >= 50
    close(found, wanted, 1e-4)
    assert ends[1].metrics == pytest.approx(Run(path).read()["metrics"], rel=1e-4)


def parallel(*lists: Sequence[str]) -> list[Point]:
    """Return members with these overrides."""
    return [member(*MNIST_RLEAKY, *overrides) for overrides in lists]


MNIST_RLEAKY = [*CASES["rleaky"], "trainer.max_epochs=3"]
NUMBERS = {
    "lr": (["optimizer.lr=1e-3"], ["optimizer.lr=5e-3"]),
    "betas": (["optimizer.betas=[0.9,0.99]"], ["optimizer.betas=[0.5,0.9]"]),
    "cosine": (
        ["optimizer.schedule=cosine", "optimizer.weight_decay=0.1"],
        ["optimizer.schedule=cosine", "optimizer.weight_decay=0.2", "seed=1"],
    ),
    "momentum": (["optimizer=sgd", "optimizer.momentum=0.5"], ["optimizer=sgd", "optimizer.momentum=0.9"]),
    "rates": (["loss.correct_rate=0.5"], ["loss.correct_rate=0.9", "loss.incorrect_rate=0.1"]),
    "targets": (["loss=mse_membrane"], ["loss=mse_membrane", "loss.on_target=2", "loss.off_target=0.5"]),
    "alpha": (["surrogate.alpha=2"], ["surrogate.alpha=0.5", "seed=1"]),
    "slope": (["surrogate=fast_sigmoid", "surrogate.slope=5"], ["surrogate=fast_sigmoid"]),
    "width": (["surrogate=triangular", "surrogate.width=0.5"], ["surrogate=triangular", "seed=2"]),
    "threshold": (["neuron.threshold=0.3", "neuron.learn_threshold=true"], ["neuron.learn_threshold=true"]),
    "beta": (["neuron.beta=0.5"], ["neuron.beta=0.8"]),
    "drawn": (
        ["neuron.beta={_target_: snnexp.initializers.Uniform, low: 0.5, high: 0.9}", "neuron.learn_beta=true"],
        ["neuron.beta={_target_: snnexp.initializers.Normal, mean: 0.7, std: 0.01}", "neuron.learn_beta=true"],
    ),
    "sample seed": (["data.val_size=8"], ["data.val_size=8", "seed=5"]),
}
"""What may differ within a stack; members without their own seed see the same batches."""


@pytest.mark.slow
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("case", NUMBERS)
def test_members_may_differ_in(case: str, tmp_path: Path) -> None:
    members = parallel(*NUMBERS[case])
    assert len({grouping.key(member.cfg) for member in members}) == 1
    assert not any(grouping.obstacle(member.cfg) for member in members)
    ends = train(members, tmp_path / "stack")
    assert rows(ends[0].run) != rows(ends[1].run), "the numbers have an effect"
    for index, end in ends.items():
        close(rows(end.run), rows(alone(members[index], tmp_path / "alone")), 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["fused", "reference"])
@pytest.mark.parametrize("case", ["leaky", "rleaky", "rleaky-membrane", "one-to-one", "parametrized"])
def test_gradients_of_a_stack_are_those_of_its_members(case: str, kernel: str) -> None:
    """In float64, for every weight and initial value; also with one input shared by all members."""
    torch.manual_seed(0)
    number = "slope" if case == "leaky" else "alpha"
    parts = [build(member(*CASES[case], f"seed={n}", f"surrogate.{number}={n + 2}").cfg) for n in range(3)]
    networks = [part.network.double() for part in parts]
    whole = stack(networks)
    for network in (*networks, whole):
        for parameter in network.parameters():
            parameter.requires_grad_()
        kernels.use(network, kernel, torch.device("cpu"))
    features = parts[0].data.inputs
    for members in (3, 1):
        inputs = 3 * torch.rand(6, 2, members, *features, dtype=torch.float64)
        trace = whole(inputs)[-1]
        assert trace.membrane.shape[:3] == (6, 2, 3)
        weight = torch.rand_like(trace.membrane)
        whole.zero_grad()
        (trace.membrane * weight).sum().backward()
        for position, network in enumerate(networks):
            network.zero_grad()
            own = network(inputs[:, :, min(position, members - 1)])[-1]
            torch.testing.assert_close(trace.membrane[:, :, position], own.membrane)
            assert torch.equal(trace.spikes[:, :, position], own.spikes)
            (own.membrane * weight[:, :, position]).sum().backward()
            for name, parameter in network.named_parameters():
                (gradient,) = [p.grad for other, p in whole.named_parameters() if other == name]
                if parameter.grad is None:
                    assert gradient is None
                else:
                    assert gradient is not None
                    torch.testing.assert_close(gradient[position].view_as(parameter), parameter.grad)


@pytest.mark.slow
class TestEnds:
    def test_a_diverging_member_does_not_affect_the_others(self, tmp_path: Path) -> None:
        """The first of the stack, at the same position both times."""
        calm = [["loss=mse_membrane", f"seed={seed}"] for seed in range(4)]
        # members are sorted by their optimizers
        calm[0].append("optimizer.betas=[0.5,0.9]")
        wild = [[*calm[0], "optimizer.lr=1e30"], *calm[1:]]
        with_it, without = train(parallel(*wild), tmp_path / "with"), train(parallel(*calm), tmp_path / "calm")
        assert with_it[0].status == "diverged"
        assert with_it[0].exit_code == 3
        assert "after step" in with_it[0].reason
        record = Run(with_it[0].run or Path()).read()
        assert (record["status"], record["reason"]) == ("diverged", with_it[0].reason)
        assert all(torch.isfinite(weight).all() for weight in weights(with_it[0].run, "init").values())
        for index in (1, 2, 3):
            assert with_it[index].status == without[index].status == "finished"
            assert rows(with_it[index].run) == rows(without[index].run)
            for name, weight in weights(without[index].run).items():
                assert torch.equal(weights(with_it[index].run)[name], weight)

    def test_all_may_diverge(self, tmp_path: Path) -> None:
        ends = train(parallel(*(["loss=mse_membrane", f"optimizer.lr={lr}"] for lr in ("1e30", "1e31"))), tmp_path)
        assert [end.status for end in ends.values()] == ["diverged", "diverged"]

    def test_an_invalid_initial_value_ends_only_its_member(self, tmp_path: Path) -> None:
        drawn = "neuron.beta={_target_: snnexp.initializers.Normal, mean: %s, std: 0.001}"
        ends = train(parallel([drawn % 0.5], [drawn % 7.0], [drawn % 0.6]), tmp_path)
        assert [ends[index].status for index in range(3)] == ["finished", "failed", "finished"]
        assert (ends[1].exit_code, ends[1].run) == (2, None)
        assert ends[1].reason.startswith("neuron.beta: an initial value is ")
        assert {end.run for end in ends.values() if end.run} == {*tmp_path.glob("20*")}

    def test_out_of_memory_ends_all_members_with_the_usual_message(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(self: Any, *arguments: Any) -> None:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

        monkeypatch.setattr("snnexp.training.stack.Stacked.training_step", fail)
        ends = train(parallel(["seed=1"], ["seed=2"]), tmp_path)
        for end in ends.values():
            assert (end.status, end.exit_code) == ("failed", 2)
            assert end.reason.startswith("network: does not fit into memory")
            assert Run(end.run or Path()).read()["status"] == "failed"

    def test_members_whose_layers_fill_the_cache_train_sequentially(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("snnexp.training.stacked.CHUNK_BYTES", 0)
        members = parallel(["seed=1"], ["seed=2"])
        ends = train(members, tmp_path / "stack")
        for index, end in ends.items():
            assert "stack" not in Run(end.run or Path()).read()
            assert rows(end.run) == rows(alone(members[index], tmp_path / "alone"))


@pytest.mark.slow
class TestInterruption:
    """A signal in the middle of an epoch; five batches per epoch."""

    @pytest.fixture
    def stopped(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ends:
        ends: Ends = {}
        steps = iter(range(100))
        step = Stacked.training_step

        def interrupt(self: Stacked, *arguments: Any) -> Any:
            if next(steps) == 5:
                signal.raise_signal(signal.SIGTERM)
            return step(self, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(Stacked, "training_step", interrupt)
            with pytest.raises(InterruptedRunError):
                stacked.train(self.members(), tmp_path / "stack", lambda index, path: None, ends.__setitem__)
        return ends

    @staticmethod
    def members(runs: Ends | None = None) -> list[Point]:
        """Two members share optimizer settings, one differs; random spikes and a decreasing learning rate."""
        common = ["encoder=bernoulli", "optimizer.schedule=cosine", "neuron.learn_beta=true", "neuron.beta=0.9"]
        made = parallel(*([*common, f"seed={n}", f"optimizer.lr={lr}"] for n, lr in enumerate((2e-3, 1e-3, 2e-3))))
        for index, end in (runs or {}).items():
            made[index].run = end.run
        return made

    def test_saves_all_members_at_the_current_step(self, stopped: Ends) -> None:
        assert stopped.keys() == {0, 1, 2}
        for end in stopped.values():
            assert (end.status, end.exit_code, end.reason) == ("interrupted", 143, "stopped by SIGTERM")
            assert Run(end.run or Path()).read()["status"] == "interrupted"
            found = checkpoint(end.run)
            assert (found["epoch"], found["batch"], found["global_step"]) == (1, 1, 6)

    def test_a_resumed_stack_is_bit_identical(self, stopped: Ends, tmp_path: Path) -> None:
        whole = train(self.members(), tmp_path / "whole")
        again = train(self.members(stopped), tmp_path / "stack")
        for index, end in again.items():
            assert (end.status, end.run) == ("finished", stopped[index].run)
            assert rows(end.run) == rows(whole[index].run)
            for name, weight in weights(whole[index].run).items():
                assert torch.equal(weights(end.run)[name], weight)
            assert Run(end.run or Path()).read()["resumed_at_step"] == [6]
        done = train(self.members(stopped), tmp_path / "stack")
        assert {end.status for end in done.values()} == {"finished"}
        assert rows(done[0].run) == rows(whole[0].run), "nothing is left to do"

    def test_a_stack_stopped_before_its_first_step_resumes_bit_identical(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(self: Stacked) -> None:
            signal.raise_signal(signal.SIGTERM)

        ends: Ends = {}
        with monkeypatch.context() as patch:
            patch.setattr(Stacked, "on_train_epoch_start", interrupt)
            with pytest.raises(InterruptedRunError):
                stacked.train(self.members(), tmp_path / "stack", lambda index, path: None, ends.__setitem__)
        assert checkpoint(ends[0].run)["global_step"] == 0
        whole = train(self.members(), tmp_path / "whole")
        again = train(self.members(ends), tmp_path / "stack")
        assert [rows(end.run) for end in again.values()] == [rows(end.run) for end in whole.values()]

    def test_a_member_resumes_alone(self, stopped: Ends, tmp_path: Path) -> None:
        path = stopped[1].run
        assert path is not None
        experiment.resume(path)
        close(rows(path), rows(alone(self.members()[1], tmp_path / "alone")), 1e-3)

    @pytest.mark.parametrize("members", [1, 2])
    def test_members_take_the_overrides_of_a_resume(self, stopped: Ends, tmp_path: Path, members: int) -> None:
        keys = ["trainer.log_every_n_steps=3"]
        resumed = self.members(stopped)[:members]
        for member in resumed:
            member.cfg, member.resume_overrides = config.change(member.cfg, keys), keys
        for end in train(resumed, tmp_path / "stack").values():
            assert end.run is not None
            assert Run(end.run).read()["resumed_with"] == keys
            assert config.load(end.run / "config.yaml").trainer.log_every_n_steps == 3

    def test_members_at_different_steps_resume_together(self, stopped: Ends, tmp_path: Path) -> None:
        ends = train(self.members({0: stopped[0]}), tmp_path / "stack")
        assert {end.status for end in ends.values()} == {"finished"}
        assert [len(rows(end.run)) for end in ends.values()] == [19, 19, 19]


class Leaves(Observer):
    """Ends its member in a step, as an observer may."""

    def on_train_batch_end(self, trainer: Any, member: Any, outputs: Any, target: Tensor) -> None:
        if trainer.global_step == 7 and member.start.cfg.seed == 1:
            raise DivergedError("it has seen enough")


def same(one: Path | None, other: Path | None) -> bool:
    """Return True if two members ended bit-identical."""
    assert one is not None
    assert other is not None
    return content(one) == content(other)


@pytest.mark.slow
class TestSlots:
    """A member that has ended keeps its slot, also when the others resume, so that their rounding is the same."""

    MEMBERS = (["seed=0"], ["seed=1"], ["seed=2", "optimizer.lr=3e-3"], ["seed=3"])

    @pytest.fixture
    def left(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The second member ends after seven steps."""
        watching = stack_member.run_observers
        monkeypatch.setattr(stack_member, "run_observers", lambda *of: [*watching(*of), Leaves()])

    def test_a_member_ended_by_an_observer_does_not_affect_the_others(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = train(parallel(*self.MEMBERS), tmp_path / "whole")
        with monkeypatch.context() as patch:
            watching = stack_member.run_observers
            patch.setattr(stack_member, "run_observers", lambda *of: [*watching(*of), Leaves()])
            ends = train(parallel(*self.MEMBERS), tmp_path / "ended")
        assert [ends[index].status for index in range(4)] == ["finished", "diverged", "finished", "finished"]
        assert ends[1].reason == "it has seen enough"
        assert checkpoint(ends[1].run)["global_step"] == 5
        assert all(same(ends[index].run, whole[index].run) for index in (0, 2, 3))

    @staticmethod
    def stopped(points: Sequence[Point], folder: Path, step: int, monkeypatch: pytest.MonkeyPatch) -> Ends:
        """Return the outcomes of points interrupted by a signal after some steps."""
        ends: Ends = {}
        train_step = Stacked.training_step

        def interrupt(self: Stacked, batch: Any, index: int) -> Any:
            if self.trainer.global_step == step - 1:
                signal.raise_signal(signal.SIGTERM)
            return train_step(self, batch, index)

        with monkeypatch.context() as patch:
            patch.setattr(Stacked, "training_step", interrupt)
            with pytest.raises(InterruptedRunError):
                stacked.train(points, folder, lambda index, path: None, ends.__setitem__)
        return ends

    @pytest.mark.usefixtures("left")
    @pytest.mark.parametrize("over", [True, False])
    @pytest.mark.parametrize("case", ["seeds", "one order", "batches that are not full"])
    def test_a_stack_in_which_one_has_ended_resumes_as_the_same_stack(
        self, case: str, over: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A diverged point is finished, or retried alone from its last checkpoint."""
        members = [*self.MEMBERS]
        if case == "one order":
            members = [["data.seed=0", "optimizer.lr=2e-3", "seed=0"], ["data.seed=0", "seed=1"], ["data.seed=0"]]
        if case == "batches that are not full":
            members = [[*words, "data.drop_last=false", "data.batch_size=16"] for words in members]
        whole = train(parallel(*members), tmp_path / "whole")
        ends = self.stopped(parallel(*members), tmp_path / "stack", 8, monkeypatch)
        assert [ends[index].status for index in range(3)] == ["interrupted", "diverged", "interrupted"]
        again = parallel(*members)
        for index, point in enumerate(again):
            point.run, point.has_ended = ends[index].run, over and index == 1
        found: Ends = {}
        stacked.train(again, tmp_path / "stack", lambda index, path: None, found.__setitem__)
        assert found.keys() == set(range(len(members))) - ({1} if over else set())
        for index in set(range(len(members))) - {1}:
            assert same(found[index].run, whole[index].run)
            assert place(found[index].run) == place(whole[index].run)

    def test_an_ended_point_that_cannot_be_built_is_not_reported(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        points = parallel(["seed=1"], ["seed=2"])
        ends = self.stopped(points, tmp_path, 3, monkeypatch)
        again = parallel(["seed=0", f"data.root={tmp_path / 'nowhere'}"], ["seed=1"], ["seed=2"])
        again[0].has_ended, again[1].run, again[2].run = True, ends[0].run, ends[1].run
        found: Ends = {}
        stacked.train(again, tmp_path, lambda index, path: None, found.__setitem__)
        assert {index: end.status for index, end in found.items()} == {1: "finished", 2: "finished"}
        assert len([*tmp_path.glob("2*")]) == 2

    def test_a_member_at_an_earlier_step_does_not_delay_the_others(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Two were stopped during a save, and a third one much earlier on its own."""
        members = [[*words, "logger.save_every_s=0"] for words in self.MEMBERS[:3]]
        early = self.stopped(parallel(*members), tmp_path / "early", 3, monkeypatch)
        late = self.stopped(parallel(*members), tmp_path / "late", 8, monkeypatch)
        folder = Run(late[1].run or Path()).checkpoints
        for suffix in ("", ".sha256"):
            (folder / f"previous.ckpt{suffix}").rename(folder / f"last.ckpt{suffix}")
            content = (folder / f"last.ckpt{suffix}").read_text(errors="ignore")
            if suffix:
                (folder / f"last.ckpt{suffix}").write_text(content.replace("previous.ckpt", "last.ckpt"))
        again = parallel(*members)
        again[0].run, again[1].run, again[2].run = early[0].run, late[1].run, late[2].run
        ends = train(again, tmp_path / "again")
        resumed = [Run(ends[index].run or Path()).read()["resumed_at_step"] for index in range(3)]
        assert resumed == [[3], [7], [7]]

    def test_a_finished_member_is_reported_as_finished(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A signal arrives while the first outcomes are written."""
        update, interrupted = Run.update, []

        def and_a_signal(self: Run, **changes: Any) -> Any:
            record = update(self, **changes)
            if changes.get("status") == "finished" and not interrupted:
                interrupted.append(self)
                os.kill(os.getpid(), signal.SIGTERM)
            return record

        monkeypatch.setattr(Run, "update", and_a_signal)
        ends: Ends = {}
        with pytest.raises(InterruptedRunError):
            stacked.train(parallel(*self.MEMBERS), tmp_path, lambda index, path: None, ends.__setitem__)
        for end in ends.values():
            record = Run(end.run or Path()).read()
            assert (end.status, end.metrics) == (record["status"], record["metrics"])
        assert "finished" in {end.status for end in ends.values()}

    def test_a_stack_stopped_in_its_test_reports_its_last_validation(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        members = [[*overrides, "data.val_size=8"] for overrides in self.MEMBERS]
        whole = train(parallel(*members), tmp_path / "whole")
        ends: Ends = {}
        with monkeypatch.context() as patch:
            patch.setattr(Stacked, "on_test_start", lambda task: signal.raise_signal(signal.SIGTERM))
            with pytest.raises(InterruptedRunError):
                stacked.train(parallel(*members), tmp_path / "stack", lambda index, path: None, ends.__setitem__)
        again = parallel(*members)
        for index, end in ends.items():
            again[index].run = end.run
        for index, end in train(again, tmp_path / "stack").items():
            assert end.metrics == whole[index].metrics
            assert "val/loss" in end.metrics

    @pytest.mark.parametrize("saved", [0, 1, 3])
    def test_a_kill_during_a_save_is_resumed_from_the_common_step(
        self, saved: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """``saved`` of four members have written the checkpoint, the others have not."""
        members = [[*overrides, "logger.save_every_s=0"] for overrides in self.MEMBERS]
        whole = train(parallel(*members), tmp_path / "whole")
        written: list[str] = []
        write = MemberCheckpoints.write

        def killed(self: MemberCheckpoints, name: str, holds: dict[str, Any]) -> None:
            if holds["global_step"] == 8:
                if len(written) == saved:
                    raise KilledError
                written.append(name)
            write(self, name, holds)

        class KilledError(Exception):
            pass

        created: dict[int, Path] = {}
        with monkeypatch.context() as patch:
            patch.setattr(MemberCheckpoints, "write", killed)
            # sequentially
            patch.setattr(saving, "THREADS", 1)
            with pytest.raises(KilledError):
                stacked.train(parallel(*members), tmp_path / "stack", created.__setitem__, lambda index, end: None)
        again = parallel(*members)
        for index, path in created.items():
            again[index].run = path
        ends = train(again, tmp_path / "stack")
        assert {step for end in ends.values() for step in Run(end.run or Path()).read()["resumed_at_step"]} == {7}
        assert all(same(end.run, whole[index].run) for index, end in ends.items())


def place(path: Path | None) -> int:
    """Return the position of a member in its stack."""
    return Run(path or Path()).read()["stack"]["member"]  # type: ignore[no-any-return]


@pytest.mark.slow
def test_stacked_learning_rates_equal_those_of_single_runs(tmp_path: Path) -> None:
    """Steps, epochs and names of all rows, and the state of each schedule."""
    common = ["optimizer.schedule=cosine", "trainer.log_every_n_steps=2", "data.val_size=8"]
    points = parallel(*([*common, f"optimizer.lr={rate}"] for rate in (1e-3, 2e-3, 5e-3)))
    for index, end in train(points, tmp_path / "stack").items():
        path = alone(points[index], tmp_path / "alone")
        assert [[*row] for row in rows(end.run)] == [[*row] for row in rows(path)]
        assert [(row["step"], row["epoch"]) for row in rows(end.run)] == [(r["step"], r["epoch"]) for r in rows(path)]
        assert checkpoint(end.run)["lr_schedulers"] == checkpoint(path)["lr_schedulers"]
        groups = [checkpoint(each)["optimizer_states"][0]["param_groups"] for each in (end.run, path)]
        assert groups[0] == groups[1]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["leaky", "rleaky", "one-to-one", "parametrized"])
def test_bfloat16_applies_to_matrix_products(case: str, tmp_path: Path) -> None:
    """Compare the first steps, before rounding to eight significant bits moves a spike."""
    words = [*CASES[case], "trainer.max_epochs=1"]
    points = [member(*words, "trainer.precision=bf16-mixed", f"seed={seed}") for seed in (3, 1, 2)]
    ends = train(points, tmp_path / "stack")
    precise = train([member(*words, f"seed={seed}") for seed in (3, 1, 2)], tmp_path / "float32")
    path = alone(points[1], tmp_path / "alone")
    losses = [[row["train/loss"] for row in rows(run) if "train/loss" in row] for run in (ends[1].run, path)]
    assert losses[0][0] == pytest.approx(losses[1][0], rel=3e-2)
    assert not same(ends[1].run, precise[1].run), "bfloat16 has an effect"


@pytest.mark.slow
class TestRunDirectories:
    @pytest.fixture
    def end(self, tmp_path: Path) -> Outcome:
        lists = (["seed=1", "logger=tensorboard"], ["seed=2", "logger=tensorboard"], ["seed=3", "logger=tensorboard"])
        return train(parallel(*lists), tmp_path / "stack")[1]

    def test_have_the_content_of_a_single_run(self, end: Outcome, tmp_path: Path) -> None:
        assert end.run is not None
        path = alone(parallel(["seed=2", "logger=tensorboard"])[0], tmp_path / "alone")
        names = [
            {str(part.relative_to(top)).split("/events")[0] for part in top.rglob("*") if part.is_file()}
            for top in (end.run, path)
        ]
        assert names[0] == names[1]
        records = [Run(top).read() for top in (end.run, path)]
        assert records[0]["stack"] == {"members": 3, "member": 1}
        assert records[0].keys() - {"stack"} == records[1].keys()
        wall_s = records[0]["wall_s"]
        assert wall_s.keys() == records[1]["wall_s"].keys()
        assert sum(wall_s.values()) == pytest.approx(2 * wall_s["total"])
        for name in ("config.yaml", "overrides.yaml"):
            assert (end.run / name).read_bytes() == (path / name).read_bytes()
        for name in ("init", "last", "best", "previous"):
            assert difference(checkpoint(end.run, name), checkpoint(path, name)) is None
        for name in ("init", "last", "test"):
            mine, other = (Run(top).arrays(name) for top in (end.run, path))
            assert mine.keys() == other.keys()
            assert all(mine[key].shape == other[key].shape for key in mine)
        assert scalars(end.run) == scalars(path)

    def test_evaluate_to_the_reported_metrics(self, end: Outcome) -> None:
        assert end.run is not None
        again = experiment.evaluate(end.run)
        assert again == pytest.approx(end.metrics, rel=1e-5)

    def test_resume_like_a_single_run(self, end: Outcome, tmp_path: Path) -> None:
        assert end.run is not None
        longer = experiment.resume(end.run, ["trainer.max_epochs=5"])
        path = alone(parallel(["seed=2", "trainer.max_epochs=5"])[0], tmp_path / "alone")
        close([row for row in rows(longer.path) if "test/loss" not in row], rows(path)[:-1], 1e-3)


def scalars(path: Path) -> set[str]:
    events = EventAccumulator(str(path / "tensorboard"))
    events.Reload()
    return {*events.Tags()["scalars"]}
