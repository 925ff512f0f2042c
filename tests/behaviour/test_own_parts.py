"""Parts of a user that do what no part may, or raise: one line, an exit code, and the record of the run."""

import sys

import pytest
from shell import OUTSIDE, Ended, Shell, record

WORDS = ("train", *OUTSIDE, "data=blobs", "loss=mse_membrane", "network.hidden=[4]", "num_steps=2", "logger=jsonl")
CPU = ("trainer=cpu", "trainer.max_epochs=1")


def train(snnexp: Shell, part: str, fault: str, *words: str) -> Ended:
    common = [word for word in (*WORDS, *CPU) if part != "network" or not word.startswith("network")]
    return snnexp(*common, f"{part}=own", f"{part}.fault={fault}", *words)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["neuron", "loss", "network", "data"])
def test_a_part_without_a_mistake_is_taken(snnexp: Shell, part: str) -> None:
    assert train(snnexp, part, "").code == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "fault"),
    [
        *(("neuron", fault) for fault in ("no neuron", "no scan", "no tuple", "a tuple", "too few steps")),
        *(("loss", fault) for fault in ("reads", "decoder", "a vector", "a float", "no gradient")),
        *(("network", fault) for fault in ("no network", "forward")),
        ("data", "no module"),
        *((part, f"{kind} in init") for part in ("neuron", "network", "data") for kind in ("ValueError", "TypeError")),
    ],
)
def test_a_mistake_is_told_before_anything_is_written(snnexp: Shell, part: str, fault: str) -> None:
    ended = train(snnexp, part, fault)
    assert (ended.code, ended.key, ended.out) == (2, part, [])
    assert [*snnexp.folder.iterdir()] == []


def test_the_readout_is_told_from_the_other_neurons(snnexp: Shell) -> None:
    ended = snnexp(*WORDS, *CPU, "+readout={_target_: mypkg.own.Own, fault: a tuple}")
    assert (ended.code, ended.key) == (2, "readout")


@pytest.mark.parametrize(
    ("part", "fault", "name"),
    [
        ("neuron", "KeyError in init", "Own"),
        ("neuron", "KeyError in scan", "Own"),
        ("neuron", "ValueError in scan", "Own"),
        ("loss", "RuntimeError in loss", "OwnLoss"),
        ("network", "KeyError in init", "network"),
        ("data", "KeyError in init", "data"),
        ("data", "KeyError in data", "Failing"),
    ],
)
def test_an_error_of_a_part_before_the_run_is_told_in_a_line(snnexp: Shell, part: str, fault: str, name: str) -> None:
    ended = train(snnexp, part, fault)
    *frames, line = ended.err
    assert (ended.code, ended.out) == (8, [])
    kind = fault.partition(" ")[0]
    assert line.startswith(f"snnexp: {part}: mypkg.own.{name} raised {kind}: ")
    assert "(mypkg/own.py:" in line
    # there is no log that could hold it
    assert frames[0].startswith("Traceback")
    assert frames[-1].startswith(f"{kind}: ")
    assert sum("in fail" in frame for frame in frames) == 1
    assert [*snnexp.folder.iterdir()] == []


@pytest.mark.parametrize(
    ("fault", "code", "key"),
    [
        ("killed worker", 4, "data.num_workers"),
        ("too many files", 2, "ulimit -n"),
        ("no memory", 2, "network"),
    ],
)
def test_what_is_no_error_of_a_part_is_told_as_what_it_is(snnexp: Shell, fault: str, code: int, key: str) -> None:
    ended = train(snnexp, "neuron", f"{fault} in training")
    assert (ended.code, ended.key) == (code, key)
    assert record(snnexp.run())["exit_code"] == code


def test_a_file_that_is_no_python_is_told_in_a_line(snnexp: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    (snnexp.folder / "unwritten").mkdir()
    (snnexp.folder / "unwritten" / "neurons.py").write_text("import torch\n\nclass Mine(:\n")
    (snnexp.folder / "conf" / "neuron").mkdir(parents=True)
    (snnexp.folder / "conf" / "neuron" / "mine.yaml").write_text("_target_: unwritten.neurons.Mine\n")
    monkeypatch.syspath_prepend(str(snnexp.folder))
    words = ("experiment=regression_sqrt", "neuron=mine", *CPU)
    ended = snnexp("train", "--config-dir", "conf", *words, SNNEXP_ALLOW_TARGETS="unwritten")
    assert ended.code == 8
    assert ended.err[-1].startswith("snnexp: neuron: ")
    assert "SyntaxError" in ended.err[-1]
    assert "(unwritten/neurons.py:3)" in ended.err[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("import not_installed\n", 8, "(unfinished/neurons.py:1)"),
        ("from torch import no_such_name\n", 8, "(unfinished/neurons.py:1)"),
        ("import torch\ntorch.no_such_name\n", 8, "(unfinished/neurons.py:2)"),
        ("import unfinished.others\n", 8, "(unfinished/neurons.py:1)"),
        ("Other = 1\n", 2, "unfinished.neurons.Mine"),
    ],
)
def test_an_error_in_a_module_of_a_part_is_told_with_its_line(
    snnexp: Shell, monkeypatch: pytest.MonkeyPatch, text: str, code: int, words: str
) -> None:
    (snnexp.folder / "unfinished").mkdir()
    (snnexp.folder / "unfinished" / "neurons.py").write_text(text)
    monkeypatch.syspath_prepend(str(snnexp.folder))
    monkeypatch.delitem(sys.modules, "unfinished.neurons", raising=False)
    monkeypatch.delitem(sys.modules, "unfinished", raising=False)
    typed = ("experiment=regression_sqrt", "neuron={_target_: unfinished.neurons.Mine}", *CPU)
    ended = snnexp("train", *typed, SNNEXP_ALLOW_TARGETS="unfinished")
    *frames, line = ended.err
    key = line.removeprefix("snnexp: ").partition(":")[0]
    assert (ended.code, key.removesuffix("._target_"), bool(frames)) == (code, "neuron", code == 8)
    assert words in line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "words"),
    [("neuron", ()), ("data", ()), ("data", ("data.num_workers=1",))],
    ids=["neuron", "data", "worker"],
)
@pytest.mark.parametrize("kind", ["KeyError", "RuntimeError"])
def test_an_error_of_a_part_in_training_is_recorded(
    snnexp: Shell, part: str, words: tuple[str, ...], kind: str
) -> None:
    ended = train(snnexp, part, f"{kind} in training", *words)
    assert (ended.code, ended.key) == (8, part)
    assert f"raised {kind}: " in ended.err[0]
    found = record(snnexp.run())
    assert (found["status"], found["exit_code"]) == ("failed", 8)
    assert found["reason"] == ended.err[0].removeprefix("snnexp: ")
    log = (snnexp.run() / "train.log").read_text()
    assert log.count("Traceback") == 1
    assert "in fail" in log
    # an error in the resumed run as well
    assert snnexp("resume", str(snnexp.run())).code == 8
    assert record(snnexp.run())["exit_code"] == 8


@pytest.mark.slow
def test_an_error_of_a_part_ends_a_point_of_a_sweep(snnexp: Shell) -> None:
    ended = train(snnexp, "neuron", "'',KeyError in init,KeyError in training", "-m", "hydra.launcher.workers=1")
    assert ended.code == 7
    points = snnexp.points()
    assert [point["exit_code"] for point in points] == [0, 8, 8]
    assert all("mypkg.own.Own raised KeyError" in point["reason"] for point in points[1:])
    (failed,) = [run for run in snnexp.runs() if record(run)["status"] == "failed"]
    assert (failed / "train.log").read_text().count("Traceback") == 1


@pytest.mark.slow
def test_an_error_of_a_part_in_an_evaluation_is_told(snnexp: Shell) -> None:
    assert train(snnexp, "neuron", "").code == 0
    config = snnexp.run() / "config.yaml"
    config.write_text(config.read_text().replace("fault: ''", "fault: KeyError in scan"))
    ended = snnexp("eval", str(snnexp.run()))
    assert ended.code == 8
    assert ended.err[0].startswith("Traceback")


@pytest.mark.slow
def test_looking_at_a_part_does_not_change_the_run(snnexp: Shell) -> None:
    """A loss of the user's that is the shipped one."""
    assert train(snnexp, "loss", "").code == 0
    assert snnexp(*WORDS, *CPU).code == 0
    first, second = ((run / "metrics.jsonl").read_bytes() for run in snnexp.runs())
    assert first == second
