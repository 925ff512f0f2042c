"""Sweeps on a cluster: the local executor of submitit, and a fake SLURM."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from postgres import PASSWORD
from test_cli import record, snnexp
from test_sweeps import RUN, home, points, started, statuses, wait_until

from snnexp.cli import main
from snnexp.sweeps import cluster, worker
from snnexp.sweeps.ledger import Point

pytestmark = pytest.mark.slow

LOCAL = ["hydra/launcher=slurm", "hydra.launcher.cluster=local"]
LONG = [*RUN, "trainer.max_epochs=1000", "-m", "seed=4"]
SETTINGS = {
    **dict.fromkeys(("partition", "account", "qos", "constraint", "memory_gb", "gpus")),
    **{"kind": "slurm", "cluster": "local", "workers": 1, "threads": 1, "timeout_min": 60},
}
# job id: PID of sbatch; state: $CLUSTER/<job id>; PID of the job: $CLUSTER/<job id>.pid
SLURM = {
    "sbatch": """
        grep -q partition=full "$1" && echo "sbatch: error: no room" >&2 && exit 1
        cp "$1" "$CLUSTER/$$.sh"
        export SLURM_JOB_ID=$$
        (
            setsid bash "$CLUSTER/$$.sh" && end=COMPLETED || end=FAILED
            [ -e "$CLUSTER/$$" ] || echo $end >"$CLUSTER/$$"
        ) >"$CLUSTER/$$.log" 2>&1 &
        echo "Submitted batch job $$"
    """,
    # skips --unbuffered --output FILE --error FILE
    "srun": 'echo $$ >"$CLUSTER/$SLURM_JOB_ID.pid"; exec "${@:6}"',
    "sacct": """
        echo "JobID|State|NodeList"
        for word in "$@"; do
            [[ $word =~ ^[0-9]+$ ]] && echo "$word|$(cat "$CLUSTER/$word" 2>/dev/null || echo RUNNING)|here"
        done
        exit 0
    """,
    "scancel": """
        echo "CANCELLED by 0" >"$CLUSTER/$1"
        for each in TERM CONT; do kill -$each "$(cat "$CLUSTER/$1.pid")"; done
    """,
}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a fake SLURM on PATH; return the folder of its jobs."""
    folder = tmp_path / "cluster"
    (folder / "bin").mkdir(parents=True)
    for name, text in SLURM.items():
        (folder / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("CLUSTER", str(folder))
    return folder


@pytest.fixture(autouse=True)
def own_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore the environment variables that an executor sets."""
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    monkeypatch.delenv("PYTHONSAFEPATH")


def only_run(cwd: Path) -> Path | None:
    """Return the run of a sweep with one point, if it exists."""
    # temporary directories of runs that are being created start with a dot
    found = [path.parent for path in cwd.glob("outputs/sweeps/*/*/runs/[!.]*/run.json")]
    assert len(found) <= 1, "no point runs twice"
    return found[0] if found else None


def trains(cwd: Path) -> bool:
    run = only_run(cwd)
    return run is not None and record(run)["status"] == "running" and bool((run / "metrics.jsonl").stat().st_size)


@pytest.fixture
def halted() -> Iterator[list[int]]:
    """PIDs of stopped processes, which are killed after the test."""
    found: list[int] = []
    yield found
    for process in found:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def leave(driver: "subprocess.Popen[str]", cwd: Path, halted: list[int]) -> None:
    """Kill a driver while its job trains, and stop the job with SIGSTOP until the test continues it."""
    wait_until(lambda: trains(cwd))
    run = only_run(cwd)
    assert run is not None
    halted.append(int((run / ".lock").read_text()))
    os.kill(halted[-1], signal.SIGSTOP)
    driver.kill()
    driver.wait()
    for pipe in (driver.stdout, driver.stderr):
        # do not wait for the end of the pipes: a local job inherits them
        assert pipe is not None
        pipe.close()


def resumed(cwd: Path) -> "subprocess.Popen[str]":
    """Start a driver that resumes a sweep, and wait until its point runs."""
    before = (home(cwd) / "sweep.json").stat().st_mtime_ns
    driver = started(cwd, "resume", str(home(cwd)))
    wait_until(lambda: (home(cwd) / "sweep.json").stat().st_mtime_ns > before and statuses(cwd) == ["running"])
    return driver


def ended(driver: "subprocess.Popen[str]", by: int) -> str:
    """Stop a driver with a signal; return its output."""
    driver.send_signal(by)
    out, err = driver.communicate(timeout=100)
    assert driver.returncode == 128 + by, out + err
    assert err == f"snnexp: stopped by {signal.Signals(by).name}\n"
    return out


class TestLocal:
    def test_each_point_runs_in_its_own_job(self, tmp_path: Path) -> None:
        ways = ["loss._target_=faults.Faulty", "+loss.point=${seed}", "+loss.faults=['',diverge,SIGKILL]"]
        lean = [*LOCAL, "hydra.launcher.workers=3", "hydra.launcher.threads=2"]
        environment = {"PYTHONPATH": str(Path(__file__).parent), "SNNEXP_ALLOW_TARGETS": "faults"}
        done = snnexp(*RUN, *ways, "-m", "seed=range(3)", *lean, cwd=tmp_path, code=7, **environment)
        found = points(tmp_path)
        assert [point["status"] for point in found] == ["finished", "diverged", "failed"]
        assert [point["exit_code"] for point in found] == [0, 3, 1]
        assert "the loss is nan" in found[1]["reason"]
        assert found[2]["reason"] == "its job left no result"
        assert all(point["reason"] in done.stdout for point in found)
        assert len({point["job"] for point in found}) == 3
        assert [point["how"] for point in found] == ["job"] * 3
        runs = [record(home(tmp_path) / point["run"]) for point in found]
        assert [run["seed"] for run in runs] == [0, 1, 2]
        assert [run["status"] for run in runs] == ["finished", "diverged", "failed"]
        assert runs[0]["threads"] == 2, "the setting of the launcher, not of the driver"
        assert not done.stderr

    def test_a_job_outlives_its_driver_and_is_found_on_resume(self, tmp_path: Path, halted: list[int]) -> None:
        driver = started(tmp_path, *LONG, *LOCAL)
        wait_until(lambda: trains(tmp_path))
        output = ended(driver, by=signal.SIGTERM)
        run = only_run(tmp_path)
        assert run is not None
        assert "seed=4  interrupted  stopped by SIGTERM" in output.replace("the only point", "seed=4")
        assert statuses(tmp_path) == [record(run)["status"]] == ["interrupted"]
        leave(resumed(tmp_path), tmp_path, halted)
        ended(resumed(tmp_path), by=signal.SIGINT)
        assert statuses(tmp_path) == ["interrupted"]
        assert record(run)["status"] == "running", "a driver does not stop jobs of another driver"
        driver = resumed(tmp_path)
        os.kill(halted[-1], signal.SIGCONT)
        out, err = driver.communicate(timeout=100)
        assert (driver.returncode, err) == (0, ""), out
        assert statuses(tmp_path) == [record(run)["status"]] == ["finished"]
        assert only_run(tmp_path) == run
        assert len(record(run)["resumed_at_step"]) == 1
        assert len([*home(tmp_path).glob("jobs/*/*_submitted.pkl")]) == 2, "no job is submitted for a running run"


class TestSlurm:
    def test_a_job_is_found_cancelled_and_saved_before_its_time_limit(
        self, tmp_path: Path, slurm: Path, halted: list[int]
    ) -> None:
        driver = started(tmp_path, *LONG, "hydra/launcher=slurm", "hydra.launcher.workers=null")
        leave(driver, tmp_path, halted)
        (number,) = [point["job"] for point in points(tmp_path)]
        ended(resumed(tmp_path), by=signal.SIGTERM)
        assert (slurm / number).read_text() == "CANCELLED by 0\n"
        run = only_run(tmp_path)
        assert run is not None
        assert statuses(tmp_path) == [record(run)["status"]] == ["interrupted"]
        driver = resumed(tmp_path)
        wait_until(lambda: trains(tmp_path))
        (point,) = points(tmp_path)
        assert point["job"] != number
        os.kill(int((slurm / f"{point['job']}.pid").read_text()), signal.SIGUSR2)
        out, err = driver.communicate(timeout=100)
        assert (driver.returncode, err) == (7, "")
        assert f"snnexp resume {home(tmp_path).relative_to(tmp_path)}" in out
        assert statuses(tmp_path) == [record(run)["status"]] == ["interrupted"]
        # step 10 is logged twice, in a row of its own and in that of the epoch
        rows = (run / "metrics.jsonl").read_text().splitlines()
        steps = [json.loads(row)["step"] for row in rows]
        assert (steps, len(set(rows))) == (sorted(steps), len(rows))
        assert record(run)["resumed_at_step"][0] > 0

    def test_sbatch_options(self, tmp_path: Path, slurm: Path) -> None:
        chosen = {"partition": "long", "account": "me", "qos": "low", "constraint": "avx2", "memory_gb": 2.5, "gpus": 2}
        executor = cluster.make_executor(tmp_path / "jobs", {**SETTINGS, **chosen, "cluster": "slurm", "threads": 3})
        job = executor.submit(print)
        text = job.paths.submission_file.read_text()
        found = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", text, re.M))
        expected = {"partition": "long", "account": "me", "qos": "low", "constraint": "avx2"}
        expected |= {"mem": "2560MB", "gpus-per-node": "2", "cpus-per-task": "3", "time": "60", "no-requeue": ""}
        assert found | expected == found
        assert found["signal"].startswith("USR2@")
        assert "export SRUN_CPUS_PER_TASK=3" in text.partition("srun ")[0]
        plain = cluster.make_executor(tmp_path / "jobs", {**SETTINGS, "cluster": "slurm", "threads": None})
        found = dict(
            re.findall(r"^#SBATCH --([a-z-]+)=(.*)$", plain.submit(print).paths.submission_file.read_text(), re.M)
        )
        assert not found.keys() & {"partition", "account", "mem", "gpus-per-node", "cpus-per-task"}
        wait_until(lambda: len([*slurm.glob("*[0-9]")]) == 2)

    @pytest.mark.parametrize("state", ["RUNNING", "OUT_OF_MEMORY", "PREEMPTED"])
    def test_a_job_without_a_result_is_reported_with_its_state(self, tmp_path: Path, slurm: Path, state: str) -> None:
        (slurm / "bin" / "srun").write_text("#!/bin/bash\n")
        slot = cluster.ClusterJob(cluster.make_executor(tmp_path / "jobs", {**SETTINGS, "cluster": "slurm"}), threads=1)
        point = Point([])
        slot.start([point], {"log": str(tmp_path / "log")})
        wait_until((slurm / point.job).exists)
        (slurm / point.job).write_text(state)
        events = (
            [] if state == "RUNNING" else [{"gone": f"its job left no result, its state is {state}", "exit_code": 1}]
        )
        assert slot.events() == events
        assert slot.ready == bool(events)

    def test_a_refused_job_is_reported(
        self, tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert main(["train", *LONG[1:], "hydra/launcher=slurm", "hydra.launcher.partition=full"]) == 2
        message = "snnexp: hydra/launcher=slurm: a job was rejected: sbatch: error: no room\n"
        assert capfd.readouterr().err == message


def test_a_password_is_not_submitted(tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"postgresql://me:{PASSWORD}@host/name"
    task = {"config": {}, "overrides": [], "log": str(tmp_path / "log"), "prune": {"storage": url, "trial": 3}}
    slot = cluster.ClusterJob(cluster.make_executor(tmp_path / "jobs", {**SETTINGS, "cluster": "slurm"}), threads=1)
    monkeypatch.setenv(cluster.STORAGE, "")
    (slurm / "bin" / "srun").write_text("#!/bin/bash\n")
    slot.start([Point([])], task)
    assert isinstance(slot.job, cluster.submitit.Job)
    given = slot.job.submission()
    assert task["prune"] == {"storage": url, "trial": 3}, "the task is not modified"
    wait_until(lambda: [*slurm.glob("*[0-9]")])
    found = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"trial" in found
    assert PASSWORD.encode() not in found
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MKL_NUM_THREADS", "1")
    seen: list[Any] = []
    monkeypatch.setattr(worker, "execute", lambda task, tell: seen.append(task))
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
    try:
        given.function(*given.args)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert seen == [task]


def test_jobs_do_not_use_files_of_a_copied_sweep(tmp_path: Path) -> None:
    """A job unpickles a file that is named after its id, so an existing folder is not trusted."""
    first, second = (cluster.make_executor(tmp_path / "jobs", SETTINGS).folder for _ in range(2))
    assert first != second
    assert not [*first.iterdir(), *second.iterdir()]
