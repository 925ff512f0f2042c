"""Points as jobs of a SLURM cluster, through submitit; its local executor stands in where there is no cluster.

A job writes its run directory on a disk that the driver sees too, and what became of it is read there. A driver that
is killed leaves its jobs alone, and finds them again when the sweep is resumed.
"""

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedSubmissionError

from snnexp.errors import ConfigError
from snnexp.runs import Run
from snnexp.sweeps.engine import Job


def executor(folder: Path, launcher: Mapping[str, Any]) -> submitit.AutoExecutor:
    """What submits jobs.

    Args:
        folder: for what submitit writes.
        launcher: the settings of ``hydra/launcher=slurm``.
    """
    made = submitit.AutoExecutor(folder=folder, cluster=launcher["cluster"])
    own = {f"slurm_{name}": launcher[name] for name in ("partition", "account", "qos", "constraint") if launcher[name]}
    made.update_parameters(
        name="snnexp",
        timeout_min=launcher["timeout_min"],
        cpus_per_task=launcher["threads"],
        mem_gb=launcher["memory_gb"],
        # the local executor wants a number
        gpus_per_node=launcher["gpus"] or 0,
        **own,
    )
    return made


class ClusterJob:
    """A slot for one job at a time.

    Args:
        executor: submits it.
    """

    how = "job"
    handle = None

    def __init__(self, executor: submitit.AutoExecutor) -> None:
        self.executor = executor
        self.job: submitit.Job[None] | _Elsewhere | None = None

    @property
    def ready(self) -> bool:
        return self.job is None

    def start(self, job: Job, task: Mapping[str, Any]) -> None:
        # one that a driver before has submitted may still be under way
        self.job = self._found(job[0].job) if job[0].job else None
        run = Run(Path(task["run"])) if task.get("run") else None
        if self.job is None and run is not None and run.in_use():
            # of a local job that its driver has left, the lock alone is known
            self.job = _Elsewhere(run)
        elif self.job is None:
            try:
                self.job = self.executor.submit(carry_out, dict(task))
            except FailedSubmissionError as error:
                raise ConfigError(f"hydra/launcher=slurm: a job was refused: {str(error).splitlines()[-1]}") from error
            job[0].job = self.job.job_id

    def _found(self, number: str) -> "submitit.Job[None] | None":
        job: submitit.Job[None] = self.executor.job_class(self.executor.folder, number)
        return job if job.state in ("RUNNING", "PENDING", "CONFIGURING", "COMPLETING", "SUSPENDED") else None

    def events(self) -> list[dict[str, Any]]:
        if self.job is None or not self.job.done():
            return []
        state, self.job = self.job.state, None
        return [{"gone": f"its job has ended, {state}", "exit_code": 1}]

    def stop(self, at_once: bool) -> None:
        if self.job is not None:
            self.job.cancel(check=False)

    def close(self) -> None:
        """The jobs are the cluster's, and those that were to end have been told."""


class _Elsewhere:
    """A job of which nothing is known but the run that it writes."""

    state = "UNKNOWN"

    def __init__(self, run: Run) -> None:
        self.run = run

    def done(self) -> bool:
        return not self.run.in_use()

    def cancel(self, check: bool) -> None:
        """It goes on; whoever resumes the sweep finds it."""


def carry_out(task: Mapping[str, Any]) -> None:
    """What a job does: the task of a worker, told to nobody but the run directory."""
    from snnexp.sweeps import worker

    # submitit's sign that the time is nearly over; the run then has time to be saved
    signal.signal(signal.SIGUSR2, lambda number, frame: os.kill(os.getpid(), signal.SIGTERM))
    worker.execute(task, lambda event: None)
