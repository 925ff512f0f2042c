"""Run ids, names of checkpoints, and keys of overrides."""

import re
import secrets
import time

CHECKPOINT_NAMES = ("last", "best", "init")
"""Checkpoints of a run that can be selected by name."""
RUN_ID = re.compile(r"(\d{8}-\d{6})-[0-9a-f]{4}", re.ASCII)


def new_id() -> str:
    """Return a new run id: local time to the second, and four random hexadecimal digits."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def key_of(override: str) -> str:
    """Return the key of an override, without the prefix ``+``, ``++`` or ``~``."""
    return override.partition("=")[0].lstrip("+~")
