"""Configs: values of the recipes, errors of invalid overrides, and overrides that reproduce a config."""

import importlib
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from snnexp import cli
from snnexp.config import (
    GROUPS,
    NODES,
    check,
    choices,
    compose,
    conf_dir,
    hydra_literal,
    keys,
    loggers,
    overrides_of,
    params_to_overrides,
)
from snnexp.errors import ConfigError
from snnexp.experiment import build
from snnexp.spec import parts, rules
from snnexp.spec.places import PLACES

UNIFORM = {"_target_": "snnexp.initializers.Uniform", "low": 0, "high": 1}
MNIST_RECIPE = {
    "seed": 0,
    "data._target_": "snnexp.data.mnist_data",
    "data.mean": 0,
    "data.std": 1,
    "data.batch_size": 128,
    "optimizer._target_": "snnexp.optimizers.L2Adam",
    "optimizer.betas": [0.9, 0.999],
    "optimizer.weight_decay": 0,
    "schedule._target_": "snnexp.schedules.Constant",
}
RECURRENT_RECIPE = MNIST_RECIPE | {
    "num_steps": 10,
    "encoder._target_": "snnexp.encoders.Constant",
    "neuron._target_": "snnexp.neurons.RLeaky",
    "neuron.beta": 0.9,
    "neuron.threshold": 1,
    "neuron.reset": "subtract",
    "published": {},
}
COUNT_RECIPE = {
    "loss._target_": "snnexp.losses.MSECount",
    "loss.correct_rate": 0.8,
    "loss.incorrect_rate": 0.2,
}
DENSE_RECURRENT_RECIPE = RECURRENT_RECIPE | {
    "network._target_": "snnexp.network.MLP",
    "network.hidden": [128],
    "neuron.feedback": "linear",
    "readout._target_": "snnexp.neurons.RLeaky",
    "readout.feedback": "linear",
    "optimizer.lr": 1e-3,
    "trainer.max_epochs": 5,
}
REGRESSION_RECIPE = {
    "seed": 0,
    "num_steps": 50,
    "data._target_": "snnexp.data.regression_data",
    "data.num_steps": 50,
    "data.num_samples": 1,
    "data.batch_size": 1,
    "network._target_": "snnexp.network.MLP",
    "network.hidden": [128, 128],
    "neuron._target_": "snnexp.neurons.Leaky",
    "neuron.beta": UNIFORM,
    "neuron.threshold": UNIFORM,
    "neuron.learn_beta": True,
    "neuron.learn_threshold": False,
    "neuron.reset": "subtract",
    "readout._target_": "snnexp.neurons.Leaky",
    "readout.beta": UNIFORM,
    "readout.learn_beta": True,
    "readout.reset": "none",
    "neuron.surrogate._target_": "snnexp.surrogates.FastSigmoid",
    "neuron.surrogate.slope": 25,
    "loss._target_": "snnexp.losses.MSEMembrane",
    "optimizer._target_": "snnexp.optimizers.L2Adam",
    "optimizer.lr": 1e-3,
    "schedule._target_": "snnexp.schedules.Constant",
    "trainer.max_epochs": 100,
}
FITTED = {
    "optimizer.lr": 5e-3,
    "schedule._target_": "snnexp.schedules.Cosine",
    "trainer.max_epochs": 2500,
    "neuron.surrogate.slope": 10,
}

RECIPES: dict[str, dict[str, Any]] = {
    "mnist_leaky": MNIST_RECIPE
    | {
        "num_steps": 25,
        "encoder._target_": "snnexp.encoders.Constant",
        "network._target_": "snnexp.network.MLP",
        "network.hidden": [1000],
        "neuron._target_": "snnexp.neurons.Leaky",
        "neuron.beta": 0.95,
        "neuron.threshold": 1,
        "neuron.reset": "subtract",
        "neuron.learn_beta": False,
        "neuron.surrogate": {"_target_": "snnexp.surrogates.ATan", "alpha": 2},
        "readout.beta": 0.95,
        "readout.reset": "subtract",
        "loss._target_": "snnexp.losses.CEMembrane",
        "optimizer.lr": 5e-4,
        "trainer.max_epochs": 1,
        "published": {"test/accuracy": 0.9387},
    },
    "mnist_rleaky_count": DENSE_RECURRENT_RECIPE | COUNT_RECIPE,
    "mnist_rleaky_membrane": DENSE_RECURRENT_RECIPE
    | {"loss._target_": "snnexp.losses.MSEMembrane", "loss.on_target": 1.05, "loss.off_target": 0.2},
    "mnist_rleaky_conv": RECURRENT_RECIPE
    | COUNT_RECIPE
    | {"network._target_": "snnexp.network.Conv", "neuron.feedback": "conv2d", "neuron.kernel_size": 3},
    "regression_linear": REGRESSION_RECIPE | {"data.mode": "linear"},
    "regression_sqrt": REGRESSION_RECIPE | {"data.mode": "sqrt"},
    "regression_sqrt_fit": REGRESSION_RECIPE | {"data.mode": "sqrt"} | FITTED,
    "mnist_parametrized_lif": MNIST_RECIPE
    | {
        "num_steps": 32,
        "data.mean": 0.1307,
        "data.std": 0.3081,
        "data.batch_size": 256,
        "encoder._target_": "snnexp.encoders.ConstantCurrentLIF",
        "encoder.num_steps": 32,
        "network._target_": "snnexp.network.MLP",
        "network.hidden": [100],
        "neuron._target_": "snnexp.neurons.ParametrizedLIF",
        "neuron.recurrent": True,
        "neuron.tau_mem_inv": {"_target_": "snnexp.initializers.Normal", "mean": 100, "std": 20},
        "neuron.v_th": {"_target_": "snnexp.initializers.Normal", "mean": 0.5, "std": 0.1},
        "neuron.learn": ["tau_mem_inv", "v_th"],
        "neuron.surrogate": {"_target_": "snnexp.surrogates.SuperSpike", "alpha": 100},
        "readout._target_": "snnexp.neurons.LeakyIntegrator",
        "loss._target_": "snnexp.losses.NLLMaxVoltage",
        "optimizer.lr": 2e-3,
        "trainer.max_epochs": 10,
        "published": {"test/accuracy": 0.9594},
    },
}
RECIPES["digits_leaky"] = {
    key: value for key, value in RECIPES["mnist_leaky"].items() if not key.startswith("data.")
} | {
    "data._target_": "snnexp.data.digits_data",
    "data.batch_size": 32,
    "network.hidden": [100],
    "optimizer.lr": 5e-3,
    "trainer.max_epochs": 10,
    "published": {},
}
SEQUENCES = ["data=linear", "encoder=sequence", "loss=mse_membrane"]
NEEDS = {
    "schedule=plateau": ["data.val_size=1000"],
    "optimizer=torch": ["optimizer._target_=torch.optim.NAdam"],
    "encoder=delta": SEQUENCES,
    "data=dataset": ["data.dataset._target_=torch.utils.data.TensorDataset"],
    "decoder=none": SEQUENCES,
    "data=linear": SEQUENCES[1:],
    "data=sqrt": SEQUENCES[1:],
    "encoder=sequence": SEQUENCES,
    **{f"measure={name}": SEQUENCES for name in ("mae", "r2", "rmse")},
    "network=module": ["network._target_=torch.nn.Sequential"],
    "neuron=rleaky_conv": ["network=conv", "readout=leaky"],
}
"""Choices that require other overrides."""
CHOICES = [(group, choice) for group in GROUPS for choice in choices(group)]


class TestRecipes:
    @pytest.mark.parametrize("experiment", choices("experiment"))
    def test_has_the_published_values(self, experiment: str) -> None:
        cfg = compose([f"experiment={experiment}"])
        wanted = RECIPES[experiment] | {"name": experiment}
        found = {key: OmegaConf.select(cfg, key) for key in wanted}
        assert found == {
            key: OmegaConf.create(value) if isinstance(value, dict) else value for key, value in wanted.items()
        }
        assert cfg.network.num_steps == cfg.num_steps
        assert cfg.data.seed == cfg.seed

    def test_regression_sqrt_has_both_results_of_its_tutorial(self) -> None:
        published = compose(["experiment=regression_sqrt"]).published
        assert sorted(published.values()) == [1.22e-2, 2.84e-2]
        assert published["test/relative_error"] == 2.84e-2

    def test_overrides_propagate_through_interpolations(self) -> None:
        cfg = compose(["experiment=mnist_parametrized_lif", "num_steps=7", "seed=9", "surrogate=atan"])
        assert (cfg.network.num_steps, cfg.encoder.num_steps, cfg.data.seed) == (7, 7, 9)
        assert cfg.neuron.surrogate._target_ == "snnexp.surrogates.ATan"
        assert compose(["experiment=mnist_rleaky_count", "neuron.beta=0.8"]).readout.beta == 0.8

    def test_an_initializer_can_be_set_by_an_override(self) -> None:
        cfg = compose(["experiment=regression_linear", "neuron=leaky", f"neuron.beta={inline(UNIFORM)}"])
        assert cfg.neuron.beta == UNIFORM
        beta = build(cfg).network.neurons()["hidden1"].beta
        assert beta.shape == (128,)
        assert 0 <= beta.min() < 0.1 < 0.9 < beta.max() <= 1


def inline(node: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"{key}: {value}" for key, value in node.items()) + "}"


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    for key, value in node.items():
        if isinstance(value, dict) and key != "published":
            yield from leaves(value, f"{path}{key}.")
        elif key != "_target_":
            yield f"{path}{key}", key


class TestFiles:
    @pytest.mark.parametrize(
        "path",
        sorted(path for path in conf_dir().rglob("*.yaml") if "hydra" not in path.relative_to(conf_dir()).parts),
        ids=lambda path: f"{path.parent.name}/{path.name}",
    )
    def test_every_key_has_a_domain(self, path: Path) -> None:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        content = {key: value for key, value in content.items() if key not in ("defaults", "hydra")}
        known = {name for each in (keys.Run, keys.InitFrom, keys.Logger, keys.Data) for name in each.__annotations__}
        known |= {
            name for spec in [x for place in PLACES for x in parts.shipped(place).values()] for name in spec.arguments
        }
        # a node may be an interpolation, `surrogate: ${surrogate}`
        found = [(where, key) for where, key in leaves(content) if not where.startswith("also.")]
        unknown = [where for where, key in found if key not in known and key not in NODES]
        assert unknown == []

    @pytest.mark.slow
    @pytest.mark.parametrize(("group", "choice"), CHOICES)
    def test_every_choice_composes_and_has_a_description(
        self, group: str, choice: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        needed = NEEDS.get(f"{group}={choice}", [])
        if any("=torch." in word for word in needed):
            monkeypatch.setenv("SNNEXP_ALLOW_TARGETS", "torch")
        # packages of trackers are not dependencies
        monkeypatch.setattr(loggers, "find_spec", lambda package: package)
        if "each_step" not in choice:
            # no shipped data set has a label for each step
            cfg = compose([f"{group}={choice}", *needed])
            assert check(cfg) == cfg, "check is idempotent"
        assert len(choices(group)[choice]) > 3

    @pytest.mark.slow
    def test_the_reference_of_all_keys_is_current(self, monkeypatch: pytest.MonkeyPatch) -> None:
        root = Path(__file__).parents[1]
        monkeypatch.syspath_prepend(str(root / "scripts"))
        reference = importlib.import_module("reference")
        assert (root / "docs" / "reference.md").read_text() == reference.page(), "run make reference"

    def test_groups_are_complete(self) -> None:
        assert sorted(path.name for path in conf_dir().iterdir() if path.is_dir()) == sorted([*GROUPS, "hydra"])
        assert {group for group, _ in CHOICES} == set(GROUPS)
        assert set(choices("data")) >= {"mnist", "linear", "sqrt"}
        assert set(choices("loss")) >= {"ce_membrane", "mse_count", "mse_membrane", "nll_max_voltage"}
        assert set(choices("trainer")) == {"auto", "cpu", "gpu", "ddp"}

    def test_a_choice_without_a_comment_has_an_empty_description(self, tmp_path: Path) -> None:
        (tmp_path / "loss").mkdir()
        (tmp_path / "loss" / "mine.yaml").write_text("# @package _global_\nx: 1\n")
        (tmp_path / "loss" / "yours.yaml").write_text("# @package _global_\n# Yours\nx: 1\n")
        found = choices("loss", [tmp_path])
        assert (found["mine"], found["yours"]) == ("", "Yours")

    def test_a_users_config_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        mine = tmp_path / "conf"
        shutil.copytree(conf_dir(), mine)
        (mine / "experiment" / "mine.yaml").write_text("# @package _global_\n# Mine\nname: mine\nseed: 7\n")
        monkeypatch.setenv("SNNEXP_CONF", str(mine))
        assert conf_dir() == mine
        assert choices("experiment")["mine"] == "Mine"
        cfg = compose(["experiment=mine"])
        assert (cfg.name, cfg.seed) == ("mine", 7)

    def test_a_changed_file_is_read_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        copy = tmp_path / "conf"
        shutil.copytree(conf_dir(), copy)
        monkeypatch.setenv("SNNEXP_CONF", str(copy))
        assert [compose([f"seed={seed}"]).neuron.beta for seed in (0, 1)] == [0.95, 0.95]
        file = copy / "neuron" / "leaky.yaml"
        file.write_text(file.read_text().replace("0.95", "0.5"))
        assert compose(["seed=2"]).neuron.beta == 0.5

    def test_an_invalid_config_folder_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SNNEXP_CONF", str(tmp_path))
        with pytest.raises(ConfigError, match=f"^SNNEXP_CONF: .*{tmp_path}") as caught:
            compose()
        assert caught.value.exit_code == 2

    def test_composing_needs_neither_torch_nor_lightning(self) -> None:
        script = (
            "import sys; from snnexp.config import compose; compose(['experiment=mnist_leaky'])\n"
            "print({'torch', 'lightning', 'torchvision', 'matplotlib'} & {*sys.modules})"
        )
        result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert result.stdout == "set()\n"


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 1, -1.5, 1e-5, float("inf"), [], [None, ["x", "2"]], {}, {"a": None, "b": ["true", {"c": 1}]}),
        *("a", "1", "null", "true", "", "a b", "a,b", "it's", "a\\'", "[1]", "{a: 1}", "interval(0,1)", "${seed}"),
    ],
    ids=str,
)
def test_hydra_literal_round_trip(value: Any) -> None:
    assert OverridesParser.create().parse_override(f"key={hydra_literal(value)}").value() == value


def test_lists_of_sweep_params_are_values_unless_the_key_accepts_lists() -> None:
    node = {"seed": [0, 1], "network.hidden": [4, 2], "neuron.learn": [[], ["v_th"]], "data.sample_seed": [None, 3]}
    assert params_to_overrides({**node, "optimizer.lr": "interval(0,1)", "name": "a,b", "kernel": None}) == [
        "seed=0,1",
        "network.hidden=[4,2]",
        "neuron.learn=[],[v_th]",
        "data.sample_seed=null,3",
        "optimizer.lr=interval(0,1)",
        "name=a,b",
        "kernel=null",
    ]


REFUSED: list[tuple[str, list[str]]] = [
    # typos
    ("neuron.bta=0.9", ["neuron.bta:", "neuron.beta"]),
    ("sed=3", ["sed:", "seed"]),
    ("neurn=leaky", ["neurn:", "neuron"]),
    ("foo=1", ["foo:"]),
    ("+foo=1", ["foo:"]),
    ("+neuron@foo=leaky", ["foo:"]),
    ("neuron.beta.low=3", ["neuron.beta.low:"]),
    ("loss.correct_rate=0.5", ["loss.correct_rate:"]),
    # no such choice
    ("neuron=leeky", ["neuron=leeky:", "leaky?"]),
    ("experiment=mnist_leeky", ["experiment=mnist_leeky:", "mnist_leaky?"]),
    ("debug=nope", ["debug=nope:", "batch"]),
    # empty or invalid choices
    ("neuron=null", ["neuron", "leaky"]),
    ("neuron=", ["neuron:", "leaky"]),
    ("neuron=5", ["neuron"]),
    ("~neuron", ["neuron:"]),
    ("~loss", ["loss:", "ce_membrane"]),
    ("surrogate=null", ["surrogate", "atan"]),
    # wrong types
    ("seed=1.5", ["seed:", "1.5", "whole number"]),
    ("seed=null", ["seed:", "null"]),
    ("seed=true", ["seed:", "true"]),
    ("seed=???", ["seed:"]),
    ("neuron.beta=abc", ["neuron.beta:", "abc", "from 0 to 1"]),
    ("neuron.beta=[0.5]", ["neuron.beta:", "[0.5]"]),
    ("neuron.beta={low: 1}", ["neuron.beta:"]),
    ("neuron.surrogate=5", ["neuron.surrogate", "5"]),
    ("neuron.surrogate=null", ["neuron.surrogate", "null"]),
    ("data.batch_size=x", ["data.batch_size:", "x"]),
    ("data.root=5", ["data.root:", "5"]),
    ("network.hidden=5", ["network.hidden:", "5", "list"]),
    ("network.hidden=[128,1.5]", ["network.hidden:", "1.5"]),
    ("logger.tensorboard=1", ["logger.tensorboard:", "true or false"]),
    ("published=3", ["published:", "3"]),
    # out of range
    ("seed=-1", ["seed:", "-1"]),
    ("num_steps=1e40", ["num_steps:"]),
    ("data.batch_size=3000000000", ["data.batch_size:", "2^31"]),
    ("data.num_workers=5000", ["data.num_workers:", "1024"]),
    ("logger.save_every_s=-1", ["logger.save_every_s:", "-1"]),
    ("+published.a=b", ["published:", "numbers"]),
    ("seed=4294967296", ["seed:", "4294967295"]),
    ("num_steps=0", ["num_steps:", "from 1 to"]),
    ("neuron.beta=1.5", ["neuron.beta:", "1.5", "from 0 to 1"]),
    ("neuron.beta=nan", ["neuron.beta:", "nan"]),
    ("neuron.reset=hard", ["neuron.reset:", "hard", "subtract"]),
    ("data.batch_size=0", ["data.batch_size:", "at least 1"]),
    ("data.val_size=-1", ["data.val_size:", "-1"]),
    ("network.hidden=[0]", ["network.hidden:"]),
    ("optimizer.lr=0", ["optimizer.lr:", "greater than 0"]),
    ("optimizer.lr=inf", ["optimizer.lr:", "inf"]),
    ("optimizer.betas=[0.9]", ["optimizer.betas:", "2"]),
    ("surrogate.alpha=-1", ["surrogate.alpha:", "-1"]),
    ("trainer.max_epochs=0", ["trainer.max_epochs:"]),
    ("trainer.limit_batches=0", ["trainer.limit_batches:", "null"]),
    ("trainer.accelerator=abacus", ["trainer.accelerator:", "abacus", "cpu"]),
    # names that are not a directory name
    ("name=../elsewhere", ["name:", "../elsewhere"]),
    ("name=.hidden", ["name:"]),
    ("name='two words'", ["name:", "two words"]),
    ("name=null", ["name:", "null"]),
    (f"name={'x' * 101}", ["name:", "at most 100"]),
    # malformed overrides and unresolvable interpolations
    ("neuron.beta", ["neuron.beta", "key=value"]),
    ("neuron.beta=[1", ["neuron.beta=[1"]),
    ("neuron.beta=${nothing}", ["neuron.beta:", "nothing"]),
    ("name=${oc.env:NO_SUCH_VARIABLE}", ["name:", "NO_SUCH_VARIABLE"]),
]


@pytest.mark.parametrize(("override", "words"), REFUSED, ids=[override for override, _ in REFUSED])
def test_invalid_overrides_are_refused_in_one_line_that_names_the_key(override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        compose([override])
    sentence = str(caught.value)
    assert [word for word in words if word not in sentence] == []
    assert "\n" not in sentence
    assert len(sentence) <= 200
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["neuron=leaky", f"neuron.beta={inline(UNIFORM | {'high': 3})}"], ["neuron.beta:", "from 0 to 1"]),
        (["trainer.accelerator=tpu"], ["trainer.accelerator:", "tpu"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_errors_while_building_are_one_line_too(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        build(compose(["experiment=regression_linear", *overrides]))
    sentence = str(caught.value)
    assert [word for word in words if word not in sentence] == []
    assert "\n" not in sentence
    assert len(sentence) <= 200


@cache
def node(group: str, choice: str) -> Any:
    return compose([f"{group}={choice}", *NEEDS.get(f"{group}={choice}", [])])[group]


@cache
def loss_node(loss: str) -> Any:
    """The node in the file of a loss, which may be incompatible with the default data."""
    return OmegaConf.load(conf_dir() / "loss" / f"{loss}.yaml")


def combined(network: str, data: str, neuron: str, readout: str, loss: str) -> Any:
    """The config of a combination; each group is composed once, because there are hundreds of combinations."""
    cfg = compose_once(f"data={data}", *NEEDS.get(f"data={data}", [])).copy()
    cfg.network = {**node("network", network), "num_steps": 4}
    cfg.neuron, cfg.loss = node("neuron", neuron), loss_node(loss)
    cfg.readout = cfg.neuron if readout == "same" else node("readout", readout)
    return cfg


@cache
def compose_once(*overrides: str) -> Any:
    small = ["num_steps=4", "data.batch_size=4", "trainer=cpu"]
    return compose([*small, *overrides])


def works(network: str, data: str, neuron: str, readout: str, loss: str) -> bool:
    """Return True if a combination should work: the loss supports the targets, and the neurons the layer shapes."""
    on_maps = {"alif", "leaky", "leaky_random", "lif", "rleaky_conv", "synaptic"}
    hidden_fits = neuron in on_maps if network == "conv" else neuron != "rleaky_conv"
    readout_fits = not (readout == "same" and neuron == "rleaky_conv")
    reads_spikes = loss in ("ce_count", "ce_rate", "mse_count", "mse_temporal")
    if data == "sqrt":
        loss_fits = loss in ("bce", "mse_last", "mse_membrane")
    else:
        loss_fits = loss != "ce_each_step" and not (reads_spikes and readout in ("leaky_integrator", "linear"))
    return hidden_fits and readout_fits and loss_fits and not (network == "conv" and data == "sqrt")


@pytest.mark.slow
@pytest.mark.parametrize("neuron", choices("neuron"))
@pytest.mark.parametrize(("network", "data"), [("mlp", "mnist"), ("mlp", "sqrt"), ("conv", "mnist"), ("conv", "sqrt")])
@pytest.mark.usefixtures("tiny_mnist")
def test_every_combination_trains_or_is_refused(network: str, data: str, neuron: str, tmp_path: Path) -> None:
    wrong = []
    some = [["ce_membrane", "mse_count"], ["mse_membrane", "nll_max_voltage"]]
    for index, readout in enumerate(choices("readout")):
        for loss in choices("loss") if (network, neuron) == ("mlp", "leaky") else some[index % 2]:
            cfg = combined(network, data, neuron, readout, loss)
            if data == "mnist":
                cfg.data.root = str(tmp_path / "data")
            try:
                check(cfg)
            except ConfigError as error:
                if works(network, data, neuron, readout, loss):
                    wrong.append(f"{readout} {loss} is refused: {error}")
                elif any(len(line) > 200 for line in str(error).splitlines()):
                    wrong.append(f"{readout} {loss}: {error}")
                continue
            if not works(network, data, neuron, readout, loss):
                wrong.append(f"{readout} {loss} is not refused before it is built")
                continue
            parts = build(cfg)
            values, target = next(iter(parts.data.train_dataloader()))
            result = parts.loss(parts.network(parts.encoder(values))[-1], target)
            result.backward()
            gradients = [weight.grad for weight in parts.network.parameters() if weight.grad is not None]
            if not (torch.isfinite(result) and gradients and all(grad.isfinite().all() for grad in gradients)):
                wrong.append(f"{readout} {loss} does not learn")
    assert wrong == []


class TestOverridesOf:
    @pytest.mark.parametrize(
        "root", ["a b", "true", "1e3", "it's", "ünder", "a,b", "[c]", "d=e", "back\\", "\\'", "5", "x:y"]
    )
    def test_strings_round_trip(self, root: str) -> None:
        cfg = compose(["experiment=regression_sqrt"])
        cfg.logger.root = root
        overrides = overrides_of(cfg)
        assert compose(overrides) == cfg
        assert overrides_of(compose(overrides)) == overrides

    def test_other_kinds_of_values(self) -> None:
        cfg = compose(["experiment=mnist_leaky", "num_steps=5", "readout=leaky", "data.root=~/data"])
        assert overrides_of(cfg)[2:] == ["readout=leaky", "data.root=~/data"]
        cfg.neuron.beta = {"_target_": "snnexp.initializers.Uniform", "low": 0.1, "high": 1e-05 + 0.5}
        cfg.trainer.limit_batches, cfg.neuron.learn_beta, cfg.network.hidden = None, True, [3, 4]
        cfg.loss = {"_target_": "snnexp.losses.MSECount", "correct_rate": 0.75}
        assert compose(overrides_of(cfg)) == cfg

    def test_interpolated_keys_that_did_not_follow_are_included(self) -> None:
        cfg = compose(["experiment=mnist_leaky"])
        cfg.neuron.beta, cfg.num_steps, cfg.encoder = 0.5, 7, {"_target_": "snnexp.encoders.Bernoulli", "num_steps": 3}
        overrides = overrides_of(cfg)
        assert overrides[:3] == ["experiment=mnist_leaky", "num_steps=7", "encoder._target_=snnexp.encoders.Bernoulli"]
        assert {*overrides[3:]} == {
            "+encoder.num_steps=3",
            "neuron.beta=0.5",
            "readout.beta=0.95",
            "network.num_steps=25",
        }

    def test_a_change_inside_a_reference(self) -> None:
        cfg = compose(["experiment=mnist_leaky"])
        cfg.readout.surrogate.alpha = 3.0
        assert overrides_of(cfg) == ["experiment=mnist_leaky", "readout.surrogate.alpha=3.0"]
        cfg.neuron.beta = cfg.readout.beta = 0.5
        assert {*overrides_of(cfg)[1:]} == {"neuron.beta=0.5", "readout.beta=0.5", "readout.surrogate.alpha=3.0"}

    def test_copies_and_configs_without_provenance(self) -> None:
        cfg = compose(["experiment=mnist_leaky"])
        cfg.seed = 3
        overrides = ["experiment=mnist_leaky", "seed=3", "data.seed=0"]
        copies = [cfg.copy(), deepcopy(cfg), pickle.loads(pickle.dumps(cfg)), OmegaConf.merge(cfg, {"seed": 3})]
        assert [overrides_of(copied) for copied in copies] == [overrides] * 4
        assert overrides_of(OmegaConf.create(OmegaConf.to_container(cfg))) == []


@pytest.mark.parametrize("kind", [KeyError, ValueError, AssertionError])
def test_a_bug_in_a_check_is_not_reported_as_a_config_error(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: object) -> None:
        raise kind("bug")

    monkeypatch.setattr(rules, "require_target", broken)
    with pytest.raises(kind, match="bug") as caught:
        compose(["experiment=regression_sqrt"])
    assert not isinstance(caught.value, ConfigError)
    with pytest.raises(kind, match="bug"):
        cli.main(["train", "experiment=regression_sqrt"])


class TestUnusedNeurons:
    LAST = "network.layers=[{name: readout}]"

    def test_readout_same_uses_the_neuron(self) -> None:
        cfg = compose(["network=graph", self.LAST, "neuron.beta=0.5"])
        assert cfg.readout.beta == 0.5

    @pytest.mark.parametrize("word", ["readout=leaky", "network.layers=[{name: readout, neuron: null}]"])
    def test_a_neuron_that_no_layer_uses_is_refused(self, word: str) -> None:
        with pytest.raises(ConfigError, match=r"^neuron: no layer of this network uses it, Graph defines its own"):
            compose(["network=graph", self.LAST, word, "neuron.beta=0.5"])
