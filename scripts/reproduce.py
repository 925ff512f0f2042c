"""Train every recipe over its seeds by the command line and print the figures beside those of the peers.

    python scripts/reproduce.py [RECIPE ...]

MNIST is read from $SNNEXP_DATA_DIR. Exits with 1 where a figure misses its bound. The peers' figures on MNIST were
measured with snnTorch 1.0.0 and Norse 1.1.0 in the tutorials' own loops; those of the regression recipes and of the
digits are measured here, from the same draws, by snntorch_regression.py and snntorch_digits.py. A mean has its 95 %
interval.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from scipy import stats
from snntorch_digits import train as train_digits
from snntorch_regression import train as train_snntorch


@dataclass(frozen=True)
class Bound:
    """A statistic over seeds of one measure, and what it must reach."""

    recipe: str
    seeds: range
    measure: str
    statistic: str
    limit: float | None
    peer: str


MNIST = [
    Bound("mnist_leaky", range(3), "test/accuracy", "mean", 0.933, "snnTorch .9301 .9432 .9396"),
    Bound("mnist_rleaky_count", range(2), "test/accuracy", "mean", 0.965, "snnTorch .9709 .9711"),
    Bound("mnist_rleaky_membrane", range(2), "test/accuracy", "mean", 0.94, "snnTorch .9460 .9425"),
    Bound("mnist_rleaky_conv", range(1), "test/accuracy", "mean", None, "none given"),
    Bound("mnist_parametrized_lif", range(3), "test/accuracy", "mean", 0.959, "Norse .9561, published .9594"),
]
FIT = [
    Bound("regression_sqrt_fit", range(10), "test/l1", "mean", 1.22e-2, "published 1.22e-2"),
    Bound("regression_sqrt_fit", range(10), "test/relative_error", "median", 2.84e-2, "published 2.84e-2"),
]


def interval(values: list[float]) -> float:
    """Half the width of the 95 % interval of a mean, by Student's t; 0 of a single value."""
    if len(values) < 2:
        return 0.0
    return float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5


def sweep(recipe: str, seeds: range) -> list[dict[str, float]]:
    """The final metrics of ``snnexp train -m experiment=RECIPE seed=...``, in the order of the seeds."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "snnexp.cli", "train", "-m", f"experiment={recipe}"]
        subprocess.run([*command, f"seed={','.join(map(str, seeds))}", f"logger.root={folder}"], check=True)
        runs = [json.loads(path.read_text()) for path in Path(folder).glob("sweeps/*/*/runs/*/run.json")]
    return [run["metrics"] for run in sorted(runs, key=lambda run: run["seed"])]


def main(wanted: list[str]) -> int:
    bounds = [*MNIST, *FIT]
    for mode in ("linear", "sqrt"):
        recipe = f"regression_{mode}"
        if not wanted or recipe in wanted:
            peer = statistics.mean(train_snntorch(mode, seed)[0] for seed in range(10))
            bounds.append(Bound(recipe, range(10), "test/l1", "mean", peer, f"snnTorch {peer:.4g}, same draws"))
    if not wanted or "digits_leaky" in wanted:
        peers = [train_digits(seed) for seed in range(10)]
        told = f"snnTorch {statistics.mean(peers):.4f} +- {interval(peers):.4f}, same split, batches and weights"
        bounds.append(Bound("digits_leaky", range(10), "test/accuracy", "mean", None, told))
    chosen = [bound for bound in bounds if not wanted or bound.recipe in wanted]
    measured = {key: sweep(*key) for key in dict.fromkeys((bound.recipe, bound.seeds) for bound in chosen)}
    missed = 0
    print(f"\n{'recipe':<24}{'measure':<22}{'statistic':<20}{'value':>10}{'bound':>10}  peers")
    for bound in chosen:
        values = [metrics[bound.measure] for metrics in measured[bound.recipe, bound.seeds]]
        value = statistics.mean(values) if bound.statistic == "mean" else statistics.median(values)
        higher_is_better = bound.measure == "test/accuracy"
        met = bound.limit is None or (value >= bound.limit if higher_is_better else value <= bound.limit)
        missed += not met
        over = f"{bound.statistic} of {len(values)} seeds"
        width = f" +- {interval(values):.4f}" if bound.statistic == "mean" and len(values) > 1 else ""
        limit = "" if bound.limit is None else f"{bound.limit:.4g}"
        verdict = "" if met else "  MISSED"
        print(f"{bound.recipe:<24}{bound.measure:<22}{over:<20}{value:>10.4g}{limit:>10}  {bound.peer}{verdict}")
        print(f"{'':<24}{' '.join(f'{value:.4g}' for value in values)}{width}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
