"""Weight decay applies to synapses and feedback, not to parameters of a neuron's equation."""

from typing import Any

import pytest
import torch

from snnexp.experiment import build, compose

RECURRENT = [
    "experiment=regression_sqrt",
    "neuron=rleaky",
    "neuron.learn_beta=true",
    "neuron.learn_threshold=true",
    "network.hidden=[3]",
    "trainer=cpu",
]
LIF = [
    "experiment=regression_sqrt",
    "neuron=parametrized_lif",
    "neuron.log_tau=true",
    "network.hidden=[3]",
    "trainer=cpu",
]


def after_a_step(*words: str) -> dict[str, tuple[Any, Any]]:
    """Return each parameter by name, before and after a step with zero gradients."""
    task = build(compose([*words, "optimizer=sgd", "optimizer.lr=0.5", "optimizer.momentum=0"])).task
    before = {name: parameter.detach().clone() for name, parameter in task.named_parameters()}
    optimizer = task.make_optimizer([*task.parameters()], 1)["optimizer"]
    for parameter in task.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return {name: (before[name], parameter.detach()) for name, parameter in task.named_parameters()}


@pytest.mark.parametrize("words", [RECURRENT, [*RECURRENT, "neuron.feedback=one_to_one"], LIF])
def test_decay_applies_to_weights_only(words: list[str]) -> None:
    """w becomes w (1 - lr weight_decay); decays, thresholds and time constants do not change."""
    parameters = after_a_step(*words, "optimizer.weight_decay=0.2")
    constants = {"beta", "threshold", "v_th", "original"}
    for name, (before, after) in parameters.items():
        factor = 1.0 if name.rpartition(".")[2] in constants else 1 - 0.5 * 0.2
        torch.testing.assert_close(after, before * factor, msg=name)
    assert {name.rpartition(".")[2] for name in parameters} & constants
    assert any("recurrent" in name or name.endswith(".V") for name in parameters)


def test_without_decay_there_is_one_group() -> None:
    task = build(compose(RECURRENT)).task
    (group,) = task.make_optimizer([*task.parameters()], 1)["optimizer"].param_groups
    assert [*map(id, group["params"])] == [*map(id, task.parameters())]


def test_user_optimizers_receive_the_parameters() -> None:
    task = build(compose(RECURRENT)).task
    task.optimizer = lambda parameters, total_steps: {"optimizer": torch.optim.Adagrad(parameters, weight_decay=0.1)}
    (group,) = task.make_optimizer([*task.parameters()], 1)["optimizer"].param_groups
    assert len(group["params"]) == len([*task.parameters()])
