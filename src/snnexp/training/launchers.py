"""Environment variables set by torchrun and srun; needs no torch."""

import os
from collections.abc import Mapping
from typing import Any

TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")
SRUN = ("SLURM_JOB_ID", "SLURM_PROCID")
GROUP_VARIABLES = ("RANK", "SLURM_STEP_NUM_TASKS", "TORCHELASTIC_USE_AGENT_STORE")
"""Variables that mark a process as one of several."""


def int_variable(name: str, default: int) -> int:
    """Return the integer value of a variable, or ``default`` if it is unset or not a number."""
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default


def started_by_torchrun() -> bool:
    """Return True if torchrun started this process."""
    return all(os.environ.get(name, "").isdecimal() for name in TORCHRUN) and "MASTER_ADDR" in os.environ


def started_by_srun() -> bool:
    """Return True if srun started this process as one of several tasks."""
    return int_variable("SLURM_STEP_NUM_TASKS", 1) > 1 and all(os.environ.get(name, "").isdecimal() for name in SRUN)


def rank() -> int:
    """Return the global rank of this process; 0 without torchrun and srun."""
    if started_by_torchrun():
        return int(os.environ["RANK"])
    return int(os.environ["SLURM_PROCID"]) if started_by_srun() else 0


def clear_rank_variables() -> None:
    """Unset the variables of torchrun and srun, so that a run starts its own processes."""
    for name in GROUP_VARIABLES:
        os.environ.pop(name, None)


def is_distributed(trainer: Mapping[str, Any]) -> bool:
    """Return True if a trainer config uses several processes that share each batch."""
    return bool(trainer.get("strategy") == "ddp" or trainer.get("devices", 1) > 1)
