"""The launchers and sweepers of snnexp as Hydra wants them; ``snnexp.cli.train`` and ``snnexp.sweeps`` do the work.

Hydra imports this file whenever it starts, so that it imports nothing itself.
"""

from collections.abc import Sequence
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class _Launcher(Launcher):
    kind = ""

    def __init__(self, **settings: Any) -> None:
        self.settings = {"kind": self.kind, **settings}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.jobs: Any = task_function
        self.folder = str(config.hydra.sweep.dir)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        # which points there are is known there
        self.jobs.sweep(self.folder, self.settings)
        return []


class Processes(_Launcher):
    """Points in processes of their own, several at a time."""

    kind = "processes"


class Stacked(_Launcher):
    """Points that differ in numbers alone are trained as one model."""

    kind = "stacked"


class Slurm(_Launcher):
    """Points as jobs of a cluster."""

    kind = "slurm"


class Grid(Sweeper):
    """All combinations of the values that were listed."""

    def __init__(self, **settings: Any) -> None:
        """What the settings ask for has been found before Hydra starts."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.launcher: Any = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        self.launcher.launch([], 0)


class Optuna(Grid):
    """Points that a study of Optuna chooses."""
