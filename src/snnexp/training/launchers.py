"""What torchrun and srun tell the processes that they start, in variables that anyone may have set; needs no torch."""

import os
from collections.abc import Mapping
from typing import Any

TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")
SRUN = ("SLURM_JOB_ID", "SLURM_PROCID")
GROUP_VARIABLES = ("RANK", "SLURM_STEP_NUM_TASKS", "TORCHELASTIC_USE_AGENT_STORE")
"""Variables without which a process has been started by nobody who started others with it."""


def number(name: str, usual: int) -> int:
    """What a variable says, or ``usual`` where it says no number."""
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else usual


def started_by_torchrun() -> bool:
    """Whether torchrun has started this process."""
    return all(os.environ.get(name, "").isdecimal() for name in TORCHRUN) and "MASTER_ADDR" in os.environ


def started_by_srun() -> bool:
    """Whether srun has started this process with others."""
    return number("SLURM_STEP_NUM_TASKS", 1) > 1 and all(os.environ.get(name, "").isdecimal() for name in SRUN)


def rank() -> int:
    """The place of this process among those that were started with it, from 0."""
    if started_by_torchrun():
        return int(os.environ["RANK"])
    return int(os.environ["SLURM_PROCID"]) if started_by_srun() else 0


def clear_rank_variables() -> None:
    """Let runs start their own processes here, whoever has started this one with others."""
    for name in GROUP_VARIABLES:
        os.environ.pop(name, None)


def is_distributed(trainer: Mapping[str, Any]) -> bool:
    """Whether the settings of a trainer ask for processes that share each batch."""
    return bool(trainer.get("strategy") == "ddp" or trainer.get("devices", 1) > 1)
