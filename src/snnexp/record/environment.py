"""What a run was made with: versions and commit."""

import os
from typing import Any

from snnexp.text import one_line

GIT_S = 10
"""How long git may take."""
PACKAGES = ("snnexp", "torch", "lightning", "hydra-core", "omegaconf", "tensorboard", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what a run computes."""
    import platform
    from importlib import metadata

    return {"python": platform.python_version(), **{package: metadata.version(package) for package in PACKAGES}}


def git() -> dict[str, Any] | None:
    """Commit of the working directory's repository, and whether files that it tracks have changed; None outside of one.

    A repository that cannot be asked, such as one of another owner, gives the ``reason``; nothing here ends a run.
    """
    import subprocess

    # the index stays as it is, and no file watcher that a repository names is run
    ask = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false"]
    answers, plain = [], {**os.environ, "LC_ALL": "C"}
    for what in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        try:
            done = subprocess.run([*ask, *what], capture_output=True, timeout=GIT_S, env=plain)
        except (OSError, subprocess.TimeoutExpired) as error:
            return None if isinstance(error, FileNotFoundError) else {"reason": f"git: {error}"}
        if done.returncode:
            reason = one_line(done.stderr.decode(errors="replace"))
            return None if "not a git repository" in reason else {"reason": reason}
        answers.append(done.stdout.decode(errors="replace").strip())
    commit, changes = answers
    return {"commit": commit, "dirty": bool(changes)}
