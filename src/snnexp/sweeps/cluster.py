"""Run points as jobs of a SLURM cluster with submitit, or of its local executor.

A job writes its run directory and its events to a shared file system. Jobs survive the death of the driver, which finds
them when the sweep is resumed.

    <sweep>/jobs/point-<index>.jsonl    events of the last job of a point, in the format of a worker
    <sweep>/jobs/<driver>/              files of submitit
"""

import json
import os
import signal
import tempfile
from collections.abc import Mapping
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from snnexp.errors import ConfigError
from snnexp.record.run import Run
from snnexp.sweeps.slots import Job
from snnexp.text import one_line
from snnexp.threads import VARIABLES

STORAGE = "SNNEXP_SEARCH_STORAGE"
"""Environment variable with the storage URL of a search. A URL with a password is never sent to SLURM."""
RUNNING_STATES = ("RUNNING", "PENDING", "CONFIGURING", "COMPLETING", "SUSPENDED")


def make_executor(folder: Path, launcher: Mapping[str, Any]) -> submitit.AutoExecutor:
    """Make the executor that submits jobs.

    Args:
        folder: directory for the files of submitit.
        launcher: settings of ``hydra/launcher=slurm``.
    """
    folder.mkdir(exist_ok=True)
    # a new directory: jobs unpickle the files in it, and the files of a copied sweep are untrusted
    own = Path(tempfile.mkdtemp(dir=folder))
    own.chmod(0o755)
    # do not import modules from the current directory
    os.environ["PYTHONSAFEPATH"] = "1"
    executor = submitit.AutoExecutor(folder=own, cluster=launcher["cluster"])
    threads = launcher["threads"]
    executor.update_parameters(
        name="snnexp",
        timeout_min=launcher["timeout_min"],
        cpus_per_task=threads,
        mem_gb=launcher["memory_gb"],
        gpus_per_node=launcher["gpus"] or None,
        **{f"slurm_{name}": launcher[name] for name in ("partition", "account", "qos", "constraint")},
        # a requeued job would start a second run of its point
        slurm_additional_parameters={"no-requeue": True},
        # srun does not inherit --cpus-per-task from sbatch
        slurm_setup=None if threads is None else [f"export SRUN_CPUS_PER_TASK={threads}"],
    )
    return executor


class ClusterJob:
    """A slot that runs one cluster job at a time.

    Args:
        executor: submits the job.
        threads: number of threads of a job; None lets each run decide.
    """

    how = "job"
    handle = None

    def __init__(self, executor: submitit.AutoExecutor, threads: int | None) -> None:
        self.executor, self.threads = executor, threads
        self.job: submitit.Job[None] | _OrphanedJob | None = None
        self.event_file: Path | None = None
        self.lines_read = 0

    @property
    def ready(self) -> bool:
        return self.job is None

    def start(self, job: Job, task: Mapping[str, Any]) -> None:
        point, run = job[0], Run(Path(task["run"])) if task.get("run") else None
        self.event_file, self.lines_read = self.executor.folder.parent / f"point-{point.index}.jsonl", 0
        # a job submitted by an earlier driver may still be running
        self.job = self._find_job(point.job) if point.job else None
        if self.job is None and run is not None and run.in_use():
            # a local job of an earlier driver, known only by the lock of its run
            self.job, self.event_file = _OrphanedJob(run), None
        elif self.job is None:
            self.event_file.unlink(missing_ok=True)
            self.job = self._submit(task, self.event_file)
            point.job = self.job.job_id

    def _find_job(self, number: str) -> "submitit.Job[None] | None":
        submitted = next(self.executor.folder.parent.glob(f"*/{number}_submitted.pkl"), None)
        if self.executor.cluster == "local" or submitted is None:
            return None
        job: submitit.Job[None] = submitit.SlurmJob(submitted.parent, number)
        return job if job.state in RUNNING_STATES else None

    def _submit(self, task: Mapping[str, Any], event_file: Path) -> "submitit.Job[None]":
        if task.get("prune"):
            os.environ[STORAGE] = task["prune"]["storage"]
            task = {**task, "prune": {**task["prune"], "storage": None}}
        try:
            with redirect_stderr(StringIO()):
                # submitit also prints the error, which is raised below
                job = self.executor.submit(execute_task, task, event_file, self.threads)
        except (FailedSubmissionError, FailedJobError) as error:
            reason = one_line(str(error)) or "sbatch gave no reason"
            raise ConfigError(f"hydra/launcher=slurm: a job was rejected: {reason}") from error
        for link in self.executor.folder.glob(".submission_file_*"):
            # Ledger.open rejects a sweep that contains links
            link.unlink()
        return job

    def events(self) -> list[dict[str, Any]]:
        if self.job is None:
            return []
        # in this order: after the job has ended, all its events can be read
        state = self._end_state()
        events = self._new_events()
        if state is not None:
            self.job = None
            events.append({"gone": f"its job left no result{state}", "exit_code": 1})
        return events

    def _end_state(self) -> str | None:
        """Return the state of an ended job as the end of a message; None while the job is running."""
        assert self.job is not None
        # submitit expects a preempted job to be requeued, so done() is False
        if not self.job.done() and not self.job.state.startswith("PREEMPTED"):
            return None
        return f", its state is {self.job.state}" if isinstance(self.job, submitit.SlurmJob) else ""

    def _new_events(self) -> list[dict[str, Any]]:
        if self.event_file is None:
            return [{"working": True}]
        if not self.event_file.exists():
            return []
        # the last line may be incomplete
        lines = self.event_file.read_text().split("\n")[:-1]
        new, self.lines_read = lines[self.lines_read :], len(lines)
        return [*map(json.loads, new)]

    def stop(self, at_once: bool) -> None:
        if isinstance(self.job, submitit.LocalJob) and not at_once:
            # cancel() would kill it after one second
            os.kill(int(self.job.job_id), signal.SIGTERM)
        elif self.job is not None:
            self.job.cancel(check=False)

    def close(self) -> None:
        """Do nothing: jobs outlive the driver, and stop() has cancelled those that should end."""


class _OrphanedJob:
    """A running job of which only the run directory is known."""

    state = "UNKNOWN"

    def __init__(self, run: Run) -> None:
        self.run = run
        self.abandoned = False

    def done(self) -> bool:
        return self.abandoned or not self.run.in_use()

    def cancel(self, check: bool) -> None:
        """Stop waiting. The job continues, and is found when the sweep is resumed."""
        self.abandoned = True


def execute_task(task: Mapping[str, Any], event_file: Path, threads: int | None) -> None:
    """Run the task of a worker in a job.

    Args:
        task: see :mod:`snnexp.sweeps.worker`, without the storage URL of a search.
        event_file: file to which events are written.
        threads: number of threads; None lets the run decide.
    """
    from snnexp.sweeps import worker

    if threads is not None:
        # must be set before torch is imported; the job inherits the variables of the driver
        os.environ |= dict.fromkeys(VARIABLES, str(threads))
    if task.get("prune"):
        task = {**task, "prune": {**task["prune"], "storage": os.environ[STORAGE]}}
    # submitit ignores SIGTERM; until the run installs its handlers there is nothing to save
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # submitit sends SIGUSR2 shortly before the time limit; save the run then
    signal.signal(signal.SIGUSR2, lambda number, frame: os.kill(os.getpid(), signal.SIGTERM))
    with event_file.open("w", buffering=1) as file:
        worker.execute(task, lambda event: print(json.dumps(event), file=file))


# the name in jobs that an earlier version has queued
carry_out = execute_task
