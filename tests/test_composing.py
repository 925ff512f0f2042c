"""Compositions that are shared between configs equal those of Hydra alone."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra._internal.core_plugins.importlib_resources_config_source import ImportlibResourcesConfigSource
from omegaconf import OmegaConf

from snnexp import config
from snnexp.config import files, loader
from snnexp.config.compose import _compose_in_hydra
from snnexp.errors import ConfigError
from snnexp.experiment import compose

OVERRIDES = [
    [],
    ["experiment=mnist_rleaky_conv", "seed=3", "neuron.beta=0.5"],
    ["experiment=regression_sqrt", "network.hidden=[4,4]", "name=${experiment}", "num_steps=5"],
    ["experiment=regression_sqrt", "neuron.beta={_target_: snnexp.initializers.Normal}", "~published"],
    ["experiment=mnist_leaky", "loss=mse_count", "loss.correct_rate=0.9", "data.root=${oc.env:SNNEXP_DATA_DIR}"],
    [
        "neuron.beta=0.5",
        "trainer=cpu",
        "trainer.max_epochs=4",
        "neuron=rleaky",
        "network={hidden: [3]}",
        "network.bias=false",
    ],
    ["seed=1", "++seed=2", "+published.x=1", "published.x=2"],
    ["hydra/launcher=stacked", "hydra.launcher.members=4", "neuron=rleaky", "optimizer.schedule=cosine"],
    ["hydra/sweeper=optuna", "+hydra.sweeper.params={seed: 1}", "debug=batch", "trainer.max_epochs=1"],
]
PARAMS = f"+hydra.sweeper.params={{{', '.join(f'a{index}: ${{name}}' for index in range(100))}}}"


def as_text(composed: tuple[Any, dict[str, Any]]) -> tuple[str, str]:
    """Return a config and its hydra node with the order of their keys, without what depends on the call."""
    cfg, node = composed
    node = {key: value for key, value in node.items() if key not in ("overrides", "job")}
    node["runtime"] = {key: value for key, value in node["runtime"].items() if key != "cwd"}
    return OmegaConf.to_yaml(cfg), yaml.safe_dump(node, sort_keys=False)


@pytest.mark.parametrize("overrides", OVERRIDES, ids=" ".join)
def test_values_are_applied_to_a_shared_composition_as_by_hydra(overrides: list[str]) -> None:
    expected = as_text(_compose_in_hydra(config.quoted(overrides), ()))
    assert [as_text(config.compose_unchecked(overrides)) for _ in range(2)] == [expected, expected]


@pytest.mark.parametrize("overrides", OVERRIDES, ids=" ".join)
def test_configs_of_hydra_are_merged_once_as_by_hydra(overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    once = [_compose_in_hydra(overrides, ()) for _ in range(2)]
    monkeypatch.setattr(loader, "_is_hydras", lambda default: False)
    monkeypatch.setattr(files.Packaged, "load_config", ImportlibResourcesConfigSource.load_config)
    cfg, node = _compose_in_hydra(overrides, ())
    assert [*map(as_text, once)] == [as_text((cfg, node))] * 2
    assert [node for _, node in once] == [node] * 2


def test_a_changed_launcher_of_a_user_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "hydra" / "launcher" / "mine.yaml"
    file.parent.mkdir(parents=True)
    for workers in (2, 3):
        file.write_text(f"defaults: [processes]\nworkers: {workers}\n")
        _, node = config.compose_unchecked(["hydra/launcher=mine"], [tmp_path])
        assert node["launcher"]["workers"] == workers


def test_configs_are_independent_of_each_other() -> None:
    first, other = (config.compose_unchecked(["experiment=mnist_leaky"])[0] for _ in range(2))
    first.network.hidden.append(3)
    first.published = None
    run = config.plain(compose(["experiment=mnist_leaky", "seed=77"]))
    config.change_evaluation(OmegaConf.create(run), ["data=fashion_mnist"])
    assert compose(["data=fashion_mnist"]).seed == 0
    assert other == config.compose_unchecked(["experiment=mnist_leaky"])[0] != first


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed=1,2"], r"^seed: has several values; add -m"),
        (["neuron.beta=interval(0,1)"], r"^neuron.beta=interval\(0,1\): Sweep parameters .* requires --multirun$"),
        (["neuron.betta=1", "los=2", "seed=3"], r"^neuron.betta: unknown key, .*\nlos: unknown key"),
        (["name=${oc.env:HOME}"], r"^name: \$\{oc.env:HOME\} is not allowed"),
        (["data.root=${name}", "name=${data.root}"], r"refers to itself"),
        (["network.hidden.x=5"], r"^network.hidden"),
        (["name=" + "[" * 200 + "]" * 200], r"nested too deeply"),
        (["hydra/sweeper=optuna", PARAMS, f"name=[{','.join('1' * 200)}]"], r"^hydra.sweeper.params: is too large"),
        (["debug=batch", "trainer.max_epochs=5"], r"^trainer.max_epochs: got 5, debug=batch trains one epoch"),
    ],
    ids=str,
)
def test_values_are_refused_as_by_hydra(overrides: Sequence[str], message: str) -> None:
    for call in (config.compose_unchecked, compose):
        with pytest.raises(ConfigError, match=message):
            call(overrides)


def test_the_part_of_a_user_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("SNNEXP_ALLOW_TARGETS", "changing")
    (tmp_path / "changing").mkdir()
    file = tmp_path / "changing" / "__init__.py"
    overrides = ["experiment=mnist_leaky", "network=module", "network._target_=changing.Net"]
    for argument, expected in (("width", False), ("hidden", True)):
        file.write_text(f"class Net:\n    def __init__(self, inputs, outputs, {argument}=3): ...\n")
        assert ("hidden" in config.compose_unchecked(overrides)[0].network) == expected


def test_a_value_may_make_choices_valid(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nneuron: {beta: '${readout.beta}'}\n")
    cfg, _ = config.compose_unchecked(["experiment=mine", "neuron.beta=0.5"], [tmp_path])
    assert cfg.neuron.beta == 0.5


def test_a_choice_in_the_environment_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for neuron in ("Leaky", "Synaptic"):
        monkeypatch.setenv("SNNEXP_OF_MINE", neuron.lower())
        cfg, _ = config.compose_unchecked(["neuron=${oc.env:SNNEXP_OF_MINE}"])
        assert cfg.neuron._target_ == f"snnexp.neurons.{neuron}"


def test_a_folder_of_a_user_is_a_group(tmp_path: Path) -> None:
    (tmp_path / "name").mkdir()
    (tmp_path / "name" / "mine.yaml").write_text("x: 1\n")
    with pytest.raises(ConfigError, match=r"^name: no such group"):
        config.compose_unchecked(["name=mine"], [tmp_path])


def test_changed_files_in_a_linked_folder_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(config.conf_dir(), tmp_path / "conf")
    neuron = (tmp_path / "conf" / "neuron").rename(tmp_path / "neuron")
    (tmp_path / "conf" / "neuron").symlink_to(neuron)
    # lock file of an editor
    (neuron / ".#leaky.yaml").symlink_to("nowhere")
    monkeypatch.setenv("SNNEXP_CONF", str(tmp_path / "conf"))
    for beta in (0.95, 0.5):
        assert config.compose_unchecked(["seed=1"])[0].neuron.beta == beta
        (neuron / "leaky.yaml").write_text((neuron / "leaky.yaml").read_text().replace("0.95", "0.5"))
