"""Experiments through the notebook interface: all recipes, combinations of parts, and learning."""

import json
import os
from pathlib import Path

import pytest
import torch

from snnexp import metrics
from snnexp.config import choices
from snnexp.decoders import SpikeCount
from snnexp.errors import ConfigError
from snnexp.experiment import build, compose, run
from snnexp.record.run import Run

RECIPES = sorted(choices("experiment"))
PUBLISHED = {
    "mnist_leaky": {"test/accuracy": 0.9387},
    "mnist_parametrized_lif": {"test/accuracy": 0.9594},
    "regression_sqrt": {"test/seed_mean_loss": 1.22e-2, "test/relative_error": 2.84e-2},
}

real_mnist = pytest.mark.skipif(
    not Path(os.environ.get("SNNEXP_DATA_DIR", "data"), "MNIST", "raw").is_dir(),
    reason="needs MNIST; set SNNEXP_DATA_DIR to the folder above MNIST/raw",
)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "SNNEXP_DATA_DIR" in os.environ:
        monkeypatch.setenv("SNNEXP_DATA_DIR", str(Path(os.environ["SNNEXP_DATA_DIR"]).absolute()))
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_runs(tiny_mnist: Path, recipe: str) -> None:
    cfg = compose([f"experiment={recipe}", "debug=batch", "data.batch_size=1"])
    record = run(cfg)
    assert record.status == "finished"
    assert record.path.parent == Path("outputs", recipe)
    assert ("test/accuracy" in record.metrics) != recipe.startswith("regression")
    assert ("test/l1" in record.metrics) == recipe.startswith("regression")
    assert dict(cfg.published) == PUBLISHED.get(recipe, PUBLISHED["regression_sqrt"] if "fit" in recipe else {})


@pytest.mark.slow
@pytest.mark.parametrize("neuron", ["leaky", "leaky_random", "rleaky", "parametrized_lif"])
@pytest.mark.parametrize("loss", ["ce_membrane", "mse_count", "mse_membrane", "nll_max_voltage"])
def test_every_neuron_trains_with_every_loss(tiny_mnist: Path, neuron: str, loss: str) -> None:
    small = ["network.hidden=[20]", "num_steps=8", "data.batch_size=20", "trainer.max_epochs=1", "logger=jsonl"]
    record = run(compose(["experiment=mnist_leaky", f"neuron={neuron}", f"loss={loss}", *small]))
    before, after = (torch.load(record.path / f"checkpoints/{name}.ckpt")["state_dict"] for name in ("init", "last"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name in before if name.endswith("synapse.weight")} <= moved
    learned = {"leaky_random": {"beta"}, "rleaky": {"recurrent.weight"}, "parametrized_lif": {"tau_mem_inv", "v_th"}}
    assert {f"network.layers.hidden1.neuron.{name}" for name in learned.get(neuron, ())} <= moved


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [["encoder=bernoulli"], ["encoder=latency"], ["encoder=constant_current_lif", "data=mnist_standardized"]],
)
def test_every_image_encoder_trains(tiny_mnist: Path, words: list[str]) -> None:
    record = run(compose(["experiment=mnist_rleaky_count", *words, "debug=batch", "data.batch_size=4", "logger=jsonl"]))
    assert record.metrics["test/synops"] > 0, "input spikes are counted"


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_kernels_give_equal_runs(tiny_mnist: Path, recipe: str) -> None:
    short = ["debug=batch", "data.batch_size=1", "logger=jsonl"]
    records = [run(compose([f"experiment={recipe}", *short, f"kernel={kernel}"])) for kernel in ("reference", "fused")]
    assert records[0].metrics == pytest.approx(records[1].metrics, rel=1e-3, abs=1e-6)
    entries = [json.loads((record.path / "run.json").read_text()) for record in records]
    assert [entry["kernel"] for entry in entries] == ["reference", "fused"]
    inputs_are_spikes = recipe == "mnist_parametrized_lif"
    assert [entry["inputs"] for entry in entries] == ["dense", "events" if inputs_are_spikes else "dense"]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["mnist_leaky", "mnist_rleaky_conv", "mnist_parametrized_lif", "regression_sqrt"])
def test_bfloat16_gives_nearly_equal_results(tiny_mnist: Path, recipe: str) -> None:
    small = ["debug=batch", "data.batch_size=1", "logger=jsonl"]
    exact, mixed = (
        run(compose([f"experiment={recipe}", *small, f"trainer.precision={precision}"]))
        for precision in ("32-true", "bf16-mixed")
    )
    losses = [next(iter(Run(record.path).metrics()))["train/loss"] for record in (exact, mixed)]
    assert losses[1] == pytest.approx(losses[0], rel=0.1)
    weights = [torch.load(record.path / "checkpoints/last.ckpt")["state_dict"] for record in (exact, mixed)]
    assert {weight.dtype for weight in weights[1].values()} == {torch.float32}
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_half_precision_is_rejected() -> None:
    with pytest.raises(ConfigError, match=r"^trainer\.precision: got 16-mixed, must be one of 32-true, bf16-mixed$"):
        compose(["experiment=mnist_leaky", "trainer.precision=16-mixed"])


def test_parts_in_a_notebook(tiny_mnist: Path) -> None:
    parts = build(compose(["experiment=mnist_leaky", "neuron.beta=0.9", "seed=3", "data.batch_size=5"]))
    x, y = next(iter(parts.data.train_dataloader()))
    traces = parts.network(parts.encoder(x))
    assert [trace.spikes.shape for trace in traces] == [(25, 5, 1000), (25, 5, 10)]
    steps = [torch.nn.functional.cross_entropy(membrane, y) for membrane in traces[-1].membrane]
    torch.testing.assert_close(parts.loss(traces[-1], y), sum(steps))
    assert parts.network.neurons()["hidden1"].beta == torch.tensor(0.9)


def test_a_seed_fixes_weights_and_data() -> None:
    first, again, other = (build(compose(["experiment=regression_sqrt", f"seed={seed}"])) for seed in (1, 1, 2))
    weights = [torch.cat([p.flatten() for p in parts.network.parameters()]) for parts in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(first.data.train.labels, again.data.train.labels)
    assert not torch.equal(first.data.train.labels, other.data.train.labels)


@pytest.mark.slow
def test_metrics_belong_to_the_last_weights(tiny_mnist: Path) -> None:
    small = ["trainer.max_epochs=1", "data.batch_size=8", "network.hidden=[30]", "logger=jsonl"]
    cfg = compose(["experiment=mnist_rleaky_count", *small])
    record = run(cfg)
    parts = build(cfg)
    parts.task.load_state_dict(torch.load(record.path / "checkpoints/last.ckpt")["state_dict"])
    x, y = parts.data.test[list(range(20))]
    with torch.no_grad():
        traces = parts.network(parts.encoder(x))
    hits, count = metrics.accuracy(SpikeCount()(traces[-1]), y)
    assert record.metrics["test/accuracy"] == pytest.approx(hits / count)
    assert record.metrics["test/firing_rate/hidden1"] == pytest.approx(traces[0].spikes.mean().item())
    assert record.metrics["test/loss"] == pytest.approx(parts.loss(traces[-1], y).item(), rel=1e-5)


@pytest.mark.slow
def test_best_has_the_lowest_validation_loss(tiny_mnist: Path) -> None:
    small = ["data.val_size=10", "data.batch_size=10", "network.hidden=[30]", "logger=jsonl"]
    record = run(compose(["experiment=mnist_leaky", *small, "trainer.max_epochs=4", "optimizer.lr=0.02"]))
    losses = [row["val/loss"] for row in Run(record.path).metrics() if "val/loss" in row]
    assert len(losses) == 4
    epochs = torch.load(record.path / "checkpoints/best.ckpt")["epoch"]
    assert losses[epochs - 1] == min(losses)


@pytest.mark.slow
def test_regression_follows_its_target() -> None:
    """After the tutorial's 100 iterations the error is far below that of a resting membrane."""
    cfg = compose(["experiment=regression_sqrt", "seed=1", "logger=jsonl"])
    at_rest = build(cfg).data.train.labels.mean().item()
    assert run(cfg).metrics["test/l1"] < at_rest / 5


@pytest.mark.slow
@real_mnist
def test_mnist_is_learned_in_100_steps() -> None:
    short = ["trainer.limit_batches=100", "trainer.max_epochs=1", "logger=jsonl"]
    record = run(compose(["experiment=mnist_rleaky_count", *short]))
    assert record.metrics["test/accuracy"] > 0.8


@pytest.mark.slow
def test_a_terminal_error_does_not_change_a_finished_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> str:
        raise ValueError("no such line")

    monkeypatch.setattr("snnexp.terminal.loss_curve", fail)
    with pytest.raises(ValueError, match="no such line"):
        run(compose(["experiment=regression_sqrt", "debug=batch", "network.hidden=[4]"]))
    (folder,) = Path("outputs", "regression_sqrt").iterdir()
    assert Run(folder).read()["status"] == "finished"
