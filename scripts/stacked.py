"""Measure the throughput of stacked training: seconds per point for stacks, sequential runs, and one process per point.

python scripts/stacked.py [--members 1 4 16 32 64] [--rounds 3] [--device cpu] [--logger jsonl] [RECIPE ...]

A point is a whole run: built, trained, saved, tested and recorded, with its own seed; MNIST is read from
$SNNEXP_DATA_DIR and trains on the first 50 batches. Sequential means `experiment.run` in a loop, excluding imports; a
process is a complete `snnexp train`. The methods alternate, and medians over the rounds are printed as a table. One
thread unless OMP_NUM_THREADS is set. Without figures and TensorBoard, which take the same time for every method;
--logger tensorboard enables both.
"""

import argparse
import contextlib
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from snnexp.experiment import compose, run
from snnexp.training.stacked import Outcome, Point, train

RECIPES = {"regression_sqrt": [], "mnist_rleaky_count": ["trainer.max_epochs=1", "trainer.limit_batches=50"]}
SEQUENTIAL_RUNS = 2
"""Number of sequential runs to average."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=[*RECIPES], metavar="RECIPE")
    parser.add_argument("--members", type=int, nargs="+", default=[1, 4, 16, 32, 64])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--logger", default="jsonl")
    args = parser.parse_args()
    trainer = {"cpu": "cpu", "cuda": "gpu"}[args.device]
    for recipe in args.recipes:
        common = [f"experiment={recipe}", f"trainer={trainer}", f"logger={args.logger}", *RECIPES.get(recipe, [])]
        with tempfile.TemporaryDirectory() as folder:
            table(recipe, common, args.members, args.rounds, Path(folder))


def table(recipe: str, common: list[str], sizes: list[int], rounds: int, folder: Path) -> None:
    methods: dict[str, Callable[[], float]] = {
        "one process per point": lambda: process(common, folder),
        "sequential": lambda: sequential(common, folder),
        **{f"{size} members": lambda size=size: stack(common, size, folder) for size in sizes},
    }
    # warm up
    sequential(common, folder)
    stack(common, 2, folder)
    took: dict[str, list[float]] = {method: [] for method in methods}
    for _ in range(rounds):
        for method, measure in methods.items():
            took[method].append(measure())
    medians = {method: statistics.median(seconds) for method, seconds in took.items()}
    print(f"\n| {recipe} | s per point | sequential / this | processes / this |\n|---|---|---|---|")
    for method, seconds in medians.items():
        ratios = [medians[other] / seconds for other in ("sequential", "one process per point")]
        print(f"| {method} | {seconds:.3f} | {ratios[0]:.1f} | {ratios[1]:.1f} |")
    sys.stdout.flush()


def process(common: list[str], folder: Path) -> float:
    began = time.perf_counter()
    command = [sys.executable, "-m", "snnexp.cli", "train", *common, f"logger.root={folder}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def sequential(common: list[str], folder: Path) -> float:
    configs = [compose([*common, f"seed={seed}"]) for seed in range(SEQUENTIAL_RUNS)]
    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        for cfg in configs:
            run(cfg, [], folder)
    return (time.perf_counter() - began) / len(configs)


def stack(common: list[str], size: int, folder: Path) -> float:
    members = [Point(compose([*common, f"seed={seed}"]), []) for seed in range(size)]
    ends: dict[int, Outcome] = {}
    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        train(members, folder, lambda index, path: None, ends.__setitem__)
    seconds = time.perf_counter() - began
    assert all(end.status == "finished" for end in ends.values()), ends
    return seconds / size


if __name__ == "__main__":
    main()
