"""Mistakes in what is typed: lines that name the keys, the exit code, and nothing left behind."""

import json
import re
import shlex
import sys
from functools import cache
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from shell import Shell

from snnexp.experiment import compose

FILE = Path(__file__).with_name("mistakes.txt")
MISTAKES = [line.split(" => ") for line in FILE.read_text().splitlines() if line and not line.startswith("#")]
RUN, SWEEP = "outputs/mnist_leaky/20260101-000000-abcd", "outputs/sweeps/mnist_leaky/20260101-000000-5eed"
CONF = {
    "experiment/unplaced.yaml": "num_steps: 5\n",
    "experiment/unplaced_too.yaml": "defaults:\n  - override /neuron: rleaky\n",
    "neuron/listed.yaml": "- beta\n",
    "neuron/wrong_end.yml": "_target_: snnexp.neurons.Leaky\n",
    "neuron/tabbed.yaml": "_target_: snnexp.neurons.Leaky\n\tbeta: 0.9\n",
    "neuron/foreign.yaml": "_target_: mine.Neuron\n",
    "neuron/untargeted.yaml": "beta: 0.9\n",
}
LAUNCHER = {"kind": "processes", **dict.fromkeys(("workers", "threads", "gpus", "timeout_s", "memory_gb"))}


@cache
def config() -> str:
    return OmegaConf.to_yaml(compose(["experiment=mnist_leaky"]))


def furnish(folder: Path) -> None:
    """Give a folder the run, the sweep and the configs that mistakes are about."""
    run, sweep = folder / RUN, folder / SWEEP
    for path in (run, sweep, folder / "conf" / "experiment", folder / "conf" / "neuron"):
        path.mkdir(parents=True)
    (run / "config.yaml").write_text(config())
    (run / "overrides.yaml").write_text("- experiment=mnist_leaky\n")
    started = "2026-01-01T00:00:00+00:00"
    record = {"status": "interrupted", "exit_code": 130, "started": started, "metrics": {"test/accuracy": 0.5}}
    (run / "run.json").write_text(json.dumps(record))
    (run / "metrics.jsonl").touch()
    ledger = {"experiment": "mnist_leaky", "launcher": LAUNCHER, "search": None, "points": []}
    (sweep / "sweep.json").write_text(json.dumps(ledger))
    for name in ("configs.jsonl", "summary.csv", ".lock"):
        (sweep / name).touch()
    (sweep / "runs").mkdir()
    for name, text in CONF.items():
        (folder / "conf" / name).write_text(text)


def left(folder: Path) -> list[str]:
    return sorted(map(str, folder.rglob("*")))


@pytest.mark.parametrize(("typed", "wanted"), MISTAKES, ids=[typed for typed, _ in MISTAKES])
def test_a_mistake_is_refused_at_once_and_leaves_nothing(
    snnexp: Shell, monkeypatch: pytest.MonkeyPatch, typed: str, wanted: str
) -> None:
    furnish(snnexp.folder)
    before = left(snnexp.folder)
    # an import of these would fail
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in ("snnexp.training", "snnexp.experiment"):
        monkeypatch.setitem(sys.modules, name, None)
    places = {"RUN": RUN, "SWEEP": SWEEP, "FOLDER": str(snnexp.folder)}
    code, key = re.sub("RUN|SWEEP|FOLDER", lambda word: places[word[0]], wanted).split("  ")
    ended = snnexp(*(places.get(word, word) for word in shlex.split(typed)))
    assert (ended.code, ended.out) == (int(code), [])
    assert ended.err[0].startswith(f"snnexp: {key}: ")
    assert [line for line in ended.err if not line.startswith("snnexp: ") or len(line) > 200] == []
    assert left(snnexp.folder) == before


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
