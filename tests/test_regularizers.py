"""Penalties: values by hand, gradients through every kernel, logging, and their effect on training."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import snntorch.functional
import torch
from torch import Tensor

from snnexp import kernels
from snnexp.errors import ConfigError
from snnexp.experiment import build, compose, run
from snnexp.network import MLP
from snnexp.neurons import Leaky, RLeaky
from snnexp.regularizers import L1, Band, Penalty, TargetRate

WORDS = ["network.hidden=[6,5]", "data.batch_size=8", "trainer=cpu", "logger=jsonl", "num_steps=5"]
PENALTY = [*WORDS, "regularizer=target_rate", "regularizer.target_rate.target=0.9"]


def test_a_target_rate_by_hand() -> None:
    """Rates .5, 0 and 1, target .25, averaged over the neurons of both layers."""
    one = SimpleNamespace(spike_count=torch.tensor([[4.0, 0.0], [0.0, 0.0]]), num_steps=4)
    other = SimpleNamespace(spike_count=torch.tensor([[4.0], [4.0]]), num_steps=4)
    actual = TargetRate(weight=3.0, target=0.25)({"hidden1": one, "hidden2": other})
    assert actual.item() == pytest.approx(3 * (0.25**2 + 0.25**2 + 0.75**2) / 3)


def test_l1_sums_over_layers_and_averages_over_samples() -> None:
    """4 and 4 spikes in the first sample, 0 and 2 in the second."""
    one = SimpleNamespace(spike_count=torch.tensor([[3.0, 1.0], [0.0, 0.0]]), num_steps=4)
    maps = SimpleNamespace(spike_count=torch.tensor([[[[4.0]]], [[[2.0]]]]), num_steps=4)
    assert L1(weight=0.5)({"conv1": maps, "hidden1": one}).item() == pytest.approx(0.5 * (8 + 2) / 2)
    peer = snntorch.functional.reg.l1_rate_sparsity(0.5)
    spikes = (torch.rand(4, 6, 5) > 0.5).float()
    trace = SimpleNamespace(spike_count=spikes.sum(0), num_steps=4)
    torch.testing.assert_close(6 * L1(weight=0.5)({"hidden1": trace}), peer(spikes))


def test_a_band_by_hand() -> None:
    """Rates .5, 0 and 1, band .25 to .75: the first is within the band, the others add .25^2 each."""
    one = SimpleNamespace(spike_count=torch.tensor([[4.0, 0.0], [0.0, 0.0]]), num_steps=4)
    other = SimpleNamespace(spike_count=torch.tensor([[4.0], [4.0]]), num_steps=4)
    actual = Band(3.0, 0.25, 0.75)({"hidden1": one, "hidden2": other})
    assert actual.item() == pytest.approx(3 * 2 * 0.25**2 / 3)
    with pytest.raises(ConfigError, match=r"upper: got 0\.1, must be at least lower"):
        Band(lower=0.2, upper=0.1)


@pytest.mark.parametrize("penalty", [L1(2.0), Band(2.0, 0.3, 0.4), TargetRate(2.0, 0.3)])
def test_gradients_by_finite_differences(penalty: Penalty) -> None:
    counts = (4 * torch.rand(5, 3, dtype=torch.float64)).requires_grad_()

    def value(counts: Tensor) -> Tensor:
        return penalty({"hidden1": SimpleNamespace(spike_count=counts, num_steps=4)})

    assert torch.autograd.gradcheck(value, counts)


def test_several_at_once() -> None:
    cfg = compose([*WORDS, "data=digits", "regularizer=[l1,band]", "regularizer.l1.weight=0.1"])
    parts = build(cfg)
    assert {name: type(each) for name, each in parts.task.penalties.items()} == {"l1": L1, "band": Band}


def test_layers() -> None:
    layers = {"hidden1": True, "relu": False, "hidden2": True, "readout": True}
    assert TargetRate().chosen(layers) == ["hidden1", "hidden2"]
    assert TargetRate(layers=["readout"]).chosen(layers) == ["readout"]
    for wrong in (["hidden3"], ["relu"], []):
        with pytest.raises(ConfigError, match=r"^layers: got .*, of which there are hidden1, hidden2, readout$"):
            TargetRate(layers=wrong).chosen(layers)


@pytest.mark.parametrize("neuron", [Leaky, RLeaky])
def test_gradients_reach_the_hidden_layers_through_any_kernel(neuron: Any) -> None:
    """With a constant current, for which the fused kernel saves no steps, and with a changing one."""
    for steps in (1, 7):
        results: list[tuple[Tensor, ...]] = []
        for kernel in ("fused", "reference"):
            torch.manual_seed(0)
            made = MLP((5,), 3, neuron, neuron, num_steps=7, hidden=(6, 4)).double()
            kernels.use(made, kernel, torch.device("cpu"))
            traces = made(2 * torch.rand((steps, 9, 5), generator=torch.Generator().manual_seed(1)).double())
            penalty = TargetRate(target=0.5)({"hidden1": traces[0], "hidden2": traces[1]})
            weights = [made.layers[name].synapse.weight for name in ("hidden1", "hidden2")]
            own = torch.autograd.grad(penalty, weights, retain_graph=True)
            assert all(gradient.any() for gradient in own)
            # together with a loss, whose gradient reaches the same layers
            both = torch.autograd.grad(penalty + traces[-1].membrane.mean(), weights)
            results.append((penalty, *own, *both))
        torch.testing.assert_close(*results)


@pytest.mark.usefixtures("tiny_mnist")
def test_training_minimizes_the_sum_and_reports_the_loss() -> None:
    parts = build(compose(PENALTY))
    x, y = parts.data.train[[*range(8)]]
    loss, penalties, _, traces = parts.task._step((x, y))
    assert loss == parts.loss(traces[-1], y)
    parts.task.trainer = SimpleNamespace(log_every_n_steps=10, global_step=1)  # type: ignore[assignment]
    outputs = parts.task.training_step((x, y), 0)
    assert outputs["loss"] == loss + penalties["target_rate"] > outputs["unregularized_loss"] == loss
    assert parts.task.split_by_member(outputs, (x, y))[0][0]["loss"] == loss


@pytest.mark.usefixtures("tiny_mnist")
def test_a_run_logs_penalties_by_name(tmp_path: Path) -> None:
    rows = {}
    for weight in (0, 100):
        words = [f"regularizer.target_rate.weight={weight}", f"logger.root={tmp_path / str(weight)}"]
        more = ["data.val_size=8", "trainer.max_epochs=2", "trainer.log_every_n_steps=1"]
        done = run(compose([*PENALTY, *more, *words]))
        rows[weight] = [json.loads(line) for line in (done.path / "metrics.jsonl").read_text().splitlines()]
        names = {f"{split}/penalty/target_rate" for split in ("val", "test")}
        assert names <= done.metrics.keys()
        assert sum("train/penalty/target_rate" in row for row in rows[weight]) == 8
    # in the first step, before weights differ, the losses are equal
    assert rows[0][0]["train/loss"] == rows[100][0]["train/loss"]
    assert rows[0][0]["train/penalty/target_rate"] == 0 < rows[100][0]["train/penalty/target_rate"]
    plain = run(compose([*WORDS, *more, f"logger.root={tmp_path / 'none'}"]))
    without = [json.loads(line) for line in (plain.path / "metrics.jsonl").read_text().splitlines()]
    kept = [{name: value for name, value in row.items() if "penalty" not in name} for row in rows[0]]
    assert kept == without, "a weight of 0 has no effect"
    assert rows[100][-1]["test/firing_rate/hidden1"] > rows[0][-1]["test/firing_rate/hidden1"], "the target is 0.9"
