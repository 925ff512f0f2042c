"""DDP processes, which share each batch: launching, and passing the run directory to all ranks.

Rank 0 creates the run directory and is the only one to write to it. Either it starts the others, as
``python -m snnexp.training.rank RUN``, or torchrun or srun starts all processes, and rank 0 sends the directory to the
others through a store. Lightning gets ranks and addresses from :class:`ProcessEnvironment`, not from
environment variables, which may be stale.
"""

import functools
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments import SLURMEnvironment  # type: ignore[attr-defined]
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import ClusterEnvironment  # type: ignore[attr-defined]
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import DictConfig
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from snnexp.errors import ConfigError, InterruptedRunError, LostProcessError, describe_failure
from snnexp.record.run import Run
from snnexp.training import launchers

RENDEZVOUS_TIMEOUT = timedelta(minutes=5)
"""Timeout for processes started by torchrun or srun to find each other."""
ACKNOWLEDGE_TIMEOUT_S = 2.0
"""Timeout for the other processes to acknowledge that the run does not start."""


class ProcessEnvironment(ClusterEnvironment):
    """The rank of this process, and the rendezvous address.

    Args:
        processes: world size.
        rank: global rank.
        address: host of rank 0.
        port: port of rank 0; 0 if not chosen yet.
        external: True if torchrun or srun started all processes.
        nodes: number of machines.
    """

    def __init__(
        self,
        processes: int,
        rank: int = 0,
        address: str = "127.0.0.1",
        port: int = 0,
        external: bool = False,
        nodes: int = 1,
    ) -> None:
        self.processes, self.rank, self.address, self.port = processes, rank, address, port
        self.external, self.nodes = external, nodes

    @classmethod
    def from_variables(cls, processes: int) -> "ProcessEnvironment":
        """Return the environment of this process; without torchrun and srun, rank 0 of ``processes``."""
        variables, int_variable, rank = os.environ, launchers.int_variable, launchers.rank()
        if launchers.started_by_torchrun():
            count, port = int(variables["WORLD_SIZE"]), int(variables["MASTER_PORT"])
            nodes = count // max(1, int_variable("LOCAL_WORLD_SIZE", count))
            return cls(count, rank, variables["MASTER_ADDR"], port, True, nodes)
        if launchers.started_by_srun():
            first = SLURMEnvironment.resolve_root_node_address(variables.get("SLURM_STEP_NODELIST", "127.0.0.1"))
            # steps of one job may run at the same time
            own = 31 * int(variables["SLURM_JOB_ID"]) + int_variable("SLURM_STEP_ID", 0)
            address, port = variables.get("MASTER_ADDR", first), int_variable("MASTER_PORT", 15000 + own % 10000)
            count, nodes = int(variables["SLURM_STEP_NUM_TASKS"]), int_variable("SLURM_STEP_NUM_NODES", 1)
            return cls(count, rank, address, port, True, nodes)
        return cls(processes)

    def require(self, processes: int) -> None:
        """Raise :class:`ConfigError` unless there are ``processes`` processes on one machine."""
        if self.nodes > 1:
            raise ConfigError(f"trainer.devices: the processes are on {self.nodes} machines, must be on one")
        if self.processes != processes:
            raise ConfigError(
                f"trainer.devices: got {processes}, but torchrun or srun has started {self.processes} processes"
            )

    @property
    def creates_processes_externally(self) -> bool:
        return self.external

    @property
    def main_address(self) -> str:
        return self.address

    @property
    def main_port(self) -> int:
        return self.port

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self.processes

    def set_world_size(self, size: int) -> None:
        """Do nothing: the value is already known."""

    def global_rank(self) -> int:
        return self.rank

    def set_global_rank(self, rank: int) -> None:
        """Do nothing: the value is already known."""

    def local_rank(self) -> int:
        return self.rank

    def node_rank(self) -> int:
        return 0


class Launcher:
    """Start the other processes of a run before this one trains, unless torchrun or srun did."""

    is_interactive_compatible = True

    def __init__(self, cluster: ProcessEnvironment) -> None:
        self.cluster = cluster
        self.run: Run | None = None
        self.others: list[subprocess.Popen[bytes]] = []
        """The processes started by this one."""
        self.store: Store | None = None
        """Listens at the port passed to the others; PyTorch's process group shares it."""

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Trainer | None = None, **kwargs: Any) -> Any:
        if not self.cluster.external and self.store is None:
            self._start()
        return function(*args, **kwargs)

    def kill(self, signum: int) -> None:
        """Do nothing: the run terminates them after it has been recorded."""

    def _start(self) -> None:
        if self.run is None and self.cluster.processes > 1:
            raise ConfigError("trainer: only a run starts processes; use snnexp.experiment.run, or torchrun")
        self.store = store = TCPStore(
            self.cluster.address, 0, self.cluster.processes, is_master=True, wait_for_workers=False, multi_tenant=True
        )
        self.cluster.port = store.port
        for rank in range(1, self.cluster.processes):
            assert self.run is not None
            self.others.append(_start_process(self.run, self.cluster, rank))


def _start_process(run: Run, cluster: ProcessEnvironment, rank: int) -> subprocess.Popen[bytes]:
    variables = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(cluster.processes),
        "LOCAL_WORLD_SIZE": str(cluster.processes),
        "MASTER_ADDR": cluster.address,
        "MASTER_PORT": str(cluster.port),
        # the same import path as this process
        "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)),
        "PYTHONSAFEPATH": "1",
    }
    if sys.dont_write_bytecode:
        variables["PYTHONDONTWRITEBYTECODE"] = "1"
    # silences a warning about find_unused_parameters in every process
    environment = {"TORCH_CPP_LOG_LEVEL": "ERROR", **os.environ, **variables}
    command = [sys.executable, "-m", "snnexp.training.rank", str(run.path.absolute())]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment)


class Ddp(DDPStrategy):
    """Lightning's DDP strategy with a :class:`Launcher`."""

    def __init__(self, cluster: ProcessEnvironment, **settings: Any) -> None:
        super().__init__(**settings)
        self.run_launcher = Launcher(cluster)

    @property
    def launcher(self) -> Launcher:  # type: ignore[override]
        return self.run_launcher


class PeerProcesses:
    """The other processes of a run; they are notified if this one ends before the run begins."""

    def __init__(self) -> None:
        self.store: Store | None = None
        """Used by rank 0 to send the run directory to processes started by torchrun or srun."""

    def __enter__(self) -> "PeerProcesses":
        return self

    def wait_for_run(self, cfg: DictConfig) -> Path | None:
        """Return the run directory on ranks above 0 started by torchrun or srun, else None.

        Raises:
            ConfigError: the number of processes differs from ``trainer.devices``.
            LostProcessError: the processes do not find each other.
        """
        processes = cfg.trainer.get("devices", 1)
        if (
            not launchers.is_distributed(cfg.trainer)
            or not (cluster := ProcessEnvironment.from_variables(processes)).external
        ):
            return None
        try:
            store = _store(cluster.address, cluster.port, cluster.rank, cluster.processes)
        except torch.distributed.DistError as error:
            where = f"{cluster.address}:{cluster.port}"
            raise LostProcessError(f"the {cluster.processes} processes of the run cannot connect at {where}") from error
        self.key = f"snnexp/{next(_runs)}"
        if cluster.rank:
            return _receive_run(store, self.key)
        self.store, self.count = store, cluster.processes - 1
        cluster.require(processes)
        return None

    def announce(self, trainer: Trainer, run: Run) -> None:
        """Pass the run to the other processes: those already waiting, and those still to be started."""
        if isinstance(trainer.strategy, Ddp):
            trainer.strategy.run_launcher.run = run
        if self.store is not None:
            self.store.set(self.key, str(run.path.absolute()))
            self.store = None

    def __exit__(self, kind: object, error: BaseException | None, frames: object) -> None:
        if self.store is None:
            return
        self.store.set(self.key, str(0 if error is None else describe_failure(error)[2]))
        # the store ends with this process
        end = time.monotonic() + ACKNOWLEDGE_TIMEOUT_S
        while self.store.add(_acknowledgement(self.key), 0) < self.count and time.monotonic() < end:
            time.sleep(0.02)


_runs = itertools.count()


@functools.cache
def _store(address: str, port: int, rank: int, processes: int) -> Store:
    """Return the store shared by all runs of these processes, once all have joined."""
    url = f"tcp://{address}:{port}"
    store: Store = next(rendezvous(url, rank, processes, timeout=RENDEZVOUS_TIMEOUT))[0]
    return store


def _receive_run(store: Store, key: str) -> Path:
    """Return the run directory sent by rank 0, or exit with its exit code; rank 0 reports the reason."""
    try:
        # store.wait would block signal handlers
        while not store.check([key]):
            time.sleep(0.05)
        message = store.get(key).decode()
        store.add(_acknowledgement(key), 1)
    except torch.distributed.DistError as error:
        raise SystemExit(LostProcessError.exit_code) from error
    except InterruptedRunError as error:
        raise SystemExit(error.exit_code) from error
    if message.isdecimal():
        raise SystemExit(int(message))
    return Path(message)


def _acknowledgement(key: str) -> str:
    return f"{key}/acknowledged"


def require_others(trainer: Trainer, error: Exception) -> None:
    """Raise :class:`LostProcessError` for a lost connection to a process started by torchrun or srun."""
    strategy = trainer.strategy
    external = isinstance(strategy, Ddp) and strategy.run_launcher.cluster.external
    if trainer.is_global_zero and external and "onnection" in str(error):
        raise LostProcessError("another process of the run has ended, and the run with it") from error


def require_ddp_strategy(trainer: Trainer) -> None:
    """Raise :class:`ConfigError` for a trainer of several processes without the :class:`Ddp` strategy."""
    if trainer.world_size > 1 and not isinstance(trainer.strategy, Ddp):
        raise ConfigError("trainer: several processes need the strategy of snnexp.training.assembly.make_trainer")
