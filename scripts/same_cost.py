"""Compare CPU time and peak memory of a recipe between an earlier commit and this checkout, in alternating runs.

    scripts/same_cost.py REF [RECIPE] [ROUNDS]     by default mnist_leaky, five rounds

Each run is a whole command on one thread; medians are compared. The exit code is 1 if CPU time exceeds 1.03 times that
of REF, or peak memory 1.05 times; run it on an idle machine.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from same_bits import RECIPES, ROOT, Side, worktree

MAX_RATIO = {"cpu_s": 1.03, "peak_mb": 1.05}


def cost(side: Side, recipe: str) -> dict[str, float]:
    """Return the CPU seconds and peak memory of one run."""
    process = side.start(recipe, "train", *side.words(recipe))
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{recipe} in {side.root} ended with {os.waitstatus_to_exitcode(status)}\n{output}")
    return {"cpu_s": used.ru_utime + used.ru_stime, "peak_mb": used.ru_maxrss / 1024}


def main(commit: str, recipe: str = "mnist_leaky", rounds: str = "5") -> int:
    """Print both medians and their ratio."""
    assert recipe in RECIPES
    ref = subprocess.run(["git", "rev-parse", commit], cwd=ROOT, check=True, capture_output=True, text=True)
    with tempfile.TemporaryDirectory() as folder, worktree(ref.stdout.strip()) as before:
        sides = [Side(root, Path(folder, name)) for name, root in (("before", before), ("now", ROOT))]
        costs = [[cost(side, recipe) for side in sides] for _ in range(int(rounds))]
    worse = False
    for name, limit in MAX_RATIO.items():
        one, other = (statistics.median(each[side][name] for each in costs) for side in (0, 1))
        print(f"{recipe}  {name}  {one:.2f} -> {other:.2f}  ratio {other / one:.3f}, at most {limit}")
        worse |= other / one > limit
    return int(worse)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
