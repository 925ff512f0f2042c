"""Kill a run between two steps, and resume it."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from snnexp import experiment
from snnexp.training.task import Task


class KilledError(BaseException):
    """Simulates the death of a process."""


def killed_and_resumed(cfg: DictConfig, step: int, parent: Path) -> Path:
    """Run a config below ``parent``, kill it before training step ``step``, resume it, and return its directory."""
    original, count = Task.training_step, iter(range(100))

    def die(self: Task, *arguments: Any) -> Any:
        if next(count) == step:
            raise KilledError
        return original(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Task, "training_step", die)
        with pytest.raises(KilledError):
            experiment.run(cfg, parent=parent)
    (path,) = parent.iterdir()
    experiment.resume(path)
    return path
