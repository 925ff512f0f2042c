"""The software environment of a run: package versions and git commit."""

import os
from typing import Any

from snnexp.text import one_line

GIT_S = 10
"""Timeout of a git command in seconds."""
PACKAGES = ("snnexp", "torch", "lightning", "hydra-core", "omegaconf", "tensorboard", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect the results of a run."""
    import platform
    from importlib import metadata

    return {"python": platform.python_version(), **{package: metadata.version(package) for package in PACKAGES}}


def git() -> dict[str, Any] | None:
    """Return ``commit`` and ``dirty`` of the repository of the working directory, or None outside a repository.

    If git fails, such as in a repository of another user, the result is the ``reason``. Never raises.
    """
    import subprocess

    # do not write the index, nor run a file system monitor configured by the repository
    command = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false"]
    outputs, environment = [], {**os.environ, "LC_ALL": "C"}
    for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        try:
            done = subprocess.run([*command, *arguments], capture_output=True, timeout=GIT_S, env=environment)
        except (OSError, subprocess.TimeoutExpired) as error:
            return None if isinstance(error, FileNotFoundError) else {"reason": f"git: {error}"}
        if done.returncode:
            reason = one_line(done.stderr.decode(errors="replace"))
            return None if "not a git repository" in reason else {"reason": reason}
        outputs.append(done.stdout.decode(errors="replace").strip())
    commit, changes = outputs
    return {"commit": commit, "dirty": bool(changes)}
