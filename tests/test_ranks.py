"""Starting the processes of ddp: by the run itself, by torchrun or by srun."""

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import commands
import pytest
from omegaconf import OmegaConf
from test_cli import only_run, record, snnexp

from snnexp.cli import train
from snnexp.errors import ConfigError, LostProcessError
from snnexp.record.run import Run
from snnexp.training import launchers, processes, rank
from snnexp.training.assembly import make_trainer

TINY = [
    *("experiment=regression_sqrt", "data.num_samples=4", "data.batch_size=4", "network.hidden=[4]", "num_steps=3"),
    *("trainer=ddp", "trainer.accelerator=cpu", "trainer.max_epochs=2", "logger=jsonl"),
]
TORCHRUN = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
STEP = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}
NOTEBOOK = (
    commands.SCRIPT
    + """
import os, sys
sys.ps1, sys.argv = ">>> ", ["kernel", "-f", "connection.json"]
sys.path.insert(0, "mine")
from snnexp.experiment import compose, resume, run
# PyTorch sets some at import time
before = dict(os.environ)
done = run(compose([*{words}, "encoder._target_=parts.Own"]))
assert resume(done.path, ["trainer.max_epochs=3"]).status == "finished"
assert dict(os.environ) == before
assert sys.argv == ["kernel", "-f", "connection.json"]
"""
)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Unset the variables of torchrun and srun."""
    for name in [name for name in os.environ if name.startswith("SLURM_") or name in TORCHRUN]:
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.slow
def test_a_notebook_trains_on_several_processes(tmp_path: Path, alone: pytest.MonkeyPatch) -> None:
    """They import user-defined parts like the notebook."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "parts.py").write_text("from snnexp.encoders import Sequence\nclass Own(Sequence): pass\n")
    alone.setenv("SNNEXP_ALLOW_TARGETS", "parts")
    done = subprocess.run(
        [sys.executable, "-c", NOTEBOOK.format(words=TINY)], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert record(only_run(tmp_path))["device"] == "2 x cpu"


@pytest.mark.slow
@pytest.mark.parametrize("search", [False, True], ids=["sweep", "search"])
def test_a_point_trains_on_several_processes(tmp_path: Path, alone: pytest.MonkeyPatch, search: bool) -> None:
    """Also if the sweep itself is one of several processes."""
    study = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=1", "hydra.sweeper.metric=test/l1"]
    more = [*study, "optimizer.lr=tag(log,interval(1e-4,1e-3))"] if search else ["seed=3"]
    words = [*TINY, "hydra.launcher.workers=1", *more]
    done = snnexp("train", "-m", *words, cwd=tmp_path, **TORCHRUN)
    assert "Traceback" not in done.stderr
    found = record(only_run(tmp_path, "outputs/sweeps/*/*/runs/*/run.json"))
    assert (found["status"], found["device"]) == ("finished", "2 x cpu")


def run_by_srun(folder: Path, *words: str) -> list[tuple[int, str]]:
    """Return exit code and stderr of each of two tasks."""
    with ExitStack() as stack:
        environments = ({**os.environ, **STEP, "SLURM_PROCID": rank, "LOCAL_RANK": rank} for rank in "01")
        tasks = [stack.enter_context(commands.Command(words, folder, environment)) for environment in environments]
        said = [task.communicate(timeout=120)[1] for task in tasks]
    return [(task.returncode, err) for task, err in zip(tasks, said, strict=True)]


@pytest.mark.slow
def test_tasks_of_a_slurm_step_train_and_resume_one_run(tmp_path: Path, alone: pytest.MonkeyPatch) -> None:
    assert [code for code, _ in run_by_srun(tmp_path, "train", *TINY)] == [0, 0]
    run = only_run(tmp_path)
    assert record(run)["device"] == "2 x cpu"
    assert [code for code, _ in run_by_srun(tmp_path, "resume", str(run), "trainer.max_epochs=3")] == [0, 0]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows if "train/epoch_loss" in row] == [0, 1, 2]
    # a task that rank 0 does not notify would wait
    assert run_by_srun(tmp_path, "resume", str(run)) == [(0, ""), (0, "")]


@pytest.mark.slow
def test_a_wrong_number_of_processes_is_reported_once(tmp_path: Path, alone: pytest.MonkeyPatch) -> None:
    (first, stderr), other = run_by_srun(tmp_path, "train", *TINY, "trainer.devices=4")
    assert (first, other) == (2, (2, ""))
    assert stderr.startswith("snnexp: trainer.devices: got 4, ")
    assert not (tmp_path / "outputs").exists()


def test_rank_and_world_size_come_from_the_launcher(alone: pytest.MonkeyPatch) -> None:
    def detect() -> tuple[int, int, bool]:
        cluster = processes.ProcessEnvironment.from_variables(4)
        return cluster.global_rank(), cluster.world_size(), cluster.external

    # the number of tasks of a job is not that of a step
    alone.setenv("SLURM_NTASKS", "8")
    alone.setenv("LOCAL_RANK", "1")
    assert detect() == (0, 4, False)
    for name, value in {**STEP, "SLURM_PROCID": "1"}.items():
        alone.setenv(name, value)
    assert detect() == (1, 2, True)
    for name, value in {**TORCHRUN, "WORLD_SIZE": "6"}.items():
        alone.setenv(name, value)
    assert detect() == (1, 6, True)
    alone.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match=r"^trainer\.devices: the processes are on 2 machines"):
        processes.ProcessEnvironment.from_variables(6).require(6)
    launchers.clear_rank_variables()
    assert detect() == (0, 4, False)


@pytest.mark.parametrize(
    ("variables", "shared", "shows"),
    [
        ({"LOCAL_RANK": "1"}, True, True),
        ({**TORCHRUN, "RANK": "0"}, True, True),
        (TORCHRUN, True, False),
        (TORCHRUN, False, True),
        ({**STEP, "SLURM_PROCID": "0"}, True, True),
        ({**STEP, "SLURM_PROCID": "1"}, True, False),
    ],
)
def test_only_rank_0_shows_the_config(
    variables: dict[str, str], shared: bool, shows: bool, alone: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in variables.items():
        alone.setenv(name, value)
    alone.setattr(sys.stdout, "isatty", lambda: True)
    train.check([*TINY, *([] if shared else ["trainer=cpu"])])
    assert bool(capsys.readouterr().out) == shows


def test_a_process_follows_only_its_parent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run.prepare(tmp_path, "", []).publish({})
    assert rank.main(run.path) == 2
    assert capsys.readouterr().err.startswith(f"snnexp: {run.path}: ")
    run.close()


def test_processes_that_do_not_find_each_other(alone: pytest.MonkeyPatch) -> None:
    alone.setattr(processes, "RENDEZVOUS_TIMEOUT", timedelta(seconds=0.1))
    for name, value in TORCHRUN.items():
        alone.setenv(name, value)
    with pytest.raises(LostProcessError, match=r"^the 2 processes of the run cannot connect at 127\.0\.0\.1:1$"):
        processes.PeerProcesses().wait_for_run(OmegaConf.create({"trainer": {"strategy": "ddp", "devices": 2}}))


def test_only_a_run_starts_processes() -> None:
    trainer = make_trainer(accelerator="cpu", devices=2, strategy="ddp")
    with pytest.raises(ConfigError, match=r"^trainer: "):
        trainer.strategy.launcher.launch(print)  # type: ignore[union-attr]


def test_the_port_is_reserved_before_it_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ports = []

    def started(run: Run, cluster: processes.ProcessEnvironment, rank: int) -> None:
        with pytest.raises(OSError, match="in use"), socket.create_server((cluster.address, cluster.port)):
            pass
        ports.append(cluster.port)

    monkeypatch.setattr(processes, "_start_process", started)
    launcher = processes.Launcher(processes.ProcessEnvironment(3))
    launcher.run = Run.prepare(tmp_path, "", [])
    assert [launcher.launch(lambda: "done") for _ in range(2)] == ["done"] * 2
    assert ports == [launcher.cluster.port] * 2


@pytest.mark.slow
def test_a_task_that_ends_stops_the_run_with_a_message(tmp_path: Path, alone: pytest.MonkeyPatch) -> None:
    parts = Path(__file__).parent / "behaviour" / "parts"
    alone.setenv("PYTHONPATH", str(parts), prepend=os.pathsep)
    alone.setenv("SNNEXP_ALLOW_TARGETS", "mypkg")
    words = ["--config-dir", str(parts / "conf"), "data=trouble", "data.kind=broken", "network.hidden=[4]"]
    words += ["num_steps=2", "trainer=ddp", "trainer.accelerator=cpu", "logger=jsonl"]
    (first, stderr), (other, why) = run_by_srun(tmp_path, "train", *words)
    assert (first, other) == (1, 8)
    assert stderr.splitlines()[-1] == "snnexp: another process of the run has ended, and the run with it"
    assert "KeyError" in why.splitlines()[-1]
    assert record(only_run(tmp_path))["status"] == "failed"


@pytest.mark.parametrize(
    "variables",
    [
        {"SLURM_STEP_NUM_TASKS": ""},
        {"SLURM_STEP_NUM_TASKS": "2"},
        {"SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_ID": "x", "SLURM_PROCID": "0"},
        {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "two", "MASTER_ADDR": "here", "MASTER_PORT": "1"},
    ],
)
def test_invalid_launcher_variables_are_ignored(variables: dict[str, str], alone: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        alone.setenv(name, value)
    cluster = processes.ProcessEnvironment.from_variables(3)
    assert (cluster.processes, cluster.rank, cluster.external) == (3, 0, False)
