"""Train every recipe over its seeds and compare the results with bounds and with other libraries.

    python scripts/reproduce.py [RECIPE ...]

MNIST is read from $SNNEXP_DATA_DIR. Exits with 1 if a result misses its bound. The results of other libraries on MNIST
were measured with snnTorch 1.0.0 and Norse 1.1.0 in the training loops of their tutorials; those on regression and
digits are measured by this script, with the same data and initial weights, by snntorch_regression.py and
snntorch_digits.py. Means have 95 % confidence intervals.
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
    """A statistic of one metric over seeds, and its bound."""

    recipe: str
    seeds: range
    metric: str
    statistic: str
    limit: float | None
    reference: str


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
    """Return half the width of the 95 % confidence interval of a mean (Student's t); 0 for a single value."""
    if len(values) < 2:
        return 0.0
    return float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5


def sweep(recipe: str, seeds: range) -> list[dict[str, float]]:
    """Return the final metrics of ``snnexp train -m experiment=RECIPE seed=...``, ordered by seed."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "snnexp.cli", "train", "-m", f"experiment={recipe}"]
        subprocess.run([*command, f"seed={','.join(map(str, seeds))}", f"logger.root={folder}"], check=True)
        runs = [json.loads(path.read_text()) for path in Path(folder).glob("sweeps/*/*/runs/*/run.json")]
    return [run["metrics"] for run in sorted(runs, key=lambda run: run["seed"])]


def main(recipes: list[str]) -> int:
    bounds = [*MNIST, *FIT]
    for mode in ("linear", "sqrt"):
        recipe = f"regression_{mode}"
        if not recipes or recipe in recipes:
            reference = statistics.mean(train_snntorch(mode, seed)[0] for seed in range(10))
            bounds.append(
                Bound(recipe, range(10), "test/l1", "mean", reference, f"snnTorch {reference:.4g}, same draws")
            )
    if not recipes or "digits_leaky" in recipes:
        results = [train_digits(seed) for seed in range(10)]
        result = f"snnTorch {statistics.mean(results):.4f} +- {interval(results):.4f}, same split, batches and weights"
        bounds.append(Bound("digits_leaky", range(10), "test/accuracy", "mean", None, result))
    chosen = [bound for bound in bounds if not recipes or bound.recipe in recipes]
    measured = {key: sweep(*key) for key in dict.fromkeys((bound.recipe, bound.seeds) for bound in chosen)}
    missed = 0
    print(f"\n{'recipe':<24}{'metric':<22}{'statistic':<20}{'value':>10}{'bound':>10}  reference")
    for bound in chosen:
        values = [metrics[bound.metric] for metrics in measured[bound.recipe, bound.seeds]]
        value = statistics.mean(values) if bound.statistic == "mean" else statistics.median(values)
        higher_is_better = bound.metric == "test/accuracy"
        met = bound.limit is None or (value >= bound.limit if higher_is_better else value <= bound.limit)
        missed += not met
        over = f"{bound.statistic} of {len(values)} seeds"
        width = f" +- {interval(values):.4f}" if bound.statistic == "mean" and len(values) > 1 else ""
        limit = "" if bound.limit is None else f"{bound.limit:.4g}"
        verdict = "" if met else "  MISSED"
        print(f"{bound.recipe:<24}{bound.metric:<22}{over:<20}{value:>10.4g}{limit:>10}  {bound.reference}{verdict}")
        print(f"{'':<24}{' '.join(f'{value:.4g}' for value in values)}{width}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
