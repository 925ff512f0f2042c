"""Output of a run: metrics.csv, additional Lightning loggers, kept checkpoints; and deletion of runs."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from snnexp.cli import runs as listing
from snnexp.errors import ConfigError, DivergedError, InUseError
from snnexp.experiment import compose, evaluate, resume, run
from snnexp.record.run import Run
from snnexp.training.loggers import hyperparameters
from snnexp.training.stacked import Outcome, Point
from snnexp.training.stacked import train as train_stacked
from snnexp.training.task import Task

pytestmark = pytest.mark.slow

SMALL = ["data=digits", "num_steps=3", "network.hidden=[4]", "trainer=cpu", "trainer.limit_batches=2"]
SMALL += ["trainer.limit_test_batches=1", "data.batch_size=16", "trainer.log_every_n_steps=1"]
TRACKER = """
import random

import torch
from lightning.pytorch.loggers import Logger

SEEN = []


class Remembering(Logger):
    def __init__(self, save_dir, run_name, fails=""):
        super().__init__()
        self.folder, self.run_name, self.fails = save_dir, run_name, fails
        self._call("init", run_name)

    name = version = "own"

    def _call(self, what, value):
        torch.rand(3), random.random()
        if what == self.fails:
            raise OSError("the server is gone")
        SEEN.append((self.run_name, what, value))

    def log_metrics(self, metrics, step=None):
        self._call("metrics", (step, metrics))

    def log_hyperparams(self, params):
        self._call("params", params)

    def finalize(self, status):
        self._call("end", status)
"""


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The calls that a user-defined logger received."""
    (tmp_path / "owntracker.py").write_text(TRACKER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "owntracker", raising=False)
    monkeypatch.setenv("SNNEXP_ALLOW_TARGETS", "owntracker")
    monkeypatch.chdir(tmp_path)
    import owntracker  # type: ignore[import-not-found]

    return owntracker.SEEN


def tracked(*more: str) -> list[str]:
    arguments = ", ".join(["_target_: owntracker.Remembering", *more])
    return [*SMALL, "logger=jsonl", f"+logger.also.mine={{{arguments}}}"]


def test_a_csv_has_the_rows_of_the_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = run(compose([*SMALL, "logger=csv", "data.val_fraction=0.1"])).path
    with (path / "metrics.csv").open(newline="") as file:
        found = [{name: float(text) for name, text in row.items() if text} for row in csv.DictReader(file)]
    assert found == [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert not (path / "tensorboard").exists()


class TestTracker:
    def test_receives_the_config_and_all_rows_and_does_not_affect_the_run(self, seen: Any) -> None:
        record = run(compose(tracked()))
        name = record.path.name
        assert {each[0] for each in seen} == {name}
        kinds = [what for _, what, _ in seen]
        assert (kinds[:2], kinds[-1]) == (["init", "params"], "end")
        rows = {step: set(values) for _, what, (step, values) in [each for each in seen if each[1] == "metrics"]}
        assert {"train/loss", "test/accuracy"} <= set.union(*rows.values())
        plain = run(compose([*SMALL, "logger=jsonl"]))
        rows_of = [(path / "metrics.jsonl").read_text() for path in (record.path, plain.path)]
        assert rows_of[0] == rows_of[1]

    @pytest.mark.parametrize("fails", ["init", "params", "metrics", "end"])
    def test_a_failing_logger_is_dropped_and_the_run_finishes(self, fails: str, seen: Any) -> None:
        record = run(compose(tracked(f"fails: {fails}")))
        assert record.status == "finished"
        log = (record.path / "train.log").read_text()
        (message,) = [line for line in log.splitlines() if "logger.also.mine failed and is disabled: " in line]
        assert "OSError: the server is gone" in message

    def test_is_notified_that_a_run_failed(self, seen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        def diverge(*_: Any) -> None:
            raise DivergedError("the loss is nan")

        monkeypatch.setattr(Task, "training_step", diverge)
        with pytest.raises(DivergedError):
            run(compose(tracked()))
        assert [value for _, what, value in seen if what == "end"][-1] == "failed"

    def test_members_of_a_stack_have_their_own(self, seen: Any) -> None:
        words = [[*tracked(), f"seed={seed}"] for seed in (1, 2)]
        found: dict[int, Outcome] = {}
        train_stacked([Point(compose(each), each) for each in words], Path("stack"), lambda *_: None, found.__setitem__)
        names = {str(outcome.run and outcome.run.name) for outcome in found.values()}
        assert {each[0] for each in seen} == names
        assert all([what for name, what, _ in seen if name == each][-1] == "end" for each in names)

    def test_secrets_and_loggers_are_not_hyperparameters(self) -> None:
        plain = {
            "logger": {"root": "x"},
            "data": {"api_key": "a", "url": "sql://me:pw@x", "nested": [{"Token": 1, "size": 2}]},
            "seed": 3,
        }
        assert hyperparameters(plain) == {"data": {"nested": [{"size": 2}]}, "seed": 3}

    @pytest.mark.parametrize(
        ("words", "sentence"),
        [
            (["logger=wandb"], "logger=wandb: needs the package wandb; pip install 'snnexp[wandb]'"),
            (
                ["+logger.also.x={_target_: lightning.pytorch.loggers.MLFlowLogger}"],
                "logger.also.x: needs the package mlflow; ",
            ),
            (
                ["+logger.also.x={_target_: lightning.pytorch.loggers.CSVLogger, api_key: abc}"],
                "logger.also.x: contains a password or key, which config.yaml would show",
            ),
            (["+logger.also.x=3"], "logger.also.x: got 3, must be a mapping with _target_"),
            (["logger.also=3"], "logger.also: got 3, must be a mapping from names to loggers"),
            (["logger.also=null"], "logger.also: got null, must be a mapping from names to loggers"),
            (
                ["+logger.also.x={_target_: torch.nn.Linear}"],
                "logger.also.x._target_: got torch.nn.Linear, must be a class of lightning.pytorch.loggers",
            ),
        ],
    )
    def test_invalid_loggers_are_rejected(
        self, words: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("snnexp.config.loggers.find_spec", lambda package: None)
        with pytest.raises(ConfigError) as caught:
            compose([*SMALL, *words])
        assert str(caught.value).startswith(sentence)

    @pytest.mark.parametrize(
        ("node", "sentence"),
        [
            ("_target_: lightning.pytorch.loggers.CVSLogger", "logger.also.x._target_: lightning.pytorch.loggers.CVS"),
            ("_target_: lightning.pytorch.loggers.CSVLogger, prefx: a", "logger.also.x.prefx: unknown key"),
        ],
    )
    def test_an_error_is_reported_before_the_run(
        self, node: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ConfigError) as caught:
            run(compose([*SMALL, f"+logger.also.x={{{node}}}"]))
        assert str(caught.value).startswith(sentence)
        assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("keep", "left"), [("best", {"best"}), ("last", {"last"}), ("none", set())])
def test_kept_checkpoints(keep: str, left: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    record = run(compose([*SMALL, "logger=jsonl", f"logger.keep={keep}"]))
    found = {path.name.removesuffix(".sha256").removesuffix(".ckpt") for path in Run(record.path).checkpoints.iterdir()}
    assert found == left
    if keep == "last":
        assert evaluate(record.path).keys() <= record.metrics.keys()
        assert resume(record.path, ["trainer.max_epochs=2"]).status == "finished"


class TestDelete:
    @pytest.fixture
    def paths(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
        monkeypatch.chdir(tmp_path)
        return [run(compose([*SMALL, "logger=jsonl", f"seed={seed}"])).path for seed in (1, 2)]

    def test_only_listed_runs_are_deleted(self, paths: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
        assert listing.main(["outputs", "seed=2", "--delete", "--yes"]) == 0
        assert capsys.readouterr().out.startswith("deleted 1 run, ")
        assert [path.exists() for path in paths] == [True, False]
        assert [entry.name for entry in paths[0].parent.iterdir()] == [paths[0].name]

    def test_without_a_terminal_yes_is_required(self, paths: list[Path]) -> None:
        with pytest.raises(ConfigError, match=r"^--delete: needs a terminal for the confirmation; add --yes"):
            listing.main(["outputs", "--delete"])
        assert all(path.exists() for path in paths)

    @pytest.mark.parametrize(("typed", "stay"), [("", True), ("n\n", True), ("y\n", False)])
    def test_end_of_input_means_no(
        self, typed: str, stay: bool, paths: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, terminal in (("stdin", io.StringIO(typed)), ("stdout", io.StringIO())):
            monkeypatch.setattr(terminal, "isatty", lambda: True)
            monkeypatch.setattr(sys, name, terminal)
        assert listing.main(["outputs", "--delete"]) == 0
        assert [path.exists() for path in paths] == [stay, stay]

    def test_a_run_locked_meanwhile_prevents_all_deletions(
        self, paths: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        held = Run.open(paths[1])
        held.lock()
        monkeypatch.setattr(Run, "in_use", lambda run: False)
        with pytest.raises(InUseError, match="in use"):
            listing.main(["outputs", "--delete", "--yes"])
        held.close()
        assert all(path.exists() for path in paths)

    def test_a_run_in_use_prevents_all_deletions(self, paths: list[Path]) -> None:
        held = Run.open(paths[1])
        held.lock()
        with pytest.raises(InUseError, match="in use"):
            listing.main(["outputs", "--delete", "--yes"])
        held.close()
        assert all(path.exists() for path in paths)

    def test_a_point_of_a_sweep_is_rejected(self, paths: list[Path]) -> None:
        sweep = Path("outputs/sweeps/custom/20261122-002755-5193")
        (sweep / "runs").mkdir(parents=True)
        (sweep / "sweep.json").write_text("{}")
        point = paths[0].rename(sweep / "runs" / paths[0].name)
        with pytest.raises(ConfigError, match="a resume of its sweep would train this point again"):
            listing.main([str(point), "--delete", "--yes"])
        assert point.exists()

    def test_a_link_is_not_followed(self, paths: list[Path], tmp_path: Path) -> None:
        outside = tmp_path / "outside.txt"
        outside.write_text("mine")
        (paths[0] / "link").symlink_to(outside)
        words = [sys.executable, "-m", "snnexp.cli", "runs", str(paths[0]), "--delete", "--yes"]
        ended = subprocess.run(words, capture_output=True, text=True, env=dict(os.environ))
        assert (ended.returncode, outside.read_text()) == (5, "mine")
        assert "link" in ended.stderr
