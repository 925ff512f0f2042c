"""Mistakes in what is typed: one line that names the key, the exit code, and nothing left behind."""

import re

import pytest
from shell import Shell

MISTAKES = [
    ("train nueron=leaky", 2, "nueron"),
    ("train neuron.bta=1", 2, "neuron.bta"),
    ("train neuron=leeky", 2, "neuron=leeky"),
    ("train experiment=mnist", 2, "experiment=mnist"),
    ("train neuron.beta=1.5", 2, "neuron.beta"),
    ("train neuron.learn_beta=3", 2, "neuron.learn_beta"),
    ("train network.hidden=[10,many]", 2, "network.hidden"),
    ("train num_steps=0", 2, "num_steps"),
    ("train optimizer.lr=nan", 2, "optimizer.lr"),
    ("train optimizer.lr=fast", 2, "optimizer.lr"),
    ("train seed=-1", 2, "seed"),
    ("train neuron=null", 2, "neuron"),
    ("train trainer.max_epochs=${none}", 2, "trainer.max_epochs"),
    ("train neuron.beta=[", 2, "neuron.beta=["),
    ("train neuron", 2, "neuron"),
    ("train name=../up", 2, "name"),
    ("train neuron._target_=os.system", 2, "neuron._target_"),
    ("train --frobnicate", 2, "--frobnicate"),
    ("train --cfg", 2, "--cfg"),
    ("train -m neuron.beta=0.5,1.5", 2, "neuron.beta"),
    ("train -m neuron.bta=0.5,0.6", 2, "neuron.bta"),
    ("train experiment=regression_sqrt loss=ce_membrane", 2, "loss"),
    ("train experiment=regression_sqrt trainer=ddp", 2, "data.batch_size"),
    ("list nothing", 2, "nothing"),
    ("doctor now", 2, "doctor"),
    ("tarin", 2, "tarin"),
]


@pytest.mark.parametrize(("typed", "code", "key"), MISTAKES, ids=[typed for typed, _, _ in MISTAKES])
def test_a_mistake_is_one_line_that_names_it_and_leaves_nothing(snnexp: Shell, typed: str, code: int, key: str) -> None:
    ended = snnexp(*typed.split(" "))
    assert (ended.code, ended.key, ended.out) == (code, key, [])
    assert len(ended.err[0]) <= 200
    assert [*snnexp.folder.iterdir()] == []


def test_data_that_are_missing_are_one_line_that_says_where(snnexp: Shell) -> None:
    ended = snnexp("train", "experiment=mnist_leaky", "data.root=nowhere")
    assert (ended.code, len(ended.err), ended.out) == (4, 1, [])
    assert str(snnexp.folder / "nowhere") in ended.err[0]
    assert [*snnexp.folder.iterdir()] == []


@pytest.mark.parametrize(
    ("typed", "better", "worse"),
    [
        ("train nueron=leaky", "neuron", "network"),
        ("train neuron.bta=1", "neuron.beta", "neuron.threshold"),
        ("train neuron=leeky", "leaky", "rleaky"),
        ("train lr=0.01", "optimizer.lr", "network"),
        ("train epochs=3", "trainer.max_epochs", "network"),
        ("train beta=0.5", "neuron.beta", "network"),
        ("tarin", "train", "runs"),
        ("list neurons", "neuron", "network"),
    ],
)
def test_a_word_that_is_nearly_right_gets_a_suggestion(snnexp: Shell, typed: str, better: str, worse: str) -> None:
    """One alone, not a list of all that there are."""
    ended = snnexp(*typed.split(" "))
    assert ended.code == 2
    words = re.findall(r"[\w.]+", ended.err[0].partition(f"{ended.key}:")[2])
    assert better in words
    assert worse.rpartition(".")[2] not in " ".join(words).replace(".", " ").split()
