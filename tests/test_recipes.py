"""What a run changes of its recipe, and when a published figure belongs beside it."""

import shutil
from pathlib import Path

import pytest

from snnexp import config, recipes
from snnexp.config import compose, plain

FIGURE = {"test/accuracy": 0.9387}


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
def test_a_published_figure_belongs_beside_what_computes_the_same(typed: list[str], comparable: bool) -> None:
    typed = ["experiment=mnist_leaky", *typed]
    found = recipes.published(plain(compose(typed)), typed)
    assert found == (FIGURE if comparable else {})


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
    assert recipes.published(plain(cfg), typed) == expected


def test_without_its_recipe_a_run_has_no_published_figure() -> None:
    cfg = plain(compose(["experiment=mnist_leaky"]))
    assert recipes.published(cfg, ["experiment=elsewhere"]) == {}
    assert recipes.published({**cfg, "name": "elsewhere"}, []) == {}


def test_hyperparameters_are_what_differs() -> None:
    typed = ["experiment=mnist_leaky", "neuron=rleaky", "optimizer.lr=0.5", "data.root=here", "logger.save_every_s=0"]
    found = recipes.hyperparameters(plain(compose(typed)), typed)
    assert {key: found[key] for key in ("experiment", "seed", "neuron", "optimizer.lr")} == {
        **{"experiment": "mnist_leaky", "seed": 0},
        **{"neuron": "RLeaky", "optimizer.lr": 0.5},
    }
    assert all(key.startswith(("neuron", "readout")) for key in found.keys() - {"experiment", "seed", "optimizer.lr"})
