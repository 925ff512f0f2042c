"""What is typed, and what is written into the files of configs."""

import json

import pytest
from omegaconf import OmegaConf
from shell import OUTSIDE, Shell, record, recorded

BLOBS = ("train", *OUTSIDE, "data=blobs", "network.hidden=[4]", "num_steps=3", "trainer=cpu", "logger=jsonl")


def recipe(shell: Shell, text: str, name: str = "mine") -> tuple[str, ...]:
    """Write a recipe of a user's; returns what chooses it."""
    folder = shell.folder / "conf" / "experiment"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return ("--config-dir", str(folder.parent), f"experiment={name}")


def test_a_byte_order_mark_changes_nothing(snnexp: Shell) -> None:
    chosen = recipe(snnexp, "\ufeff# @package _global_\n# Mine\nnum_steps: 7\n")
    ended = snnexp("train", *chosen, "--cfg", "job")
    assert ended.code == 0
    assert "num_steps: 7" in ended.out


@pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="a mapping that is typed over a mapping is merged into it"
)
def test_a_typed_part_replaces_the_one_before(snnexp: Shell) -> None:
    typed = "neuron.beta={_target_: snnexp.initializers.Normal, mean: 0.5, std: 0.1}"
    ended = snnexp("train", "experiment=regression_sqrt", typed, "--cfg", "job")
    assert ended.code == 0
    beta = OmegaConf.create("\n".join(ended.out))["neuron"]["beta"]
    assert beta == {"_target_": "snnexp.initializers.Normal", "mean": 0.5, "std": 0.1}


def test_all_refusals_are_told_at_once(snnexp: Shell) -> None:
    ended = snnexp("train", "a=1", "b=1", "neuron.c=1", "neuron.beta=2", "num_steps=0")
    assert ended.code == 2
    keys = [line.removeprefix("snnexp: ").partition(":")[0] for line in ended.err]
    assert sorted(keys) == ["a", "b", "neuron.beta", "neuron.c", "num_steps"]


@pytest.mark.slow
@pytest.mark.xfail(strict=True, raises=AssertionError, reason="the values of a sweep become text by Python's str")
def test_null_is_a_value_of_a_sweep(snnexp: Shell) -> None:
    chosen = recipe(
        snnexp,
        "# @package _global_\n# Mine\ndefaults:\n  - regression_linear\n"
        "hydra:\n  sweeper:\n    params:\n      data.sample_seed: [null, 1]\n      trainer.limit_batches: [null, 2]\n",
        "nulls",
    )
    ended = snnexp("train", "-m", *chosen, "trainer.max_epochs=1", "logger=jsonl", "trainer=cpu", "network.hidden=[2]")
    assert ended.code == 0
    assert len(snnexp.points()) == 4


@pytest.mark.xfail(strict=True, raises=AssertionError, reason="a run cannot be repeated with changes")
def test_a_run_can_be_repeated_with_changes(snnexp: Shell) -> None:
    assert snnexp(*BLOBS).code == 0
    (first,) = snnexp.runs()
    assert snnexp("train", "--from", str(first), "seed=5").code == 0
    (second,) = set(snnexp.runs()) - {first}
    assert record(second)["seed"] == 5
    assert (second / "config.yaml").read_text().replace("seed: 5", "seed: 0") == (first / "config.yaml").read_text()


@pytest.mark.slow
@pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="what all points share is composed against defaults that no point has"
)
def test_a_key_that_every_point_has_can_be_typed(snnexp: Shell) -> None:
    recipes = "experiment=mnist_rleaky_count,mnist_rleaky_membrane"
    ended = snnexp("train", "-m", recipes, "neuron.feedback=one_to_one", "logger=jsonl", SNNEXP_DATA_DIR="nowhere")
    # the points themselves have no data
    assert ended.code == 7
    assert [point["exit_code"] for point in snnexp.points()] == [4, 4]


@pytest.mark.slow
@pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="a launcher that one of several recipes chooses is dropped"
)
def test_a_launcher_that_is_not_used_is_told(snnexp: Shell) -> None:
    chosen = recipe(
        snnexp,
        "# @package _global_\n# Mine\ndefaults:\n  - regression_linear\n  - override /hydra/launcher: stacked\n",
        "together",
    )[:2]
    words = ("trainer.max_epochs=1", "logger=jsonl", "trainer=cpu", "network.hidden=[2]", "hydra.launcher.workers=1")
    ended = snnexp("train", "-m", *chosen, "experiment=together,regression_linear", *words)
    assert ended.code == 0
    assert "launcher" in "\n".join(ended.out + ended.err)


@pytest.mark.slow
@pytest.mark.xfail(strict=True, raises=AssertionError, reason="the data of a sweep cannot be found in another place")
def test_a_sweep_goes_on_after_its_data_have_moved(snnexp: Shell) -> None:
    words = ("experiment=mnist_leaky", "logger=jsonl", "seed=0,1", "trainer.limit_batches=1", "network.hidden=[2]")
    words += ("hydra.launcher.workers=1",)
    assert snnexp("train", "-m", *words, SNNEXP_DATA_DIR="nowhere").code == 7
    (sweep,) = snnexp.folder.glob("outputs/sweeps/*/*")
    ended = snnexp("resume", str(sweep), "data.root=elsewhere")
    assert ended.code == 7
    ledger = json.loads((sweep / "sweep.json").read_text())
    assert all("elsewhere" in point["reason"] for point in ledger["points"])


@pytest.mark.parametrize(
    ("typed", "keys"),
    [
        # a pair beside values
        (
            "train readout=leaky_integrator loss=mse_count neuron.beta=2 surrogate.alpha=-1",
            ["loss", "neuron.beta", "surrogate.alpha"],
        ),
        # keys of a choice that there is not are no mistakes
        (
            "train neuron=leeky loss=foo neuron.tau_mem_inv=3 num_steps=0 zz=1",
            ["loss=foo", "neuron=leeky", "num_steps", "zz"],
        ),
        ("train network.hidden=[ neuron.bta=1 seed=-1", ["network.hidden=[", "neuron.bta", "seed"]),
        ("train --frobnicate --nicate", ["--frobnicate", "--nicate"]),
        ("train -m seed=0,-1 neuron.beta=0.5,2", ["neuron.beta", "seed"]),
        ("train -m seed=0,1 neuron.bta=2 num_step=3", ["neuron.bta", "num_step"]),
        ("resume RUN neuron.beta=0.7 neuron.bta=1 trainer.max_epochs=0", ["neuron.bta", "trainer.max_epochs"]),
        ("resume RUN neuron.beta=0.7 seed=4", ["neuron.beta", "seed"]),
        ("eval RUN optimizer.lr=1 nuron.beta=1", ["nuron.beta", "optimizer.lr"]),
    ],
)
def test_each_refusal_has_a_line(snnexp: Shell, typed: str, keys: list[str]) -> None:
    path = str(recorded(snnexp)) if "RUN" in typed else ""
    ended = snnexp(*typed.replace("RUN", path).split())
    assert ended.code == 2
    assert sorted(line.removeprefix("snnexp: ").partition(":")[0] for line in ended.err) == keys


def test_a_recipe_that_does_not_say_where_its_keys_belong(snnexp: Shell) -> None:
    for text in ("num_steps: 5\n", "defaults:\n  - override /neuron: rleaky\nnum_steps: 5\n"):
        ended = snnexp("train", *recipe(snnexp, text))
        assert (ended.code, ended.key) == (2, str(snnexp.folder / "conf" / "experiment" / "mine.yaml"))
        assert "# @package _global_" in ended.err[0]
