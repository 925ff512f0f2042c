"""What the machinery of a sweep costs per point, beyond the runs themselves.

    scripts/overhead.py [--points 16] [--times 3] [--experiment regression_sqrt] [OVERRIDE ...]

Seeds by one warm worker process, and as one stack, as whole commands. From when the first point began, by the times of
the files of its run, to the last ledger, less what the runs say that they took (``wall_s.total`` in run.json), divided
by the points; and what it takes to compose and check a point, in this process. Medians, with the lowest and the
highest; one thread.
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

from snnexp import config

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
    typed = [f"experiment={asked.experiment}", "trainer=cpu", *asked.override]
    print("| launcher | points | run, ms per point | machinery, ms per point | of it to compose, ms |")
    print("|---|---|---|---|---|")
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in LAUNCHERS}
    for _ in range(asked.times):
        for name, launcher in LAUNCHERS.items():
            found[name].append((*sweep([*typed, *launcher], asked.points), composing(typed, asked.points)))
    for name, times in found.items():
        run, machinery, compose = ([1000 * value for value in column] for column in zip(*times, strict=True))
        whole = [a + b for a, b in zip(machinery, compose, strict=True)]
        spread = f"{statistics.median(whole):.0f} ({min(whole):.0f} to {max(whole):.0f})"
        print(
            f"| {name} | {asked.points} | {statistics.median(run):.0f} | {spread} | {statistics.median(compose):.0f} |"
        )


def sweep(typed: list[str], points: int) -> tuple[float, float]:
    """Seconds per point of the runs, as they say themselves, and beyond them."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "snnexp.cli", "train", *typed, "-m", f"seed=range({points})"]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        (ledger,) = Path(folder).glob("outputs/sweeps/*/*/sweep.json")
        records = {path.parent: json.loads(path.read_text()) for path in ledger.parent.glob("runs/*/run.json")}
        assert len(records) == points
        began, first = min(((run / "overrides.yaml").stat().st_mtime, run) for run in records)
        wall = records[first]["wall_s"]
        # members of a stack are built together, and each tells its share
        began -= wall["build"] * records[first].get("stack", {"members": 1})["members"]
        runs = sum(record["wall_s"]["total"] for record in records.values())
        return runs / points, (ledger.stat().st_mtime - began - runs) / points


def composing(typed: list[str], points: int) -> float:
    """Seconds to compose and to check a point."""
    began = time.perf_counter()
    for cfg in config.compose_points([[*typed, f"seed={seed}"] for seed in range(points)]):
        config.check(cfg)
    return (time.perf_counter() - began) / points


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    main()
