"""Neurons in runs: trained, resumed to the bit, and side by side in a stack."""

from pathlib import Path
from typing import Any

import pytest
import torch
from ends import content
from kills import KilledError

from snnexp.experiment import compose, resume, run
from snnexp.network import MLP, stack
from snnexp.neurons import ALIF, LIF, RSynaptic, Synaptic
from snnexp.record.run import Run
from snnexp.training.task import Task

TINY = [
    "experiment=regression_sqrt",
    "readout=same",
    "trainer=cpu",
    "trainer.max_epochs=2",
    "network.hidden=[5]",
    "num_steps=6",
    "data.num_samples=5",
    "data.batch_size=2",
    "logger=jsonl",
    "logger.save_every_s=0",
]
NEURONS: dict[str, list[str]] = {
    "rsynaptic": ["neuron.learn_beta=true"],
    "alif": ["neuron.recurrent=true"],
}
FACTORIES: dict[str, Any] = {
    "lif": lambda features: LIF(features, v_th=0.3, learn=["tau_mem_inv"]),
    "synaptic": lambda features: Synaptic(features, learn_alpha=True),
    "rsynaptic": lambda features: RSynaptic(features, learn_threshold=True),
    "rsynaptic-one-to-one": lambda features: RSynaptic(features, feedback="one_to_one"),
    "alif": ALIF,
    "alif-recurrent": lambda features: ALIF(features, recurrent=True),
}


@pytest.mark.parametrize("neuron", NEURONS)
def test_a_run_that_is_killed_and_resumed_is_the_whole_one(
    neuron: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cfg = compose([*TINY, f"neuron={neuron}", *NEURONS[neuron]])
    whole = run(cfg)
    original, steps = Task.training_step, iter(range(100))

    def die(self: Task, *arguments: Any) -> Any:
        if next(steps) == 4:
            raise KilledError
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Task, "training_step", die)
        with pytest.raises(KilledError):
            run(cfg)
    (killed,) = {path.parent for path in Path("outputs").rglob("run.json")} - {Path(whole.path)}
    resume(killed)
    assert content(killed) == content(whole.path)
    assert Run(killed).read()["kernel"] == "reference"
    first, last = (torch.load(killed / "checkpoints" / f"{name}.ckpt", weights_only=True) for name in ("init", "last"))
    weights = {name: value for name, value in last["state_dict"].items() if "neuron" in name}
    assert any(not torch.equal(value, first["state_dict"][name]) for name, value in weights.items()), "it learns"


@pytest.mark.parametrize("neuron", FACTORIES)
def test_gradients_of_a_stack_are_those_of_its_members(neuron: str) -> None:
    made = FACTORIES[neuron]
    torch.manual_seed(0)
    members = [MLP((6,), 3, made, made, num_steps=7, hidden=[5]).double() for _ in range(2)]
    whole = stack(members)
    inputs = 4 * torch.rand(7, 2, 1, 6, dtype=torch.float64)
    trace = whole(inputs)[-1]
    assert trace.spikes.any()
    trace.membrane.square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in whole.named_parameters()}
    for index, member in enumerate(members):
        own = member(inputs[:, :, 0])[-1]
        torch.testing.assert_close(trace.membrane[:, :, index], own.membrane)
        own.membrane.square().sum().backward()
        for name, parameter in member.named_parameters():
            torch.testing.assert_close(gradients[name][index].view_as(parameter), parameter.grad)
