"""What runs, and the keys of overrides, are called."""

import re
import secrets
import time

CHECKPOINT_NAMES = ("last", "best", "init")
"""Checkpoints of a run, by what is typed."""
RUN_ID = re.compile(r"(\d{8}-\d{6})-[0-9a-f]{4}", re.ASCII)


def new_id() -> str:
    """A run id: local time to the second, and four random hexadecimal digits."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def key_of(override: str) -> str:
    """The key of an override, without the signs before it."""
    return override.partition("=")[0].lstrip("+~")
