"""The processes of ddp, which share each batch of a run: who starts them, and how they find the run.

The first one makes the run directory and writes to it alone. It starts the others, each as
``python -m snnexp.training.rank RUN``, or torchrun or srun has started all of them, and the first one tells the others
the directory. Lightning gets the ranks and
addresses from :class:`ProcessEnvironment`, not from environment variables that anyone may have set.
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
"""What processes that another program has started may take to find each other."""
ACKNOWLEDGE_TIMEOUT_S = 2.0
"""What the others may take to hear that there is nothing to do for them."""


class ProcessEnvironment(ClusterEnvironment):
    """Which of the processes of a run this one is, and where they meet.

    Args:
        processes: how many there are.
        rank: from 0.
        address: of the first one's machine.
        port: where it listens; 0 if that is not decided yet.
        external: whether they have all been started already.
        nodes: on how many machines.
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
    def here(cls, processes: int) -> "ProcessEnvironment":
        """That of this process; the first of ``processes`` where nobody has started others with it."""
        told, number, rank = os.environ, launchers.number, launchers.rank()
        if launchers.started_by_torchrun():
            count, port = int(told["WORLD_SIZE"]), int(told["MASTER_PORT"])
            nodes = count // max(1, number("LOCAL_WORLD_SIZE", count))
            return cls(count, rank, told["MASTER_ADDR"], port, True, nodes)
        if launchers.started_by_srun():
            first = SLURMEnvironment.resolve_root_node_address(told.get("SLURM_STEP_NODELIST", "127.0.0.1"))
            # steps of one job may run beside each other
            own = 31 * int(told["SLURM_JOB_ID"]) + number("SLURM_STEP_ID", 0)
            address, port = told.get("MASTER_ADDR", first), number("MASTER_PORT", 15000 + own % 10000)
            count, nodes = int(told["SLURM_STEP_NUM_TASKS"]), number("SLURM_STEP_NUM_NODES", 1)
            return cls(count, rank, address, port, True, nodes)
        return cls(processes)

    def require(self, processes: int) -> None:
        """Raise :class:`ConfigError` where a run of ``processes`` cannot be shared by those that there are."""
        if self.nodes > 1:
            raise ConfigError(f"trainer.devices: the processes are on {self.nodes} machines, and a run takes one")
        if self.processes != processes:
            raise ConfigError(
                f"trainer.devices: got {processes}, and torchrun or srun has started {self.processes} processes"
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
        """It is known."""

    def global_rank(self) -> int:
        return self.rank

    def set_global_rank(self, rank: int) -> None:
        """It is known."""

    def local_rank(self) -> int:
        return self.rank

    def node_rank(self) -> int:
        return 0


class Launcher:
    """Starts the other processes of a run before this one trains, where nobody has started them already."""

    is_interactive_compatible = True

    def __init__(self, place: ProcessEnvironment) -> None:
        self.place = place
        self.run: Run | None = None
        self.others: list[subprocess.Popen[bytes]] = []
        """The processes that have been started."""
        self.store: Store | None = None
        """Listens at the port that the others are told; PyTorch's own store joins it there."""

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Trainer | None = None, **kwargs: Any) -> Any:
        if not self.place.external and self.store is None:
            self._start()
        return function(*args, **kwargs)

    def kill(self, signum: int) -> None:
        """The run ends them, when it has been recorded."""

    def _start(self) -> None:
        if self.run is None and self.place.processes > 1:
            raise ConfigError("trainer: only a run starts processes; use snnexp.experiment.run, or torchrun")
        self.store = store = TCPStore(
            self.place.address, 0, self.place.processes, is_master=True, wait_for_workers=False, multi_tenant=True
        )
        self.place.port = store.port
        for rank in range(1, self.place.processes):
            assert self.run is not None
            self.others.append(_started(self.run, self.place, rank))


def _started(run: Run, place: ProcessEnvironment, rank: int) -> subprocess.Popen[bytes]:
    told = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(place.processes),
        "LOCAL_WORLD_SIZE": str(place.processes),
        "MASTER_ADDR": place.address,
        "MASTER_PORT": str(place.port),
        # modules are found where this process finds them
        "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)),
        "PYTHONSAFEPATH": "1",
    }
    if sys.dont_write_bytecode:
        told["PYTHONDONTWRITEBYTECODE"] = "1"
    # of gradients that are not missing this time, each process would warn
    environment = {"TORCH_CPP_LOG_LEVEL": "ERROR", **os.environ, **told}
    command = [sys.executable, "-m", "snnexp.training.rank", str(run.path.absolute())]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment)


class Ddp(DDPStrategy):
    """Lightning's, with a launcher that knows the run."""

    def __init__(self, place: ProcessEnvironment, **settings: Any) -> None:
        super().__init__(**settings)
        self.starter = Launcher(place)

    @property
    def launcher(self) -> Launcher:  # type: ignore[override]
        return self.starter


class PeerProcesses:
    """The other processes of a run, as the verbs see them; they hear of the end of a verb that leaves without them."""

    def __init__(self) -> None:
        self.store: Store | None = None
        """Where the first of several processes, which another program has started, tells the run."""

    def __enter__(self) -> "PeerProcesses":
        return self

    def wait_for_run(self, cfg: DictConfig) -> Path | None:
        """The directory of the run if this process has to follow the first one in it, which makes it; else None.

        Raises:
            ConfigError: there are other processes than the run needs.
            LostProcessError: they do not find each other.
        """
        processes = cfg.trainer.get("devices", 1)
        if not launchers.is_distributed(cfg.trainer) or not (place := ProcessEnvironment.here(processes)).external:
            return None
        try:
            store = _store(place.address, place.port, place.rank, place.processes)
        except torch.distributed.DistError as error:
            where = f"{place.address}:{place.port}"
            raise LostProcessError(f"the {place.processes} processes of the run do not meet at {where}") from error
        self.key = f"snnexp/{next(_runs)}"
        if place.rank:
            return _receive_run(store, self.key)
        self.store, self.count = store, place.processes - 1
        place.require(processes)
        return None

    def lead(self, trainer: Trainer, run: Run) -> None:
        """Let the others find the run: those that are there, and those that Lightning is going to have started."""
        if isinstance(trainer.strategy, Ddp):
            trainer.strategy.starter.run = run
        if self.store is not None:
            self.store.set(self.key, str(run.path.absolute()))
            self.store = None

    def __exit__(self, kind: object, error: BaseException | None, frames: object) -> None:
        if self.store is None:
            return
        self.store.set(self.key, str(0 if error is None else describe_failure(error)[2]))
        # the store may end with this process
        end = time.monotonic() + ACKNOWLEDGE_TIMEOUT_S
        while self.store.add(_acknowledgement(self.key), 0) < self.count and time.monotonic() < end:
            time.sleep(0.02)


_runs = itertools.count()


@functools.cache
def _store(address: str, port: int, rank: int, processes: int) -> Store:
    """One for all runs of these processes; returns when all are there."""
    url = f"tcp://{address}:{port}"
    store: Store = next(rendezvous(url, rank, processes, timeout=RENDEZVOUS_TIMEOUT))[0]
    return store


def _receive_run(store: Store, key: str) -> Path:
    """What the first process tells; this one ends with it, and leaves it to tell why."""
    try:
        # not in one call, in which no signal would be handled
        while not store.check([key]):
            time.sleep(0.05)
        told = store.get(key).decode()
        store.add(_acknowledgement(key), 1)
    except torch.distributed.DistError as error:
        raise SystemExit(LostProcessError.exit_code) from error
    except InterruptedRunError as error:
        raise SystemExit(error.exit_code) from error
    if told.isdecimal():
        raise SystemExit(int(told))
    return Path(told)


def _acknowledgement(key: str) -> str:
    return f"{key}/heard"


def require_others(trainer: Trainer, error: Exception) -> None:
    """Raise :class:`LostProcessError` for what PyTorch says where another process is gone that nobody here started."""
    strategy = trainer.strategy
    external = isinstance(strategy, Ddp) and strategy.starter.place.external
    if trainer.is_global_zero and external and "onnection" in str(error):
        raise LostProcessError("another process of the run has ended, and the run with it") from error


def require_ddp_strategy(trainer: Trainer) -> None:
    """Raise :class:`ConfigError` for a trainer that would start processes which do not know the run."""
    if trainer.world_size > 1 and not isinstance(trainer.strategy, Ddp):
        raise ConfigError("trainer: several processes are shared by snnexp.training.assembly.make_trainer alone")
