"""Observers and signals of a run: divergence, parameter bounds, checkpoints, the mean loss of the tutorial."""

import hashlib
import io
import json
import math
import os
import re
import signal
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from snnexp.data.batches import OrderedBatches
from snnexp.errors import CheckpointError, ConfigError, DivergedError, InterruptedRunError
from snnexp.experiment import Record, build, compose, resume, run
from snnexp.record.checkpoint import decode
from snnexp.record.checksum import read_checkpoint, write_checkpoint
from snnexp.training.members import Member
from snnexp.training.observers import ProjectParameters, TutorialMeanLoss
from snnexp.training.saving import MemberCheckpoints
from snnexp.training.signals import Signals
from snnexp.training.task import Task

TINY = [
    "experiment=regression_sqrt",
    "trainer=cpu",
    "trainer.log_every_n_steps=1",
    "logger.save_every_n_epochs=1",
    "network.hidden=[6,5]",
    "num_steps=8",
    "logger=jsonl",
]
LIF = ["neuron=parametrized_lif", "readout=leaky_integrator", "surrogate=super_spike"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def train(*overrides: str) -> Record:
    return run(compose([*TINY, *overrides]))


def rows(path: Path, name: str) -> list[float]:
    """Return the logged values of one metric, in order."""
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def numbers(checkpoint: Any) -> list[Tensor]:
    """Yield all floating-point tensors nested in a checkpoint."""
    if isinstance(checkpoint, Tensor):
        return [checkpoint] if checkpoint.is_floating_point() else []
    entries = checkpoint.values() if isinstance(checkpoint, dict) else checkpoint
    return [number for entry in entries if isinstance(entry, (dict, list, tuple, Tensor)) for number in numbers(entry)]


def only_run(folder: Path) -> Path:
    (path,) = folder.glob("outputs/regression_sqrt/*")
    return path


class TestDivergence:
    # after the first step the next loss overflows, or the weights already have
    @pytest.mark.parametrize("step", [["optimizer.lr=1e30"], ["optimizer.lr=3e38", "optimizer.weight_decay=100"]])
    @pytest.mark.parametrize("max_epochs", [1, 3])
    def test_a_diverging_run_reports_it_and_keeps_finite_checkpoints(
        self, tmp_path: Path, step: list[str], max_epochs: int
    ) -> None:
        with pytest.raises(DivergedError) as caught:
            train("optimizer=sgd", *step, f"trainer.max_epochs={max_epochs}", "neuron=leaky")
        path = only_run(tmp_path)
        record = json.loads((path / "run.json").read_text())
        assert (record["status"], record["exit_code"]) == ("diverged", 3)
        assert record["reason"] == str(caught.value)
        checkpoints = sorted((path / "checkpoints").glob("*.ckpt"))
        assert checkpoints
        for checkpoint in checkpoints:
            read_checkpoint(checkpoint)
            assert all(number.isfinite().all() for number in numbers(load(checkpoint)["state_dict"])), checkpoint.name

    @pytest.mark.slow
    @pytest.mark.parametrize("neuron", [["neuron=leaky"], ["neuron=rleaky"], LIF], ids=lambda words: words[0])
    @pytest.mark.parametrize("layer", ["hidden1", "hidden2", "readout"])
    @pytest.mark.parametrize("number", [math.nan, math.inf])
    def test_the_first_non_finite_layer_is_named(
        self, neuron: list[str], layer: str, number: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(self: Task, *arguments: Any) -> Any:
            if self.global_step == 12:
                with torch.no_grad():
                    self.network.layers[layer].synapse.weight[0, 0] = number
            return original(self, *arguments)

        original = Task.training_step
        monkeypatch.setattr(Task, "training_step", broken)
        logged_every = 5
        with pytest.raises(DivergedError) as caught:
            # a nonzero input reaches the broken weight
            train(*neuron, "trainer.max_epochs=40", f"trainer.log_every_n_steps={logged_every}")
        assert re.search(rf"(membrane of )?{layer}[ .].*is not finite after step (\d+);", str(caught.value))
        assert int(re.findall(r"after step (\d+)", str(caught.value))[0]) <= 12 + logged_every
        (path,) = Path("outputs/regression_sqrt").iterdir()
        saved = load(path / "checkpoints" / "last.ckpt")
        assert 12 <= saved["global_step"] <= 15
        assert all(weight.isfinite().all() for weight in saved["state_dict"].values())

    def test_the_layer_of_the_largest_membrane_is_named(self) -> None:
        with pytest.raises(DivergedError, match=r"the loss is (inf|nan).*the membrane of readout .*after step 2"):
            train("optimizer=sgd", "optimizer.lr=1e30", "trainer.max_epochs=3", "neuron=leaky")


class TestActivityMonitor:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (["neuron.v_th=1e6"], "hidden1 is dead after step 1: none of its neurons fires"),
            (["neuron.v_th=-1e6"], "hidden2 is saturated after step 1: all of its neurons fire in every step"),
        ],
    )
    def test_warns_once_per_layer(self, change: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
        record = train(*LIF, *change, "trainer.max_epochs=4")
        lines = capfd.readouterr().err.splitlines()
        assert lines.count(f"snnexp: {message}") == 1
        assert len(lines) == len(set(lines)) == 2, "one line per layer"
        assert message in (record.path / "train.log").read_text()

    def test_warns_in_a_run_without_logged_steps(self, capfd: pytest.CaptureFixture[str]) -> None:
        train(*LIF, "neuron.v_th=1e6", "trainer.max_epochs=2", "trainer.log_every_n_steps=100")
        assert "snnexp: hidden1 is dead after step 2: none of its neurons fires" in capfd.readouterr().err

    def test_ignores_a_readout_whose_spikes_are_not_read(self, capfd: pytest.CaptureFixture[str]) -> None:
        train("readout=leaky", "readout.threshold=1e6", "neuron=leaky", "neuron.threshold=0", "trainer.max_epochs=2")
        assert "readout" not in capfd.readouterr().err


class TestProjection:
    def test_time_constants_are_projected_with_one_warning(self, caplog: pytest.LogCaptureFixture) -> None:
        task = build(compose([*TINY, *LIF])).task
        observer = ProjectParameters()
        member = Member(task, [observer])
        tau = task.network.neurons()["hidden2"].tau_mem_inv

        def step(*values: float) -> list[float]:
            with torch.no_grad():
                tau.copy_(torch.tensor(values))
            observer.on_train_batch_end(None, member, {}, None)
            return tau.tolist()

        assert step(5, 100, 999, 1000, 0.5) == [5, 100, 999, 1000, 0.5]
        observer.on_train_epoch_end(None, member)
        low, middle, high, zero, _ = step(-30, 100, 5000, 0, 50)
        # with dt = 1 ms an explicit step holds for 0 < tau_mem_inv <= 1000 per s
        assert 0 < low <= 1000
        assert 0 < zero <= 1000
        assert (middle, high) == (100, 1000)
        assert not caplog.records
        observer.on_train_epoch_end(None, member)
        step(-30, 100, 5000, 0, 50)
        observer.on_train_epoch_end(None, member)
        (message,) = caplog.messages
        assert message.endswith(": hidden2.tau_mem_inv")

    def test_parameters_stay_in_their_domain(self, capfd: pytest.CaptureFixture[str]) -> None:
        record = train(*LIF, "optimizer.lr=400", "trainer.max_epochs=6")
        state = load(record.path / "checkpoints" / "last.ckpt")["state_dict"]
        taus = torch.cat([value for name, value in state.items() if name.endswith("hidden1.neuron.tau_mem_inv")])
        assert taus.shape == (6,)
        assert ((taus > 0) & (taus <= 1000)).all()
        message = "learned parameters left their domain and are projected back after each step: hidden2.tau_mem_inv"
        assert (record.path / "train.log").read_text().count(message) == 1
        assert capfd.readouterr().err.splitlines().count(f"snnexp: {message}") == 1


class TestCheckpoints:
    def test_init_last_and_best_are_complete_and_plain(self) -> None:
        # so large a rate that the loss does not end at its lowest
        cfg = compose([*TINY, "optimizer.lr=0.3", "trainer.max_epochs=8", "seed=1"])
        record = run(cfg)
        folder = record.path / "checkpoints"
        names = [f"{name}.ckpt{suffix}" for name in ("best", "init", "last", "previous") for suffix in ("", ".sha256")]
        assert sorted(path.name for path in folder.iterdir()) == names
        for name in ("init", "last", "best"):
            digest = hashlib.sha256((folder / f"{name}.ckpt").read_bytes()).hexdigest()
            assert (folder / f"{name}.ckpt.sha256").read_text().split() == [digest, f"{name}.ckpt"]
        first, best, last = (load(folder / f"{name}.ckpt") for name in ("init", "best", "last"))
        for name, weight in build(cfg).task.state_dict().items():
            assert torch.equal(first["state_dict"][name], weight), "init.ckpt has the weights drawn from the seed"
        losses = rows(record.path, "train/epoch_loss")
        lowest = losses.index(min(losses))
        assert len(losses) == 8
        assert lowest < 7
        assert [first["global_step"], best["global_step"], last["global_step"]] == [0, lowest + 1, 8]

    def test_last_is_written_every_n_epochs_and_at_the_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        written: list[tuple[str, int]] = []
        save = MemberCheckpoints.write

        def watch(self: MemberCheckpoints, name: str, content: dict[str, Any]) -> None:
            written.append((name, content["global_step"]))
            save(self, name, content)

        monkeypatch.setattr(MemberCheckpoints, "write", watch)
        train("trainer.max_epochs=5", "logger.save_every_n_epochs=2")
        assert written == [("init", 0), ("last", 2), ("last", 4), ("last", 5)]

    @pytest.mark.slow
    @pytest.mark.usefixtures("tiny_mnist")
    def test_best_is_decided_by_the_validation_loss(self) -> None:
        mnist = ["experiment=mnist_leaky", "data.val_size=8", "data.batch_size=8", "optimizer.lr=0.02"]
        record = run(compose([*mnist, *TINY[1:], "trainer.max_epochs=5", "network.hidden=[20]"]))
        training, validation = rows(record.path, "train/epoch_loss"), rows(record.path, "val/loss")
        best = load(record.path / "checkpoints" / "best.ckpt")["global_step"] // 4
        assert len(training) == len(validation) == 5
        assert training.index(min(training)) != validation.index(min(validation)), "otherwise the test proves nothing"
        assert best == validation.index(min(validation)) + 1

    def test_a_damaged_one_is_not_loaded_and_code_is_not_run(self, tmp_path: Path) -> None:
        class Attack:
            def __reduce__(self) -> tuple[Any, tuple[str, str]]:
                return Path.write_text, (tmp_path / "attacked", "!")

        path = tmp_path / "last.ckpt"

        def write(weights: Any) -> bytes:
            buffer = io.BytesIO()
            torch.save({"weights": weights}, buffer)
            write_checkpoint(path, buffer.getvalue())
            return buffer.getvalue()

        content = write(torch.ones(3))
        assert torch.equal(decode(read_checkpoint(path), path)["weights"], torch.ones(3))
        path.write_bytes(content[:-5])
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(path)
        assert caught.value.exit_code == 5
        write(Attack())
        with pytest.raises(CheckpointError) as caught:
            decode(read_checkpoint(path), path)
        assert caught.value.exit_code == 5
        assert not (tmp_path / "attacked").exists()


class TestTutorialMeanLoss:
    @pytest.mark.parametrize("samples", [1, 3])
    def test_is_the_mean_of_all_training_losses_and_one_final_l1(self, samples: int) -> None:
        cfg = compose([*TINY, "trainer.max_epochs=4", f"data.num_samples={samples}"])
        record = run(cfg)
        losses = rows(record.path, "train/loss")
        assert len(losses) == 4 * samples
        parts = build(cfg)
        parts.task.load_state_dict(load(record.path / "checkpoints" / "last.ckpt")["state_dict"])
        features, target = parts.data.test[list(range(samples))]
        with torch.no_grad():
            error = parts.network(features)[-1].membrane - target
        l1 = error.abs().mean().item()
        assert record.metrics["test/l1"] == pytest.approx(l1, rel=1e-5)
        relative = (error.abs() / target)[1:].mean().item()
        assert record.metrics["test/relative_error"] == pytest.approx(relative, rel=1e-5)
        mean = (math.fsum(losses) + l1) / (len(losses) + 1)
        assert record.metrics["test/seed_mean_loss"] == pytest.approx(mean, rel=1e-5)

    def test_survives_a_checkpoint(self) -> None:
        before, after, never = TutorialMeanLoss(), TutorialMeanLoss(), TutorialMeanLoss()
        for value in (1.0, 2.5):
            before.on_train_batch_end(None, None, {"loss": torch.tensor(value)}, None)
        trainer = build(compose(TINY)).trainer
        for observer, mean in ((before, 1.75), (never, math.nan)):
            after.load_state_dict(observer.state_dict(trainer))
            assert after.mean.item() == pytest.approx(mean, nan_ok=True)


@pytest.mark.slow
def test_rows_of_metrics_have_a_step_and_an_epoch() -> None:
    record = train("trainer.max_epochs=2", "data.num_samples=3")
    lines = [json.loads(line) for line in (record.path / "metrics.jsonl").read_text().splitlines()]
    steps = [(line["step"], line["epoch"]) for line in lines if "train/loss" in line]
    assert [epoch for _, epoch in steps] == [0, 0, 0, 1, 1, 1]
    assert [step for step, _ in steps] == sorted({step for step, _ in steps})
    assert all({"step", "epoch"} <= line.keys() for line in lines)
    (tested,) = [line for line in lines if "test/l1" in line]
    assert {name: tested[name] for name in record.metrics} == pytest.approx(record.metrics)


@pytest.mark.slow
def test_a_parameter_stored_as_logarithm_is_named_accordingly(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record = train(*LIF, "neuron.log_tau=true", "trainer.max_epochs=1", "logger=tensorboard")
    events = EventAccumulator(str(record.path / "tensorboard"))
    events.Reload()
    assert {"weights/hidden1/neuron/log_tau_mem_inv", "weights/hidden1/neuron/v_th"} <= set(events.Tags()["histograms"])


class TestSignals:
    @pytest.mark.slow
    @pytest.mark.parametrize("hook", ["on_train_epoch_end", "on_test_start"])
    def test_a_signal_at_any_time_leaves_a_marked_and_resumable_run(
        self, hook: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = train("trainer.max_epochs=3")

        def interrupt(self: Task) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

        with monkeypatch.context() as patch:
            patch.setattr(Task, hook, interrupt, raising=False)
            with pytest.raises(InterruptedRunError) as caught:
                train("trainer.max_epochs=3")
        assert caught.value.exit_code == 143
        (path,) = (path for path in whole.path.parent.iterdir() if path != whole.path)
        record = json.loads((path / "run.json").read_text())
        assert (record["status"], record["exit_code"], record["reason"]) == ("interrupted", 143, "stopped by SIGTERM")
        step = load(path / "checkpoints" / "last.ckpt")["global_step"]
        assert step == (1 if hook == "on_train_epoch_end" else 3)
        assert resume(path).metrics == whole.metrics
        assert (path / "metrics.jsonl").read_bytes() == (whole.path / "metrics.jsonl").read_bytes()

    @pytest.mark.slow
    def test_a_signal_during_a_validation_waits_for_its_end(
        self, tiny_mnist: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        words = ["experiment=mnist_leaky", "trainer=cpu", "data.batch_size=10", "data.val_size=20", "logger=jsonl"]
        words += ["num_steps=2", "network.hidden=[4]", "trainer.max_epochs=2", "logger.save_every_n_epochs=2"]
        whole = run(compose(words))
        batches = OrderedBatches.__iter__

        def interrupt(self: OrderedBatches) -> Iterator[list[int]]:
            os.kill(os.getpid(), signal.SIGTERM)
            return batches(self)

        with monkeypatch.context() as patch:
            patch.setattr(OrderedBatches, "__iter__", interrupt)
            with pytest.raises(InterruptedRunError):
                run(compose(words))
        (path,) = (path for path in whole.path.parent.iterdir() if path != whole.path)
        assert load(path / "checkpoints" / "last.ckpt")["global_step"] == 2, "the steps of the first epoch are kept"
        assert resume(path).metrics == whole.metrics
        assert (path / "metrics.jsonl").read_bytes() == (whole.path / "metrics.jsonl").read_bytes()

    def test_child_processes_other_than_data_workers_get_default_handlers(self) -> None:
        with Signals() as signals:
            forked = get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)
            forked.start()
            terminated = get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)
            terminated.start()
            terminated.terminate()
            terminated.join(10)
            assert terminated.exitcode == -signal.SIGTERM
            assert signals.received is None
        assert forked.is_alive()
        forked.kill()
        forked.join()


@pytest.mark.slow
def test_out_of_memory_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^network: does not fit into memory"):
        train("network.hidden=[1000000,1000000]")
    assert not Path("outputs").exists()
