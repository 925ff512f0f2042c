"""Compositions that are shared between configs equal those of Hydra alone."""

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
    assert other == config.compose_unchecked(["experiment=mnist_leaky"])[0] != first


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed=1,2"], r"^seed: has several values; add -m"),
        (["neuron.beta=interval(0,1)"], r"^neuron.beta=interval\(0,1\): Sweep parameters .* requires --multirun$"),
        (["neuron.betta=1", "los=2", "seed=3"], r"^neuron.betta: unknown key, .*\nlos: unknown key"),
        (["name=${oc.env:HOME}"], r"^name: \$\{oc.env:HOME\} is not allowed"),
        (["data.root=${name}", "name=${data.root}"], r"refers to itself"),
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
