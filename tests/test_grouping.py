"""Grouping of points into stacks by their configs."""

import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from snnexp.experiment import compose
from snnexp.sweeps import grouping

COUNT = ["experiment=mnist_rleaky_count"]
CSV = "lightning.pytorch.loggers.CSVLogger"
NORM = "{_target_: snnexp.initializers.Normal, mean: %s, std: 0.1}"


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["experiment=mnist_rleaky_conv"], "snnexp.network.Conv is not stackable"),
        ([*COUNT, "trainer=ddp", "trainer.accelerator=cpu"], "it trains on several devices"),
        ([*COUNT, "kernel=triton"], "kernel=triton does not support stacks"),
        ([*COUNT, "data.num_workers=1"], "it uses data workers"),
        # a second WandbLogger in a process would continue the run of the first
        ([*COUNT, f"+logger.also.own={{_target_: {CSV}}}"], f"{CSV} is not stackable"),
        (COUNT, None),
        (["experiment=regression_linear"], None),
        ([*COUNT, "trainer.precision=bf16-mixed"], None),
        (["experiment=mnist_parametrized_lif"], None),
    ],
)
def test_obstacles(overrides: list[str], why: str | None) -> None:
    cfg = compose(overrides)
    assert grouping.obstacle(cfg) == why
    assert grouping.obstacle(OmegaConf.to_container(cfg)) == why  # type: ignore[arg-type]


@pytest.mark.parametrize("node", ["neuron", "loss", "data", "encoder", "surrogate", "neuron.surrogate"])
def test_an_unmarked_part_is_an_obstacle(node: str) -> None:
    cfg = compose(COUNT)
    OmegaConf.update(cfg, f"{node}._target_", "mine.Part")
    assert grouping.obstacle(cfg) == "mine.Part is not stackable"


def test_stackable_is_not_inherited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from snnexp.neurons import Leaky\nclass Same(Leaky):\n    stackable = True\nclass Other(Leaky):\n    pass\n"
    (tmp_path / "mine.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    cfg = compose(COUNT)
    for name, why in {"Same": None, "Other": "mine.Other is not stackable"}.items():
        OmegaConf.update(cfg, "neuron._target_", f"mine.{name}")
        assert grouping.obstacle(cfg) == why


@pytest.mark.parametrize(
    "overrides",
    [
        ["seed=7"],
        ["optimizer.lr=0.1", "optimizer.betas=[0.5,0.6]", "optimizer.weight_decay=0.1"],
        ["neuron.beta=0.5", "neuron.threshold=2", "neuron.V=0.5"],
        ["surrogate.alpha=9"],
        ["loss.correct_rate=0.7", "loss.incorrect_rate=0.1"],
        ["+published={test/accuracy: 0.5}"],
    ],
)
def test_numbers_share_a_stack(overrides: list[str]) -> None:
    assert grouping.key(compose([*COUNT, *overrides])) == grouping.key(compose(COUNT))


@pytest.mark.slow
def test_distributions_share_a_stack() -> None:
    drawn = [compose([*COUNT, f"neuron.beta={NORM % mean}"]) for mean in (0.5, 0.7)]
    assert grouping.key(drawn[0]) == grouping.key(drawn[1]) != grouping.key(compose(COUNT))


@pytest.mark.slow
@pytest.mark.parametrize(
    "override",
    [
        "num_steps=11",
        "network.hidden=[64]",
        "neuron.learn_beta=true",
        "neuron.reset=zero",
        "neuron.feedback=one_to_one",
        "surrogate=sigmoid",
        "loss=ce_membrane",
        "optimizer.schedule=cosine",
        "optimizer=sgd",
        "trainer.max_epochs=2",
        "data.batch_size=64",
        "data.val_size=100",
        "encoder=bernoulli",
        "kernel=reference",
        "name=other",
        "logger=jsonl",
    ],
)
def test_other_keys_must_be_equal(override: str) -> None:
    assert grouping.key(compose([*COUNT, override])) != grouping.key(compose(COUNT))


def test_sample_seeds_share_a_stack() -> None:
    keys = {grouping.key(compose(["experiment=regression_sqrt", f"data.sample_seed={seed}"])) for seed in (1, 2)}
    assert len(keys) == 1


def test_torch_is_not_imported() -> None:
    code = "import sys, snnexp.sweeps.grouping; sys.exit(any(m in sys.modules for m in ('torch', 'lightning')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
