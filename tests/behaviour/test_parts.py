"""What users do with built parts, and parts that cannot work together."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from shell import OUTSIDE, Shell, record
from torch import Tensor

from snnexp.experiment import build, compose, run

WORDS = ["experiment=regression_sqrt", "trainer=cpu", "trainer.max_epochs=1", "logger=jsonl", "network.hidden=[4]"]
RECURRENT = [*WORDS, "neuron=rleaky", "readout=rleaky"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def inputs(parts: Any) -> Tensor:
    return parts.encoder(parts.data.train[[0]][0])  # type: ignore[no-any-return]


def test_a_loss_that_cannot_see_the_label_is_refused(snnexp: Shell) -> None:
    words = ("data=blobs", "loss=mse_count", "num_steps=1", "network.hidden=[4]", "logger=jsonl", "trainer=cpu")
    ended = snnexp("train", *OUTSIDE, *words)
    assert ended.code == 2
    assert ended.key == "loss"
    assert snnexp.runs() == []


@pytest.mark.parametrize("kernel", ["fused", "reference"])
def test_hooks_of_a_neuron_are_called(kernel: str) -> None:
    parts = build(compose([*WORDS, f"kernel={kernel}"]))
    called: list[object] = []
    for neuron in parts.network.neurons().values():
        neuron.register_forward_hook(lambda *arguments: called.append(arguments))
    parts.network(inputs(parts))
    assert len(called) == len(parts.network.neurons())


@pytest.mark.slow
# torch catches it where warnings are no errors
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("whole", [False, True])
def test_a_network_can_be_compiled(whole: bool) -> None:
    """In parts, and without a break."""
    parts = build(compose([*RECURRENT, "num_steps=5"]))
    x = inputs(parts)
    plain = parts.network(x)[-1].membrane
    torch.compiler.reset()
    compiled = torch.compile(lambda x: parts.network(x)[-1].membrane, backend="aot_eager", fullgraph=whole)
    assert torch.allclose(compiled(x), plain)


def test_a_network_runs_in_bfloat16() -> None:
    parts = build(compose(RECURRENT))
    network = parts.network.to(torch.bfloat16)
    membrane = network(inputs(parts).to(torch.bfloat16))[-1].membrane
    assert torch.isfinite(membrane).all()


def test_the_weights_of_a_network_can_be_measured(snnexp: Shell) -> None:
    cfg = compose(WORDS)
    done = run(cfg)
    saved = torch.load(done.path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    parts = build(cfg)
    parts.network.load_state_dict({name.removeprefix("network."): value for name, value in saved.items()})
    torch.save(parts.network.state_dict(), snnexp.folder / "weights.pt")
    ended = snnexp("eval", str(done.path), "--ckpt", "weights.pt", "--json")
    assert ended.code == 0
    assert json.loads("\n".join(ended.out))["test/l1"] == done.metrics["test/l1"]


@pytest.mark.slow
def test_training_can_start_from_a_run(snnexp: Shell) -> None:
    words = ["train", *WORDS]
    assert snnexp(*words).code == 0
    (first,) = snnexp.runs()
    assert snnexp(*words, f"init_from={first}").code == 0
    (second,) = set(snnexp.runs()) - {first}
    before = torch.load(first / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    start = torch.load(second / "checkpoints" / "init.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(start[name], value) for name, value in before.items())
    assert record(second)["status"] == "finished"


class TestAccuracyOfAReadoutThatNeverFires:
    """It has no most active class, and its membranes, which the loss reads, tell the classes apart."""

    @pytest.fixture
    def trained(self, snnexp: Shell) -> Path:
        words = ("data=blobs", "loss=ce_membrane", "readout=leaky", "network.hidden=[16]", "logger=jsonl")
        snnexp("train", *OUTSIDE, *words, "trainer=cpu", "trainer.max_epochs=5", "readout.threshold=100")
        return snnexp.run()

    @pytest.mark.slow
    def test_is_high_by_the_highest_membrane(self, trained: Path) -> None:
        parts = build(OmegaConf.load(trained / "config.yaml"))
        saved = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        parts.task.load_state_dict(saved)
        x, y = parts.data.test[[*range(len(parts.data.test))]]
        trace = parts.network(parts.encoder(x))[-1]
        assert not trace.spikes.any()
        assert (trace.membrane.amax(0).argmax(-1) == y).float().mean() > 0.5

    @pytest.mark.slow
    def test_is_high_as_the_run_reports_it(self, trained: Path) -> None:
        assert record(trained)["metrics"]["test/accuracy"] > 0.5
