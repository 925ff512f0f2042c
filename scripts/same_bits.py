"""Compare training between an earlier commit and this checkout, bit by bit.

    scripts/same_bits.py                            both commits named in tests/old
    scripts/same_bits.py REF [RECIPE ...]           one commit, selected recipes

Each recipe runs once with the code of REF, from a temporary worktree, and once with this checkout, in the same
environment, on one thread each, at the same time. All metrics that both have must be equal, row by row, as must the
weights in last.ckpt. Relative to the commit in tests/old/BASELINE, the differences in tests/old/DIFFERENCES.md are
expected; relative to the one in tests/old/REFERENCE, none. The exit code is 1 if anything else differs, or if an
expected difference is absent.
"""

import argparse
import fnmatch
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
OLD = ROOT / "tests" / "old"
COMMON = ("trainer=cpu", "logger=jsonl")
IMAGES = ("trainer.limit_batches=50", "data.val_size=1000")
LIMITED_TEST = "trainer.limit_test_batches=50"
"""Older commits apply ``limit_batches`` to the test split as well."""
REGRESSION = ("experiment=regression_sqrt",)
STACK = ("experiment=regression_linear", "trainer.max_epochs=30", "seed=0,1,2,3")
STACKED = ("hydra/launcher=stacked", "hydra.launcher.workers=1", "hydra.launcher.threads=1")
MANY = (
    *("experiment=mnist_rleaky_count", "trainer.max_epochs=1", "network.hidden=[32]", "encoder=bernoulli", *IMAGES),
    *("optimizer.schedule=cosine", "optimizer.lr=1e-3,2e-3,5e-3", "seed=0,1"),
)
DDP = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "logger=jsonl")
RECIPES: dict[str, tuple[str, ...]] = {
    "regression_linear": ("experiment=regression_linear", *COMMON),
    "regression_sqrt": (*REGRESSION, *COMMON),
    "regression_sqrt_fit": ("experiment=regression_sqrt_fit", "trainer.max_epochs=3", *COMMON),
    "mnist_leaky": ("experiment=mnist_leaky", *IMAGES, *COMMON),
    "mnist_rleaky_count": ("experiment=mnist_rleaky_count", "trainer.max_epochs=2", *IMAGES, *COMMON),
    "mnist_rleaky_membrane": ("experiment=mnist_rleaky_membrane", "trainer.max_epochs=2", *IMAGES, *COMMON),
    "mnist_rleaky_conv": ("experiment=mnist_rleaky_conv", "trainer.max_epochs=1", *IMAGES, *COMMON),
    "mnist_parametrized_lif": ("experiment=mnist_parametrized_lif", "trainer.max_epochs=1", *IMAGES, *COMMON),
    "stack": ("-m", *STACKED, *STACK, *COMMON),
    "stack_mnist": ("-m", *STACKED, *MANY, *COMMON),
    "ddp": ("experiment=mnist_rleaky_count", "trainer.max_epochs=1", "network.hidden=[32]", *IMAGES, *DDP),
    "resumed": (*REGRESSION, *COMMON, "logger.save_every_s=0"),
}
"""Arguments of each recipe; ``resumed`` is killed under REF, and resumed with this checkout."""


@dataclass(frozen=True)
class Difference:
    """A difference in a recipe: the name of a metric, or ``weights``, and its first step."""

    recipe: str
    name: str
    step: int
    largest: float
    """The largest absolute difference."""


@dataclass(frozen=True)
class Expected:
    """A line of DIFFERENCES.md."""

    recipes: str
    names: tuple[str, ...]
    step: int

    def covers(self, difference: Difference) -> bool:
        """Return True if the line lists this difference."""
        is_named = any(fnmatch.fnmatchcase(difference.name, name) for name in self.names)
        return is_named and fnmatch.fnmatchcase(difference.recipe, self.recipes) and difference.step >= self.step


def parse_expected(text: str) -> list[Expected]:
    """Parse a table with the columns recipe, names, from step, reason; ``all`` means every recipe."""
    rows = [line.strip().strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    found = []
    for recipe, names, step, _ in ([cell.strip() for cell in row] for row in rows[2:]):
        every = tuple(name.strip(" `") for name in names.split(","))
        found.append(Expected("*" if recipe == "all" else recipe.strip("`"), every, int(step)))
    return found


def series(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float | None]]]:
    """Return the logged steps and values of each metric, in order."""
    found: dict[str, list[tuple[int, float | None]]] = {}
    for row in rows:
        for name, value in row.items():
            if name not in ("step", "epoch"):
                found.setdefault(name, []).append((row["step"], value))
    return found


def differences(recipe: str, before: Path, after: Path) -> list[Difference]:
    """Return the differences between two run directories in all that both have."""
    found = []
    one, other = (series([json.loads(line) for line in _lines(run)]) for run in (before, after))
    for name in sorted(one.keys() & other.keys()):
        pairs = list(zip(one[name], other[name], strict=False))
        unequal = [(step, value, new) for (step, value), (at, new) in pairs if step != at or value != new]
        if len(one[name]) != len(other[name]):
            unequal.append((max(step for step, _ in one[name]), None, None))
        if unequal:
            gaps = [abs(value - new) for _, value, new in unequal if value is not None and new is not None]
            found.append(Difference(recipe, name, unequal[0][0], max(gaps, default=float("inf"))))
    return [*found, *_weights(recipe, before, after)]


def _lines(run: Path) -> list[str]:
    return (run / "metrics.jsonl").read_text().splitlines()


def _weights(recipe: str, before: Path, after: Path) -> Iterator[Difference]:
    one, other = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (before, after))
    step = one["global_step"]
    for name in one["state_dict"].keys() & other["state_dict"].keys():
        value, new = one["state_dict"][name], other["state_dict"][name]
        if not torch.equal(value, new):
            largest = (value - new).abs().max().item() if value.shape == new.shape else float("inf")
            yield Difference(recipe, "weights", step, largest)


def match_expected(found: Sequence[Difference], listed: Sequence[Expected]) -> tuple[list[Difference], list[Expected]]:
    """Return the differences that are not listed, and the lines that match no difference."""
    unlisted = [difference for difference in found if not any(line.covers(difference) for line in listed)]
    stale = [line for line in listed if not any(line.covers(difference) for difference in found)]
    return unlisted, stale


class Side:
    """The code of one commit.

    Args:
        root: a checkout.
        folder: folder of its runs.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder = root, folder
        self.limits_test = "limit_test_batches" in (root / "conf" / "trainer" / "auto.yaml").read_text()

    def words(self, recipe: str) -> list[str]:
        words = RECIPES[recipe]
        return [*words, *([LIMITED_TEST] if IMAGES[0] in words and self.limits_test else [])]

    def start(self, recipe: str, *arguments: str) -> "subprocess.Popen[str]":
        cwd = self.folder / recipe
        cwd.mkdir(parents=True, exist_ok=True)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("SNNEXP_CONF")}
        env = {**inherited, "PYTHONPATH": str(self.root / "src"), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, "-m", "snnexp.cli", *arguments],
            cwd=cwd,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, recipe: str, *arguments: str) -> None:
        process = self.start(recipe, *arguments)
        output, _ = process.communicate()
        if process.returncode:
            raise SystemExit(
                f"{recipe}: {' '.join(arguments)} in {self.root} ended with {process.returncode}\n{output}"
            )

    def train(self, recipe: str) -> list[Path]:
        """Train a recipe; return its run directories, sorted by seed and overrides."""
        self.run(recipe, "train", *self.words(recipe))
        return self.runs(recipe)

    def kill(self, recipe: str) -> Path:
        """Kill a run after its first checkpoint; return its directory."""
        process = self.start(recipe, "train", *self.words(recipe))
        end = time.monotonic() + 300
        while not (checkpoints := [*(self.folder / recipe).glob("outputs/*/*/checkpoints/previous.ckpt")]):
            if process.poll() is not None or time.monotonic() > end:
                process.kill()
                raise SystemExit(f"{recipe}: ended before it could be killed\n{process.communicate()[0]}")
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        return checkpoints[0].parents[1]

    def runs(self, recipe: str) -> list[Path]:
        records = (self.folder / recipe).glob("outputs/**/run.json")
        return sorted(
            (record.parent for record in records), key=lambda run: (json.loads(_record(run))["seed"], _overrides(run))
        )


def _overrides(run: Path) -> str:
    return (run / "overrides.yaml").read_text()


def _record(run: Path) -> str:
    return (run / "run.json").read_text()


def compare(recipe: str, before: Side, after: Side) -> list[Difference]:
    """Train a recipe on both sides and compare the results."""
    if recipe == "resumed":
        complete = Side(before.root, before.folder / "complete").train(recipe)
        stopped = before.kill(recipe)
        after.run(recipe, "resume", str(stopped))
        return differences(recipe, complete[0], stopped)
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda side: side.train(recipe), (before, after))
    assert len(one) == len(other), recipe
    return [part for pair in zip(one, other, strict=True) for part in differences(recipe, *pair)]


@contextmanager
def worktree(commit: str) -> Iterator[Path]:
    """Check out a commit into a temporary worktree."""
    with tempfile.TemporaryDirectory(prefix="same-bits-") as folder:
        path = Path(folder) / "ref"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(path), commit], cwd=ROOT, check=True)
        try:
            yield path
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(path)], cwd=ROOT, check=True)


def report(commit: str, recipes: Sequence[str], listed: Sequence[Expected]) -> bool:
    """Print the differences from a commit; return True if they are exactly those listed."""
    print(f"against {commit[:12]}")
    found: list[Difference] = []
    with worktree(commit) as ref, tempfile.TemporaryDirectory(prefix="same-bits-") as folder:
        before, after = (Side(root, Path(folder) / name) for root, name in ((ref, "before"), (ROOT, "after")))
        for recipe in recipes:
            began = time.monotonic()
            new = compare(recipe, before, after)
            found += new
            print(f"  {recipe:<24}{'differs' if new else 'equal':<10}{time.monotonic() - began:5.0f} s", flush=True)
            for name in dict.fromkeys(difference.name for difference in new):
                same = [difference for difference in new if difference.name == name]
                step, largest = min(part.step for part in same), max(part.largest for part in same)
                as_listed = all(any(line.covers(part) for line in listed) for part in same)
                print(
                    f"    {name:<40} from step {step:<6} by {largest:.1e}  {'as listed' if as_listed else 'NOT LISTED'}"
                )
    unlisted, stale = match_expected(found, listed)
    stale = [line for line in stale if any(fnmatch.fnmatchcase(recipe, line.recipes) for recipe in recipes)]
    for line in stale if [*recipes] == [*RECIPES] else []:
        print(f"  listed, but not found: {line.recipes} {', '.join(line.names)} from step {line.step}")
    return not unlisted and not (stale and [*recipes] == [*RECIPES])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ref", nargs="?", metavar="REF", help="a commit; by default those named in tests/old")
    parser.add_argument("recipe", nargs="*", metavar="RECIPE", help=f"one of {', '.join(RECIPES)}")
    parser.add_argument("--without-mnist", action="store_true", help="skip the recipes that need MNIST")
    args = parser.parse_args()
    if unknown := [recipe for recipe in args.recipe if recipe not in RECIPES]:
        parser.error(f"{unknown[0]}: no such recipe, there are {', '.join(RECIPES)}")
    recipes = args.recipe or [*RECIPES]
    images = Path(os.environ.get("SNNEXP_DATA_DIR", "data")).absolute()
    # absolute, because each side runs in its own folder
    os.environ["SNNEXP_DATA_DIR"] = str(images)
    if args.without_mnist:
        recipes = [recipe for recipe in recipes if IMAGES[0] not in RECIPES[recipe]]
    elif not (images / "MNIST" / "raw").is_dir() and any(IMAGES[0] in RECIPES[recipe] for recipe in recipes):
        raise SystemExit(f"no MNIST/raw in {images}; set SNNEXP_DATA_DIR, or pass --without-mnist")
    baseline, reference = ((OLD / name).read_text().strip() for name in ("BASELINE", "REFERENCE"))
    listed = parse_expected((OLD / "DIFFERENCES.md").read_text())
    commits = [args.ref] if args.ref else [*dict.fromkeys((reference, baseline))]
    fine = True
    for commit in commits:
        full = subprocess.run(
            ["git", "rev-parse", "--verify", f"{commit}^{{commit}}"], cwd=ROOT, capture_output=True, text=True
        ).stdout.strip()
        if not full:
            raise SystemExit(f"{commit}: no such commit here")
        fine &= report(full, recipes, listed if full == baseline else [])
    raise SystemExit(0 if fine else 1)


if __name__ == "__main__":
    main()
