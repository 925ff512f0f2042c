"""The number of threads of a run, and of a resumed run."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from snnexp import limits, threads
from snnexp.cli import main
from snnexp.errors import ConfigError
from snnexp.experiment import compose, evaluate, resume, run
from snnexp.record.run import Run
from snnexp.training import assembly, stacked, start
from snnexp.training import evaluate as evaluating

RUN = ["experiment=regression_sqrt", "trainer=cpu", "trainer.max_epochs=2", "logger=jsonl", "network.hidden=[4]"]


@pytest.fixture(autouse=True)
def eight_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(limits, "cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.mark.parametrize(
    ("typed", "variable", "recorded", "expected"),
    [
        (None, None, None, 1),
        (None, "", None, 1),
        (None, "3", None, 3),
        (None, "3,2", 5, 3),
        (None, None, 5, 5),
        (None, None, 17, 8),
        (2, "3", 5, 2),
        (17, None, None, 8),
        *((None, None, damaged, 1) for damaged in ("5", 0, True, 2.0, [5])),
    ],
)
def test_the_config_takes_precedence(
    typed: int | None, variable: str | None, recorded: object, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    assert threads.number({"trainer": {"threads": typed}}, recorded) == expected


@pytest.mark.parametrize("value", ["x", "0", "-1", "1.5", "²"])
def test_an_invalid_variable_is_rejected(value: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    with pytest.raises(ConfigError, match=r"^OMP_NUM_THREADS: "):
        run(compose(RUN))
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
def test_the_default_is_one_and_resume_keeps_the_number(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    used: list[int] = []
    build = assembly.build
    for where in (evaluating, start):
        monkeypatch.setattr(where, "build", lambda *given: used.append(torch.get_num_threads()) or build(*given))
    before = torch.get_num_threads()
    path = run(compose(RUN)).path
    assert Run(path).read()["threads"] == used.pop() == 1
    resume(path, ["trainer.max_epochs=3", "trainer.threads=2"])
    assert Run(path).read()["threads"] == used.pop() == 2
    capsys.readouterr()
    resume(path, ["trainer.max_epochs=4"])
    evaluate(path)
    assert used == [2, 2]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(limits, "cores", lambda: 1)
    evaluate(path)
    resume(path, ["trainer.max_epochs=5"])
    assert used[2:] == [1, 1]
    assert capsys.readouterr().err.count("threads: 2 -> 1") == 2, "the smaller number is reported"
    assert torch.get_num_threads() == before


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "sweep", "search", "resume", "eval"])
def test_more_threads_than_cores_are_rejected(command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    searched = ["hydra/sweeper=optuna", "hydra.sweeper.metric=test/l1", "neuron.beta=interval(0.1,0.9)"]
    if command in ("resume", "eval"):
        words = [command, str(run(compose(RUN)).path)]
    else:
        words = ["train", *RUN, *{"sweep": ["-m", "seed=0,1"], "search": ["-m", *searched]}.get(command, [])]
    capsys.readouterr()
    before = [*tmp_path.rglob("*")]
    assert main([*words, "trainer.threads=9"]) == 2
    assert capsys.readouterr().err.startswith("snnexp: trainer.threads: ")
    assert [*tmp_path.rglob("*")] == before


@pytest.mark.slow
def test_members_of_a_stack_keep_their_number(tmp_path: Path) -> None:
    def train(*typed: str, at: Sequence[Path | None] = (None, None)) -> list[Path]:
        members = [stacked.Point(compose([*RUN, f"seed={seed}", *typed]), [], run) for seed, run in enumerate(at)]
        found: dict[int, Path] = {}
        stacked.train(members, tmp_path, lambda index, path: None, lambda index, end: found.update({index: end.run}))
        return [found[0], found[1]]

    paths = train("trainer.threads=2")
    assert [Run(path).read()["threads"] for path in paths] == [2, 2]
    Run(paths[0]).update(threads=3)
    train("trainer.max_epochs=3", at=paths)
    assert [Run(path).read()["threads"] for path in paths] == [3, 2]
