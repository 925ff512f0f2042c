"""Snapshots of a fixed batch, totals of the test split, and figures that do not affect training."""

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from snnexp import metrics, terminal
from snnexp.encoders import Sequence
from snnexp.errors import CheckpointError, InterruptedRunError
from snnexp.experiment import build, compose, resume, run
from snnexp.figures import snapshots
from snnexp.losses import MSEMembrane
from snnexp.network import MLP
from snnexp.neurons import Leaky
from snnexp.record.run import Run
from snnexp.training import probe
from snnexp.training.members import Bridge, Member
from snnexp.training.observers import EvaluationCounts
from snnexp.training.signals import Signals
from snnexp.training.task import Task

ALWAYS = ["logger.draw_every_n_epochs=1", "logger.draw_every_s=0"]
NEVER = ["logger.draw_every_n_epochs=0"]
REGRESSION = ["experiment=regression_sqrt", "network.hidden=[6,5]", "num_steps=8", "trainer.max_epochs=3"]
MNIST = ["num_steps=8", "data.batch_size=10", "trainer.max_epochs=2", "network.hidden=[12]"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def weights(folder: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]


def stopped_at_step_2(monkeypatch: pytest.MonkeyPatch) -> Path:
    look = Signals.on_train_batch_start

    def stop(self: Signals, trainer: Any, *rest: Any) -> None:
        self.received = signal.SIGTERM if trainer.global_step == 2 else None
        look(self, trainer, *rest)

    monkeypatch.setattr(Signals, "on_train_batch_start", stop)
    with pytest.raises(InterruptedRunError):
        run(compose(REGRESSION))
    (folder,) = Path("outputs", "regression_sqrt").iterdir()
    return folder


class TestSnapshot:
    @pytest.mark.parametrize("recipe", ["mnist_leaky", "mnist_rleaky_count", "mnist_parametrized_lif"])
    def test_records_the_network_on_the_first_samples(self, tiny_mnist: Path, recipe: str) -> None:
        parts = build(compose([f"experiment={recipe}", *MNIST]))
        x, y = parts.data.test[list(range(10))]
        found = probe.snapshot(parts.task, (x, y), parts.decoder)
        traces = dict(zip(parts.network.neurons(), parts.network(parts.encoder(x)), strict=True))
        for name, trace in traces.items():
            if parts.network.neurons()[name].spikes:
                assert np.array_equal(found[f"spikes/{name}"], trace.spikes[:, 0].bool().numpy())
        readout = traces["readout"]
        np.testing.assert_allclose(found["membrane"], readout.membrane[:, 0].detach(), rtol=1e-4, atol=1e-6)
        assert np.array_equal(found["label"], y)
        hits, count = metrics.accuracy(parts.decoder(readout), y)
        correct = (hits / count).item()
        assert (found["predicted"] == found["label"]).mean() == pytest.approx(correct)
        assert np.array_equal(found["images"], x)

    def test_records_a_subset_of_a_large_layer(self) -> None:
        size = 3 * probe.MAX_NEURONS
        parts = build(compose([*REGRESSION, f"network.hidden=[{size}]"]))
        batch = parts.data.test[[0]]
        found = probe.snapshot(parts.task, batch, None)
        neurons = found["neurons/hidden1"]
        assert len(neurons) == probe.MAX_NEURONS
        assert neurons[0] == 0
        assert neurons[-1] == size - 1
        assert found["size/hidden1"] == size
        trace = parts.network(parts.encoder(batch[0]))[0]
        assert np.array_equal(found["spikes/hidden1"], trace.spikes[:, 0, neurons].bool().numpy())

    def test_records_the_first_of_many_steps(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(probe, "MAX_STEPS", 5)
        parts = build(compose(REGRESSION))
        found = probe.snapshot(parts.task, parts.data.test[[0]], None)
        assert [len(found[name]) for name in ("membrane", "spikes/hidden1", "trajectory", "target")] == [5] * 4
        assert found["num_steps"] == len(found["gradient/hidden1"]) == 8
        captions = [picture.caption for draw in snapshots.drawing_functions({"now": found}, {}) if (picture := draw())]
        assert sum("The first 5 of 8 steps." in caption for caption in captions) == 3

    def test_gradient_of_a_leaky_membrane(self) -> None:
        """U[t] = sum_s beta^(t-s) I[s], L = mean (U - y)^2: dL/dI[s] = sum_(t>=s) 2 (U[t] - y[t]) beta^(t-s) / n."""
        T, B, beta = 7, 3, 0.75
        network = MLP((2,), 1, Leaky, lambda N: Leaky(N, beta=beta, reset="none"), num_steps=T, hidden=[])
        task = Task(network.double(), Sequence(), False, MSEMembrane(), {}, lambda *_: {})
        x, y = torch.rand(T, B, 2).double(), torch.rand(T, B, 1).double()
        found = probe.snapshot(task, (x, y), None)
        error = 2 * (network(x)[0].membrane - y)[..., 0].detach() / (T * B)
        decay = torch.tensor([[beta ** (t - s) if t >= s else 0.0 for t in range(T)] for s in range(T)]).double()
        expected = torch.linalg.vector_norm(decay @ error, dim=1)
        np.testing.assert_allclose(found["gradient/readout"], expected, rtol=1e-9)
        np.testing.assert_allclose(found["trajectory"], network(x)[0].membrane[..., 0].detach())
        np.testing.assert_allclose(found["target"], y[..., 0])

    @pytest.mark.parametrize("neuron", ["leaky", "rleaky"])
    def test_the_gradients_of_all_steps_sum_to_that_of_the_bias(self, tiny_mnist: Path, neuron: str) -> None:
        parts = build(compose(["experiment=mnist_leaky", f"neuron={neuron}", *MNIST]))
        x, y = parts.data.test[list(range(10))]
        found, traces = zip(*parts.network.with_currents(parts.encoder(x)), strict=True)
        currents = [current for (current,) in found]
        by_step = torch.autograd.grad(parts.loss(traces[-1], y), currents)
        biases = [layer.synapse.bias for layer in parts.network.layers.values()]
        whole = torch.autograd.grad(parts.loss(parts.network(parts.encoder(x))[-1], y), biases)
        for gradient, bias in zip(by_step, whole, strict=True):
            assert gradient.shape[0] == 8
            torch.testing.assert_close(gradient.sum((0, 1)), bias, rtol=1e-4, atol=1e-6)

    def test_counts_connections_and_input_steps(self, tiny_mnist: Path) -> None:
        for recipe, steps in (("mnist_rleaky_conv", 1), ("mnist_parametrized_lif", 0)):
            parts = build(compose([f"experiment={recipe}", "data.batch_size=2"]))
            found = probe.snapshot(parts.task, parts.data.test[[0, 1]], parts.decoder)
            assert found["input_steps"] == steps
            if recipe == "mnist_rleaky_conv":
                # 8 feature maps of 12x12 with 1x5x5 kernels, 16 maps of 4x4 with 8x5x5 kernels, 10 outputs of 16 maps
                expected = {"conv1": 8 * 144 * 25, "conv2": 16 * 16 * 25 * 8, "readout": 10 * 256}
                assert {name: found[f"connections/{name}"] for name in expected} == expected

    @pytest.mark.parametrize("recipe", ["mnist_leaky", "mnist_parametrized_lif", "regression_sqrt"])
    def test_does_not_change_gradients_and_state(self, tiny_mnist: Path, recipe: str) -> None:
        batch = [] if recipe == "regression_sqrt" else ["data.batch_size=10"]
        parts = build(compose([f"experiment={recipe}", "num_steps=8", "network.hidden=[12]", *batch]))
        before = {name: value.clone() for name, value in parts.task.state_dict().items()}
        probe.snapshot(parts.task, parts.data.test[[0]], parts.decoder)
        assert all(parameter.grad is None for parameter in parts.task.parameters())
        assert all(torch.equal(before[name], value) for name, value in parts.task.state_dict().items())


NORMED = (
    "network.layers=[{name: maps, synapse: [{_target_: torch.nn.Conv2d, out_channels: 2, kernel_size: 7},"
    "{_target_: torch.nn.BatchNorm2d},{_target_: torch.nn.Dropout}]}, {name: readout}]"
)


@pytest.mark.slow
class TestRuns:
    @pytest.mark.parametrize(
        "overrides",
        [
            REGRESSION,
            ["experiment=mnist_rleaky_count", "encoder=bernoulli", *MNIST],
            ["network=graph", NORMED, *MNIST[:-1]],
        ],
        ids=["regression", "random spikes", "batch norm and dropout"],
    )
    def test_figures_do_not_affect_a_run(self, tiny_mnist: Path, overrides: list[str]) -> None:
        seen, unseen = (run(compose([*overrides, *drawing])).path for drawing in (ALWAYS, NEVER))
        assert (seen / "metrics.jsonl").read_bytes() == (unseen / "metrics.jsonl").read_bytes()
        for name, value in weights(seen).items():
            assert torch.equal(value, weights(unseen)[name])
        assert not (unseen / "probe").exists()
        assert not (unseen / "figures").exists()

    def test_random_spikes_are_the_same_each_time(self, tiny_mnist: Path) -> None:
        # a learning rate too small to change the weights
        still = ["experiment=mnist_rleaky_count", "encoder=bernoulli", "optimizer.lr=1e-30", *MNIST]
        found = Run(run(compose(still)).path)
        init, last = found.arrays("init"), found.arrays("last")
        assert init["spikes/hidden1"].any()
        assert np.array_equal(init["spikes/hidden1"], last["spikes/hidden1"])
        assert np.array_equal(init["membrane"], last["membrane"])

    def test_first_and_last_snapshots_match_the_checkpoints(self) -> None:
        folder = run(compose([*REGRESSION, *ALWAYS])).path
        parts = build(compose(REGRESSION))
        batch = parts.data.test[[0]]
        for name, step in (("init", 0), ("last", 3)):
            parts.task.load_state_dict(weights(folder, name))
            expected = probe.snapshot(parts.task, batch, None)
            found = Run(folder).arrays(name)
            assert found["step"] == step
            for key, value in expected.items():
                np.testing.assert_allclose(found[key], value, rtol=1e-5, err_msg=key) if key != "layers" else None

    def test_figures_of_a_recipe_are_drawn(self, tiny_mnist: Path) -> None:
        folder = run(compose(["experiment=mnist_rleaky_count", *MNIST])).path
        drawn = {path.name for path in (folder / "figures").iterdir()}
        assert drawn == {"spike_raster.png", "output_membrane.png", "predictions.png", "confusion.png"}
        assert all(path.read_bytes().startswith(b"\x89PNG") for path in (folder / "figures").iterdir())

    def test_figures_of_a_run_in_bfloat16(self, tiny_mnist: Path) -> None:
        folder = run(compose(["experiment=mnist_rleaky_count", *MNIST, "trainer.precision=bf16-mixed"])).path
        assert Run(folder).arrays("last")["gradient/hidden1"].dtype == np.float32

    def test_drawings_have_a_minimum_interval(self, monkeypatch: pytest.MonkeyPatch) -> None:
        drawn: list[str] = []
        monkeypatch.setattr(probe.Probe, "_draw", lambda self, trainer, task, when, test: drawn.append(when))
        short = [*REGRESSION, "trainer.max_epochs=7", "logger.draw_every_n_epochs=2"]
        run(compose([*short, "logger.draw_every_s=0"]))
        assert drawn == ["after epoch 2", "after epoch 4", "after epoch 6", "after training"]
        drawn.clear()
        run(compose([*short, "logger.draw_every_s=1000"]))
        assert drawn == ["after training"]

    def test_a_resumed_run_keeps_the_initial_snapshot(self) -> None:
        folder = run(compose([*REGRESSION, *ALWAYS])).path
        before = (folder / "probe" / "init.npz").read_bytes()
        resume(folder, ["trainer.max_epochs=5"])
        assert (folder / "probe" / "init.npz").read_bytes() == before
        assert Run(folder).arrays("last")["step"] == 5

    def test_an_interrupted_run_has_a_snapshot_of_its_last_step(self, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = stopped_at_step_2(monkeypatch)
        found = Run(folder).arrays("last")
        assert found["step"] == 2
        parts = build(compose(REGRESSION))
        parts.task.load_state_dict(weights(folder))
        now = probe.snapshot(parts.task, parts.data.test[[0]], None)
        np.testing.assert_allclose(found["membrane"], now["membrane"], rtol=1e-5)

    @pytest.mark.parametrize(
        ("where", "error"),
        [
            ("snnexp.training.probe.snapshot", torch.OutOfMemoryError("no memory")),
            ("snnexp.training.probe.live_pictures", ValueError("no such shape")),
            ("snnexp.record.run.Run.write_arrays", OSError(28, "No space left on device")),
            ("snnexp.record.run.Run.arrays", CheckpointError("init.npz: damaged")),
            ("snnexp.record.run.Run.write_figure", OSError(28, "No space left on device")),
            ("snnexp.figures.style.png", AssertionError("axes")),
        ],
        ids=lambda value: value if isinstance(value, str) else type(value).__name__,
    )
    def test_a_failing_figure_does_not_end_training(
        self, where: str, error: Exception, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr(where, fail)
        record = run(compose([*REGRESSION, *ALWAYS]))
        assert record.status == Run(record.path).read()["status"] == "finished"
        assert Run(record.path).read()["metrics"] == record.metrics
        warnings = [
            line for line in capfd.readouterr().err.splitlines() if line.startswith("snnexp: no figures after step")
        ]
        assert len(warnings) >= 3
        assert all(type(error).__name__ in line for line in warnings)

    def test_an_interruption_during_a_failing_figure_is_reported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: Any) -> None:
            raise torch.OutOfMemoryError("no memory")

        monkeypatch.setattr(probe, "snapshot", fail)
        folder = stopped_at_step_2(monkeypatch)
        assert Run(folder).read()["status"] == "interrupted"
        assert Run(folder).read()["exit_code"] == 143

    def test_a_run_without_snapshots_resumes_with_figures(self, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = run(compose([*REGRESSION, *NEVER])).path
        resume(folder, ["trainer.max_epochs=5", "logger.draw_every_n_epochs=1"])
        assert (folder / "figures" / "trajectory.png").exists()

    def test_a_large_network_is_recorded_with_fewer_samples(
        self, tiny_mnist: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # 8 steps of 12 + 10 neurons
        monkeypatch.setattr(probe, "MAX_STATES", 3 * 8 * 22)
        folder = run(compose(["experiment=mnist_rleaky_count", *MNIST])).path
        assert len(Run(folder).arrays("last")["label"]) == 3


class TestEvaluationCounts:
    @pytest.mark.slow
    def test_add_up_over_all_batches(self, tiny_mnist: Path) -> None:
        cfg = compose(["experiment=mnist_rleaky_count", *MNIST, "data.batch_size=7"])
        record = run(cfg)
        parts = build(cfg)
        parts.task.load_state_dict(weights(record.path))
        x, y = parts.data.test[list(range(20))]
        traces = dict(zip(parts.network.neurons(), parts.network(parts.encoder(x)), strict=True))
        found = Run(record.path).arrays("test")
        assert found["samples"] == 20
        assert found["num_steps"] == 8
        for name, trace in traces.items():
            count = trace.spikes.sum((0, 1))
            assert np.array_equal(found[f"spikes/{name}"], count.long())
            assert record.metrics[f"test/dead/{name}"] == pytest.approx((count == 0).float().mean().item())
            assert record.metrics[f"test/saturated/{name}"] == pytest.approx((count == 160).float().mean().item())
        predicted = traces["readout"].spikes.sum(0).argmax(-1)
        for true in range(10):
            for taken in range(10):
                assert found["confusion"][true, taken] == ((y == true) & (predicted == taken)).sum()
        assert found["confusion"].trace() / 20 == pytest.approx(record.metrics["test/accuracy"])

    def test_restart_with_each_test(self, tiny_mnist: Path) -> None:
        parts = build(compose(["experiment=mnist_rleaky_count", *MNIST]))
        counts = EvaluationCounts(["hidden1", "readout"], parts.decoder)
        Bridge.of(parts.trainer).assigned = [Member(parts.task, [counts])]
        for _ in range(2):
            with terminal.quiet():
                parts.trainer.test(parts.task, datamodule=parts.data, verbose=False)
            assert counts.samples == 20
            assert counts.confusion is not None
            assert counts.confusion.sum() == 20

    @pytest.mark.slow
    def test_synops_of_the_layers_add_up(self, tiny_mnist: Path) -> None:
        measured = run(compose(["experiment=mnist_parametrized_lif", *MNIST])).metrics
        layers = [measured[f"test/synops/{name}"] for name in ("hidden1", "readout")]
        assert sum(layers) == pytest.approx(measured["test/synops"])
        assert min(layers) > 0
