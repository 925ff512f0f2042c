"""Run the commands of the documentation verbatim, including slow ones, and print the time of each.

make docs-commands ARGS="docs/sweeps.md"
"""

import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import docs


def main(pages: list[str]) -> None:
    for page in pages or docs.PAGES:
        with tempfile.TemporaryDirectory() as name:
            os.chdir(name)
            sys.path.insert(0, name)
            reader = docs.Reader(Path(name), whole=True)
            for step in docs.steps(docs.PAGES[page].read_text()):
                began = time.perf_counter()
                reader.take(step)
                if isinstance(step, docs.Command):
                    print(f"{page}  {time.perf_counter() - began:6.1f} s  {step}", flush=True)
            sys.path.remove(name)
            os.chdir("/")


if __name__ == "__main__":
    if unknown := {*sys.argv[1:]} - {*docs.PAGES}:
        raise SystemExit(f"docs_commands.py: no such page: {', '.join(sorted(unknown))}")
    main(sys.argv[1:])
