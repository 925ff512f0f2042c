"""Entry point of a process of rank 1 or higher: ``python -m snnexp.training.rank RUN``, started by rank 0."""

import os
import signal
import sys
from pathlib import Path

from snnexp.errors import ConfigError, SnnexpError, termination_signals
from snnexp.record.run import Run
from snnexp.text import truncate


def main(folder: Path) -> int:
    """Train and test together with rank 0, which holds the lock and reports; return the exit code."""
    first = os.getppid()
    for number in termination_signals():
        # default signal handlers until there is something to save
        signal.signal(number, signal.SIG_DFL)
    try:
        if Run(folder).writer_pid() != first:
            raise ConfigError(f"{folder}: is not locked by the process that started this one")
        from snnexp.training import execute

        execute.follow(folder, first)
    except SnnexpError as error:
        message = "".join(f"snnexp: {truncate(text)}\n" for text in error.args)
        sys.stderr.write(getattr(error, "frames", "") + message)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
