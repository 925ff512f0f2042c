"""Run directories and sweeps that somebody else has made."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from shell import Shell, wait_until
from test_processes import RUN, three_steps_are_done

from snnexp import experiment


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = ("experiment=regression_sqrt", "trainer=cpu", "trainer.max_epochs=1", "logger=jsonl")
    return experiment.run(experiment.compose(words), parent=tmp_path_factory.mktemp("runs")).path


@pytest.fixture
def run(snnexp: Shell, made: Path) -> Path:
    return shutil.copytree(made, snnexp.folder / "outputs" / "regression_sqrt" / made.name)


@pytest.fixture(autouse=True)
def nothing_waits() -> Iterator[None]:
    def end(number: int, frame: object) -> None:
        pytest.fail("waits for ever")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


TEMPORARY = (
    "train.log",
    ".run.json.tmp",
    ".config.yaml.tmp",
    ".metrics.jsonl.tmp",
    "checkpoints/.last.ckpt.tmp",
    "checkpoints/.last.ckpt.sha256.tmp",
    "probe/.last.npz.tmp",
    "tensorboard/hparams.yaml",
)


@pytest.mark.slow
def test_a_pipe_is_not_waited_for(snnexp: Shell, run: Path) -> None:
    for number, name in enumerate(TEMPORARY):
        copy = shutil.copytree(run, snnexp.folder / f"copy{number}")
        (copy / name).unlink(missing_ok=True)
        (copy / name).parent.mkdir(exist_ok=True)
        os.mkfifo(copy / name)
        assert snnexp("resume", str(copy), "trainer.max_epochs=2").code == 5
        assert snnexp("report", str(copy)).code == 0


@pytest.mark.parametrize("kind", ["hard link", "link", "pipe", "file"])
def test_a_report_writes_through_nothing_that_is_there(snnexp: Shell, run: Path, kind: str) -> None:
    mine = snnexp.folder / "mine"
    mine.write_text("mine")
    name = ".report.html.tmp"
    if kind == "pipe":
        os.mkfifo(run / name)
    elif kind == "file":
        (run / name).write_text("left by a process that was killed")
    else:
        (os.link if kind == "hard link" else os.symlink)(mine, run / name)
    assert snnexp("report", str(run)).code == 0
    assert mine.read_text() == "mine"
    assert (run / "report.html").stat().st_nlink == 1


def test_metrics_of_gigabytes_are_not_read(snnexp: Shell, run: Path) -> None:
    os.truncate(run / "metrics.jsonl", 6 * 2**30)
    assert snnexp("resume", str(run), "trainer.max_epochs=2").code == 5
    assert snnexp("runs", str(run)).code == 0
    assert snnexp("report", str(run)).code == 0


def test_a_report_leaves_out_arrays_of_any_size(snnexp: Shell, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "probe").mkdir()
    np.savez(run / "probe" / "last.npz", **{"parameter/hidden1/beta": np.zeros(60_000_000, np.uint8)})
    load = np.load

    def small(file: Any, **named: Any) -> Any:
        assert len(file.getbuffer()) < 2**20
        return load(file, **named)

    monkeypatch.setattr(np, "load", small)
    assert snnexp("report", str(run)).code == 0
    assert "last.npz" in (run / "report.html").read_text()


@pytest.mark.slow
def test_a_run_is_not_shared_when_its_lock_is_deleted(snnexp: Shell, shell: Shell) -> None:
    words = ("data=trouble", "data.kind=slow", "data.after=3", "trainer=cpu")
    with shell.started(*RUN, *words, SLOW_S="10000") as process:
        wait_until(lambda: three_steps_are_done(shell))
        run = str(shell.run())
        before = (shell.run() / "run.json").read_bytes()
        first = {"SNNEXP_FIRST_PROCESS": str(os.getppid()), "SNNEXP_RUN_DIR": run}
        assert snnexp("resume", run, **first).code == 6
        (shell.run() / ".lock").unlink()
        assert snnexp("resume", run).code == 6
        (listed,) = json.loads("\n".join(snnexp("runs", ".", "--json").out))
        assert listed["status"] == "running"
        (shell.run() / ".lock").touch()
        assert snnexp("resume", run).code == 6
        assert (shell.run() / "run.json").read_bytes() == before
        process.kill()
        process.communicate()
        (listed,) = json.loads("\n".join(snnexp("runs", ".", "--json").out))
        assert listed["status"] == "killed", "also where data workers outlive it"


class TestConfigs:
    SECRET = "hunter2"

    def outcome(self, snnexp: Shell, text: str, *words: str) -> tuple[int, str]:
        folder = snnexp.folder / "conf" / "experiment"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "theirs.yaml").write_text(f"# @package _global_\n# Theirs\n{text}\n")
        ended = snnexp("train", "--config-dir", "conf", "experiment=theirs", *words, SECRET=self.SECRET)
        (said,) = ended.err
        assert os.listdir(snnexp.folder) == ["conf"]
        assert self.SECRET not in said
        return ended.code, said

    @pytest.mark.parametrize("words", [(), ("-m", "seed=1,2")])
    @pytest.mark.parametrize(
        "text",
        [
            "name: ${oc.env:SECRET}",
            "published: {a: '${ oc.env : SECRET , 1}'}",
            "name: ${oc.env:SNNEXP_NAME,${oc.env:SECRET}}",
            "name: ${oc.env:'SECRET'}",
            "name: ${theirs:1}",
            "name: \\${theirs:1}",
            "name: ${new_run_id:}${theirs:1}",
            "hydra: {job: {name: '${theirs:1}'}}",
            "hydra: {help: {header: '${oc.env:SECRET}'}}",
            "defaults:\n  - override /neuron: ${theirs:1}",
        ],
    )
    def test_no_function_and_no_variable_of_others_is_read(
        self, snnexp: Shell, text: str, words: tuple[str, ...]
    ) -> None:
        called = []
        OmegaConf.register_new_resolver("theirs", called.append, replace=True)
        try:
            assert self.outcome(snnexp, text, *words)[0] == 2
        finally:
            OmegaConf.clear_resolver("theirs")
        assert called == []

    @pytest.mark.parametrize("override", ["name=${oc.env:SECRET}", "neuron=${oc.env:SECRET}", "+a=${oc.decode:1}"])
    def test_what_is_typed_follows_the_same_rule(self, snnexp: Shell, override: str) -> None:
        ended = snnexp("train", "experiment=regression_sqrt", override, SECRET=self.SECRET)
        assert (ended.code, len(ended.err)) == (2, 1)
        assert self.SECRET not in ended.err[0]

    def test_hydras_own_settings_do_not_multiply(self, snnexp: Shell) -> None:
        doubled = "".join(f"    a{index}: '${{.a{index + 1}}}${{.a{index + 1}}}'\n" for index in range(60))
        for node in ("env", "help"):
            assert self.outcome(snnexp, f"hydra:\n  {node}:\n{doubled}    a60: x")[0] == 2

    @pytest.mark.parametrize("key", ["launcher.workers", "launcher.threads"])
    def test_hydras_own_settings_have_domains(self, snnexp: Shell, key: str) -> None:
        ended = snnexp("train", "experiment=regression_sqrt", "hydra/launcher=processes", f"hydra.{key}=-1")
        assert (ended.code, ended.key) == (2, f"hydra.{key}")

    def test_only_the_command_line_names_a_database(self, snnexp: Shell) -> None:
        text = f"hydra:\n  sweeper: {{storage: 'sqlite:///{snnexp.folder}/theirs.db'}}"
        words = ("hydra/sweeper=optuna", "optimizer.lr=interval(1e-4,1e-2)", "hydra.sweeper.metric=test/loss")
        code, said = self.outcome(snnexp, f"defaults:\n  - regression_sqrt\n{text}", "-m", *words)
        assert (code, said.split(": ")[1]) == (2, "hydra.sweeper.storage")


@pytest.fixture
def search(snnexp: Shell) -> Path:
    """A search of which a point was left."""
    (kept,) = (Path(__file__).parents[1] / "old" / "search").iterdir()
    search = shutil.copytree(kept, snnexp.folder / kept.name)
    change(search, lambda content: content["points"][0].update(status="interrupted"))
    return search


def change(sweep: Path, act: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((sweep / "sweep.json").read_text())
    act(content)
    (sweep / "sweep.json").write_text(json.dumps(content))


class TestSweeps:
    def test_only_the_command_line_names_a_database(self, snnexp: Shell, search: Path) -> None:
        theirs = snnexp.folder / "theirs.db"
        change(search, lambda content: content["search"]["settings"].update(storage=f"sqlite:///{theirs}"))
        ended = snnexp("resume", str(search))
        assert (ended.code, ended.key) == (2, "hydra.sweeper.storage")
        assert not theirs.exists()

    def test_a_search_reads_no_variables(self, snnexp: Shell, search: Path) -> None:
        change(search, lambda content: content["search"]["overrides"].append("name=${oc.env:SECRET}"))
        ended = snnexp("resume", str(search), SECRET="hunter2")
        assert (ended.code, len(ended.err)) == (2, 1)
        assert "hunter2" not in "".join(path.read_text(errors="replace") for path in search.glob("*.json*"))
