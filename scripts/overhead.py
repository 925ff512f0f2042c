"""What the machinery of a sweep costs per point, beyond the runs themselves.

    scripts/overhead.py [--points 16] [--times 3] [--experiment regression_sqrt]

Sweeps of n and of 2n seeds by one worker process, and as one stack; wall clock of the whole command, less what the runs
say they took (``wall_s.total`` in run.json). The difference between the two sizes, over n, is what a point costs:
start and imports fall out. Medians; one thread.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LAUNCHERS = {
    "warm worker": ["hydra/launcher=processes", "hydra.launcher.workers=1", "hydra.launcher.threads=1"],
    "stacked": ["hydra/launcher=stacked", "hydra.launcher.threads=1"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=16)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--experiment", default="regression_sqrt")
    parser.add_argument("override", nargs="*", help="of every point")
    asked = parser.parse_args()
    print("| launcher | points | run, ms per point | machinery, ms per point |")
    print("|---|---|---|---|")
    typed = [f"experiment={asked.experiment}", "trainer=cpu", *asked.override]
    for name, launcher in LAUNCHERS.items():
        costs, runs = [], []
        for _ in range(asked.times):
            few, many = (sweep([*typed, *launcher], count) for count in (asked.points, 2 * asked.points))
            costs.append((many[0] - many[1] - few[0] + few[1]) / asked.points)
            runs.append(many[1] / (2 * asked.points))
        cost, run = statistics.median(costs) * 1000, statistics.median(runs) * 1000
        spread = f"{min(costs) * 1000:.0f} to {max(costs) * 1000:.0f}"
        print(f"| {name} | {asked.points}, {2 * asked.points} | {run:.0f} | {cost:.0f} ({spread}) |", flush=True)


def sweep(typed: list[str], points: int) -> tuple[float, float]:
    """Seconds of a whole sweep, and of its runs as they say themselves."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        command = [sys.executable, "-m", "snnexp.cli", "train", *typed, "-m", f"seed=range({points})"]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        took = time.perf_counter() - began
        records = [json.loads(path.read_text()) for path in Path(folder).glob("outputs/sweeps/*/*/runs/*/run.json")]
        assert len(records) == points
        return took, sum(record["wall_s"]["total"] for record in records)


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    main()
