"""Measure the overhead of a sweep per point, beyond the runs themselves.

    scripts/overhead.py [--points 16] [--times 3] [--experiment regression_sqrt] [OVERRIDE ...]

Sweeps over seeds run as whole commands, with one warm worker process or as one stack. The overhead is the time from
the start of the first point to the last update of the ledger, by modification times, minus the time of the runs
(``wall_s.total`` in run.json), divided by the number of points; plus the time to compose and check a point, measured in
this process. Medians with minimum and maximum; one thread.
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
    parser.add_argument("override", nargs="*", help="applied to every point")
    args = parser.parse_args()
    overrides = [f"experiment={args.experiment}", "trainer=cpu", *args.override]
    print("| launcher | points | run, ms per point | overhead, ms per point | of which composing, ms |")
    print("|---|---|---|---|---|")
    results: dict[str, list[tuple[float, float, float]]] = {name: [] for name in LAUNCHERS}
    for _ in range(args.times):
        for name, launcher in LAUNCHERS.items():
            seconds = sweep([*overrides, *launcher], args.points)
            results[name].append((*seconds, time_composition(overrides, args.points)))
    for name, times in results.items():
        run, overhead, compose = ([1000 * value for value in column] for column in zip(*times, strict=True))
        whole = [a + b for a, b in zip(overhead, compose, strict=True)]
        spread = f"{statistics.median(whole):.0f} ({min(whole):.0f} to {max(whole):.0f})"
        print(
            f"| {name} | {args.points} | {statistics.median(run):.0f} | {spread} | {statistics.median(compose):.0f} |"
        )


def sweep(overrides: list[str], points: int) -> tuple[float, float]:
    """Return the seconds per point of the runs, as they record them, and of the overhead."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "snnexp.cli", "train", *overrides, "-m", f"seed=range({points})"]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        (ledger,) = Path(folder).glob("outputs/sweeps/*/*/sweep.json")
        records = {path.parent: json.loads(path.read_text()) for path in ledger.parent.glob("runs/*/run.json")}
        assert len(records) == points
        began, first = min(((run / "overrides.yaml").stat().st_mtime, run) for run in records)
        wall = records[first]["wall_s"]
        # members of a stack are built together, and each records its share
        began -= wall["build"] * records[first].get("stack", {"members": 1})["members"]
        runs = sum(record["wall_s"]["total"] for record in records.values())
        return runs / points, (ledger.stat().st_mtime - began - runs) / points


def time_composition(overrides: list[str], points: int) -> float:
    """Return the seconds to compose and check a point."""
    began = time.perf_counter()
    for cfg in config.compose_points([[*overrides, f"seed={seed}"] for seed in range(points)]):
        config.check(cfg)
    return (time.perf_counter() - began) / points


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    main()
