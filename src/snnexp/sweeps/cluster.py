"""Points as jobs of a SLURM cluster, through submitit; its local executor stands in where there is no cluster.

A job writes its run directory on a disk that the driver sees too, and tells in a file what became of it. A driver that
is killed leaves its jobs alone, and finds them again when the sweep is resumed.

    <sweep>/jobs/point-<index>.jsonl    what the last job of a point has told, as a worker tells it
    <sweep>/jobs/<driver>/              what submitit writes
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
from snnexp.threads import BOTH

STORAGE = "SNNEXP_SEARCH_STORAGE"
"""The variable that gives a job the URL of a search; a URL with a password is never sent to SLURM."""
UNDER_WAY = ("RUNNING", "PENDING", "CONFIGURING", "COMPLETING", "SUSPENDED")


def executor(folder: Path, launcher: Mapping[str, Any]) -> submitit.AutoExecutor:
    """What submits jobs.

    Args:
        folder: for what submitit writes.
        launcher: the settings of ``hydra/launcher=slurm``.
    """
    folder.mkdir(exist_ok=True)
    # a job runs what it finds there: in a sweep from elsewhere, that may be anything
    own = Path(tempfile.mkdtemp(dir=folder))
    own.chmod(0o755)
    # as for workers
    os.environ["PYTHONSAFEPATH"] = "1"
    made = submitit.AutoExecutor(folder=own, cluster=launcher["cluster"])
    threads = launcher["threads"]
    made.update_parameters(
        name="snnexp",
        timeout_min=launcher["timeout_min"],
        cpus_per_task=threads,
        mem_gb=launcher["memory_gb"],
        gpus_per_node=launcher["gpus"] or None,
        **{f"slurm_{name}": launcher[name] for name in ("partition", "account", "qos", "constraint")},
        # a job that SLURM began anew would make a second run of its point
        slurm_additional_parameters={"no-requeue": True},
        # srun does not take it from sbatch
        slurm_setup=None if threads is None else [f"export SRUN_CPUS_PER_TASK={threads}"],
    )
    return made


class ClusterJob:
    """A slot for one job at a time.

    Args:
        executor: submits it.
        threads: of a job; None where each run decides for itself.
    """

    how = "job"
    handle = None

    def __init__(self, executor: submitit.AutoExecutor, threads: int | None) -> None:
        self.executor, self.threads = executor, threads
        self.job: submitit.Job[None] | _Elsewhere | None = None
        self.told: Path | None = None
        self.heard = 0

    @property
    def ready(self) -> bool:
        return self.job is None

    def start(self, job: Job, task: Mapping[str, Any]) -> None:
        point, run = job[0], Run(Path(task["run"])) if task.get("run") else None
        self.told, self.heard = self.executor.folder.parent / f"point-{point.index}.jsonl", 0
        # one that a driver before has submitted may still be under way
        self.job = self._found(point.job) if point.job else None
        if self.job is None and run is not None and run.in_use():
            # of a local job that its driver has left, the lock alone is known
            self.job, self.told = _Elsewhere(run), None
        elif self.job is None:
            self.told.unlink(missing_ok=True)
            self.job = self._submitted(task, self.told)
            point.job = self.job.job_id

    def _found(self, number: str) -> "submitit.Job[None] | None":
        before = next(self.executor.folder.parent.glob(f"*/{number}_submitted.pkl"), None)
        if self.executor.cluster == "local" or before is None:
            return None
        job: submitit.Job[None] = submitit.SlurmJob(before.parent, number)
        return job if job.state in UNDER_WAY else None

    def _submitted(self, task: Mapping[str, Any], told: Path) -> "submitit.Job[None]":
        if task.get("prune"):
            os.environ[STORAGE] = task["prune"]["storage"]
            task = {**task, "prune": {**task["prune"], "storage": None}}
        try:
            with redirect_stderr(StringIO()):
                # which holds what the error says too
                job = self.executor.submit(carry_out, task, told, self.threads)
        except (FailedSubmissionError, FailedJobError) as error:
            reason = one_line(str(error)) or "sbatch does not say why"
            raise ConfigError(f"hydra/launcher=slurm: a job was refused: {reason}") from error
        for link in self.executor.folder.glob(".submission_file_*"):
            # a sweep with links in it is not resumed
            link.unlink()
        return job

    def events(self) -> list[dict[str, Any]]:
        if self.job is None:
            return []
        # in this order: what a job that is over has told is then all there
        state = self._end()
        found = self._news()
        if state is not None:
            self.job = None
            found.append({"gone": f"its job left no result{state}", "exit_code": 1})
        return found

    def _end(self) -> str | None:
        """The state in which the job has ended, to be told; None while it is under way."""
        assert self.job is not None
        # submitit waits for one that was preempted, which comes back where jobs are begun anew
        if not self.job.done() and not self.job.state.startswith("PREEMPTED"):
            return None
        return f", its state is {self.job.state}" if isinstance(self.job, submitit.SlurmJob) else ""

    def _news(self) -> list[dict[str, Any]]:
        if self.told is None:
            return [{"working": True}]
        if not self.told.exists():
            return []
        # the last line may still be written
        lines = self.told.read_text().split("\n")[:-1]
        new, self.heard = lines[self.heard :], len(lines)
        return [*map(json.loads, new)]

    def stop(self, at_once: bool) -> None:
        if isinstance(self.job, submitit.LocalJob) and not at_once:
            # cancelled, it would have a second to save
            os.kill(int(self.job.job_id), signal.SIGTERM)
        elif self.job is not None:
            self.job.cancel(check=False)

    def close(self) -> None:
        """The jobs are the cluster's, and those that were to end have been told."""


class _Elsewhere:
    """A job of which nothing is known but the run that it writes."""

    state = "UNKNOWN"

    def __init__(self, run: Run) -> None:
        self.run = run
        self.left = False

    def done(self) -> bool:
        return self.left or not self.run.in_use()

    def cancel(self, check: bool) -> None:
        """It goes on; whoever resumes the sweep finds it."""
        self.left = True


def carry_out(task: Mapping[str, Any], told: Path, threads: int | None) -> None:
    """What a job does: the task of a worker.

    Args:
        task: see :mod:`snnexp.sweeps.worker`; the URL of a search is left out.
        told: the file of what it has to tell.
        threads: to compute with.
    """
    from snnexp.sweeps import worker

    if threads is not None:
        # read when torch is imported; the driver's own would come along
        os.environ |= dict.fromkeys(BOTH, str(threads))
    if task.get("prune"):
        task = {**task, "prune": {**task["prune"], "storage": os.environ[STORAGE]}}
    # before its run handles signals there is nothing to save, and submitit would ignore it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # submitit's sign that the time is nearly over; the run then has time to be saved
    signal.signal(signal.SIGUSR2, lambda number, frame: os.kill(os.getpid(), signal.SIGTERM))
    with told.open("w", buffering=1) as file:
        worker.execute(task, lambda event: print(json.dumps(event), file=file))
