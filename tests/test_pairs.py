"""Incompatible parts: the check of a config raises the same errors as building the parts."""

from collections.abc import Mapping
from typing import Any

import pytest

from snnexp.config import check, compose, compose_unchecked
from snnexp.errors import ConfigError
from snnexp.experiment import build


def inline(node: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"{key}: {value}" for key, value in node.items()) + "}"


UNIFORM = {"_target_": "snnexp.initializers.Uniform", "low": 2, "high": 1}
LOG_NORMAL = {"_target_": "snnexp.initializers.LogNormal", "mean": 0, "std": 1}
DENSE, CONV, REGRESSION, LIF = "mnist_leaky", "mnist_rleaky_conv", "regression_sqrt", "mnist_parametrized_lif"
PAIRS = [
    (REGRESSION, "loss=ce_membrane", "loss: CEMembrane compares with labels"),
    (REGRESSION, "loss=mse_count", "loss: MSECount compares with labels"),
    (REGRESSION, "encoder=constant", "encoder: Constant does not fit these data; use encoder=sequence"),
    (DENSE, "encoder=sequence", "encoder: Sequence does not fit these data; use encoder=constant"),
    (DENSE, "encoder=delta", "encoder: Delta does not fit these data; use encoder=constant"),
    (REGRESSION, "encoder=rate", "encoder: Rate does not fit these data; use encoder=sequence"),
    (CONV, "neuron=alif neuron.recurrent=true", "neuron.recurrent: a recurrent layer must be flat"),
    (CONV, "neuron=rsynaptic", "neuron.feedback: linear feedback requires a flat layer"),
    (DENSE, "neuron=alif neuron.tau_m=0.5", "neuron.tau_m: an initial value is 0.5, must be at least 1"),
    (LIF, "loss=mse_count", "loss: MSECount reads spikes and this readout never fires"),
    (CONV, "neuron.kernel_size=2", "neuron.kernel_size: got 2, conv2d feedback requires an odd"),
    (CONV, "neuron.kernel_size=null", "neuron.kernel_size: got null, conv2d feedback requires an odd"),
    (CONV, "neuron.feedback=linear", "neuron.feedback: linear feedback requires a flat layer"),
    (CONV, "neuron=parametrized_lif", "neuron.recurrent: a recurrent layer must be flat"),
    (CONV, "network=mlp", "neuron.feedback: conv2d feedback requires a feature map"),
    (CONV, "network.hidden=[20]", "neuron.feedback: conv2d feedback requires a feature map"),
    (CONV, "readout=same", "readout.feedback: conv2d feedback requires a feature map"),
    (CONV, "network.kernel_size=29", "network.channels: the output of convolution 1 is empty"),
    (CONV, "network.channels=[1,1,1,1]", "network.channels: the output of convolution 3 is empty"),
    (CONV, "network.kernel_size=null", "network.kernel_size: got null"),
    (REGRESSION, "network=conv", "network.inputs: got [1], a conv network needs images"),
    (DENSE, f"neuron.beta={inline(UNIFORM)}", "neuron.beta.high: got 1, must be at least low = 2"),
    (
        DENSE,
        f"neuron.threshold={inline(LOG_NORMAL)}",
        "neuron.threshold.mean: got 0, must be a finite number",
    ),
    (LIF, "neuron.tau_mem_inv=2000", "neuron.tau_mem_inv: an initial value is 2000, must be at most 1000"),
    (LIF, "neuron.dt=0.01 neuron.tau_mem_inv=50", "neuron.tau_syn_inv: an initial value is 200, must be at most 100"),
    (LIF, "readout.dt=0.006", "readout.tau_syn_inv: an initial value is 200, must be at most 166"),
    (LIF, "encoder.dt=0.02", "encoder.tau_mem_inv: got 100 per s, must be at most 1 / dt = 50 per s"),
    (REGRESSION, "num_steps=1", "data.num_steps: got 1, must be a whole number from 2 to 1000000"),
    (REGRESSION, "data={drop_last: true, batch_size: 3}", "data.batch_size: got 3, must be at most the 1 training"),
    (REGRESSION, "trainer=ddp", "data.batch_size: 1 samples per batch cannot be shared equally by 2 processes"),
    (DENSE, "+neuron.foo=1", "neuron.foo: unknown key, Leaky has no such argument, there are beta, "),
    (DENSE, "+neuron.treshold=1", "neuron.treshold: unknown key, Leaky has no such argument, did you mean threshold?"),
    (DENSE, "+network.outputs=5", "network.outputs: unknown key, MLP has no such argument"),
    (DENSE, "+surrogate.slope=1", "surrogate.slope: unknown key, ATan"),
    (REGRESSION, "+neuron.beta.value=1", "neuron.beta.value: unknown key, Uniform"),
    (REGRESSION, "~data.mode", "data: regression_data is missing a required argument: 'mode'"),
    (DENSE, "neuron.beta={_target_: snnexp.initializers.Constant}", "neuron.beta: Constant is missing a required"),
]
NEEDS_MNIST = [
    ("data.val_size=60000", "data.val_size: got 60000, must be less than the 60000 training samples"),
    ("data.batch_size=60001", "data.batch_size: got 60001, must be at most the 60000 training samples"),
    (
        "trainer=ddp data.batch_size=129",
        "data.batch_size: 129 samples per batch cannot be shared equally by 2 processes",
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "override", "message"), PAIRS, ids=[f"{pair[0]} {pair[1]}" for pair in PAIRS])
@pytest.mark.usefixtures("tiny_mnist")
def test_check_and_build_raise_the_same_error(recipe: str, override: str, message: str) -> None:
    """Constructors check the same rules for users without a config; both must agree."""
    overrides = [
        f"experiment={recipe}",
        "trainer.accelerator=cpu",
        *override.split(" " if "{" not in override else "\0"),
    ]
    with pytest.raises(ConfigError) as early:
        compose(overrides)
    assert str(early.value).startswith(message)
    if override != "trainer=ddp" and "+surrogate" not in override:
        cfg, _ = compose_unchecked([*overrides, "data.batch_size=4"] if "mnist" in recipe else overrides)
        with pytest.raises(ConfigError) as late:
            build(cfg)
        assert str(late.value).split(":")[0] == str(early.value).split(":")[0]
        assert str(late.value) == str(early.value)


@pytest.mark.parametrize(("overrides", "message"), NEEDS_MNIST)
def test_sizes_that_exceed_the_training_images(overrides: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["experiment=mnist_leaky", "trainer.accelerator=cpu", *overrides.split()])
    assert str(caught.value).startswith(message)


def test_largest_valid_sizes() -> None:
    compose(["data.val_size=59872", "data.batch_size=128"])
    compose(["data.batch_size=60000"])
    compose(["network=conv", "network.kernel_size=28", "network.channels=[4]"])
    compose(["encoder=constant_current_lif", "encoder.dt=0.01"])
    compose(["neuron=parametrized_lif", "neuron.tau_mem_inv=1000"])


def test_unreadable_parts_are_checked_by_their_constructors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNNEXP_ALLOW_TARGETS", "elsewhere")
    cfg, _ = compose_unchecked(["experiment=regression_sqrt", "loss=ce_membrane"])
    with pytest.raises(ConfigError, match=r"^loss: "):
        check(cfg)
    cfg.loss = {"_target_": "elsewhere.Loss", "anything": 1}
    assert check(cfg).loss.anything == 1
