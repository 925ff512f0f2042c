"""What a run changes of its recipe, and when a published figure belongs beside it."""

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from snnexp import config
from snnexp.config import compose, plain, recipes
from snnexp.record.run import Run
from snnexp.report import report

FIGURE = {"test/accuracy": 0.9387}


def shown(cfg: dict[str, Any], typed: list[str], folder: Path) -> dict[str, float]:
    """The published figures that a run's terminal shows, once its page shows the same."""
    found = recipes.published(cfg, typed)
    run = Run.prepare(folder / "outputs", yaml.safe_dump(cfg), typed).publish({"metrics": {"test/accuracy": 0.25}})
    run.update(status="finished", exit_code=0)
    run.close()
    report([run.path])
    with (run.path / "figures" / "result.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row.get("published", "nan")) == pytest.approx(found.get("test/accuracy", float("nan")), nan_ok=True)
    return found


@pytest.mark.parametrize(
    ("typed", "comparable"),
    [
        ([], True),
        (["seed=3", "trainer=cpu", "trainer.threads=1", "kernel=reference", "logger=jsonl", "name=mine"], True),
        (["trainer.limit_test_batches=20"], False),
        (["trainer.max_epochs=2"], False),
        (["network.hidden=[100]"], False),
        (["neuron=rleaky"], False),
        (["trainer.precision=bf16-mixed"], False),
        (["num_steps=10"], False),
    ],
)
def test_a_published_figure_belongs_beside_what_computes_the_same(
    typed: list[str], comparable: bool, tmp_path: Path
) -> None:
    typed = ["experiment=mnist_leaky", *typed]
    assert shown(plain(compose(typed)), typed, tmp_path) == (FIGURE if comparable else {})


@pytest.mark.parametrize(
    ("name", "content", "typed", "comparable"),
    [
        # a part of one's own with the keys of the recipe's, under a name of its own or under that of a shipped one
        ("network/mine", "_target_: mypkg.MLP\nnum_steps: ${num_steps}\nhidden: [1]\n", ["network=mine"], False),
        ("network/mlp", "_target_: mypkg.MLP\nnum_steps: ${num_steps}\nhidden: [1]\n", [], False),
        ("surrogate/atan", "_target_: mypkg.ATan\nalpha: 2.0\n", [], False),
        ("optimizer/adam", "_target_: snnexp.optimizers.Adam\nlr: 1.0\nweight_decay: 0.1\n", [], False),
        ("trainer/mine", "_target_: mypkg.make_trainer\nmax_epochs: 1\n", ["trainer=mine"], False),
        # the values count, wherever they come from
        ("network/mine", "defaults: [mlp]\n", ["network=mine"], True),
    ],
)
def test_no_published_figure_beside_a_part_of_ones_own(
    name: str, content: str, typed: list[str], comparable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SNNEXP_ALLOW_TARGETS", "mypkg")
    file = tmp_path / "conf" / f"{name}.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(content)
    typed = ["experiment=mnist_leaky", *typed]
    cfg, _ = config.compose_unchecked(typed, [tmp_path / "conf"])
    assert recipes.published(plain(config.check(cfg)), typed) == (FIGURE if comparable else {})


@pytest.mark.parametrize(
    ("own", "expected"), [("", {}), ("\npublished:\n  test/accuracy: 0.5", {"test/accuracy": 0.5})]
)
def test_a_recipe_that_is_derived_inherits_no_figure(
    own: str, expected: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = shutil.copytree(config.conf_dir(), tmp_path / "conf")
    text = f"# @package _global_\ndefaults: [mnist_leaky]\nname: mine\nnetwork: {{hidden: [10]}}{own}\n"
    (conf / "experiment" / "mine.yaml").write_text(text)
    monkeypatch.setenv("SNNEXP_CONF", str(conf))
    typed = ["experiment=mine"]
    cfg = compose(typed)
    assert cfg.published
    assert shown(plain(cfg), typed, tmp_path) == expected


@pytest.mark.parametrize(
    ("changes", "typed", "comparable"),
    [
        ({}, [], True),
        ({}, ["experiment=elsewhere"], False),
        ({}, ["seed=0"], False),
        ({"name": "elsewhere"}, [], False),
        # a key that the recipe alone has, and one that is null in an older version
        ({"neuron": {"_target_": "snnexp.neurons.Leaky"}}, [], False),
        ({"older": None}, [], True),
    ],
)
def test_without_its_recipe_a_run_has_no_published_figure(
    changes: dict[str, Any], typed: list[str], comparable: bool, tmp_path: Path
) -> None:
    cfg = plain(compose(["experiment=mnist_leaky"])) | changes
    assert shown(cfg, typed, tmp_path) == (FIGURE if comparable else {})


def test_hyperparameters_are_what_differs() -> None:
    typed = ["experiment=mnist_leaky", "neuron=rleaky", "optimizer.lr=0.5", "data.root=here", "logger.save_every_s=0"]
    found = recipes.hyperparameters(plain(compose(typed)), typed)
    assert {key: found[key] for key in ("experiment", "seed", "neuron", "optimizer.lr")} == {
        **{"experiment": "mnist_leaky", "seed": 0},
        **{"neuron": "RLeaky", "optimizer.lr": 0.5},
    }
    assert all(key.startswith(("neuron", "readout")) for key in found.keys() - {"experiment", "seed", "optimizer.lr"})
