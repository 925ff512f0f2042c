"""Measure the cost of figures during training, of a report of 200 runs, and of a list of 1,000 runs.

python scripts/looking.py [draw] [report] [runs]

MNIST is read from $SNNEXP_DATA_DIR. Times are medians of whole commands. For drawing, they are the CPU times of
alternating runs with and without it, and the drawing time recorded by a run. OMP_NUM_THREADS=1 sets one thread.
"""

import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SNNEXP = [sys.executable, "-m", "snnexp.cli"]
RECIPES = {
    "mnist_leaky": 5,
    "mnist_rleaky_count": 2,
    "mnist_rleaky_membrane": 2,
    "mnist_rleaky_conv": 1,
    "mnist_parametrized_lif": 1,
    "regression_linear": 5,
    "regression_sqrt": 5,
}
"""Recipes, and the number of runs with and without drawing."""


def main(sections: list[str]) -> None:
    for name, measure in {"draw": draw, "report": report, "runs": runs}.items():
        if not sections or name in sections:
            with tempfile.TemporaryDirectory() as folder:
                measure(Path(folder))


def draw(folder: Path) -> None:
    print("recipe                   no drawing s     default s   ratio    in the process: drawing s, total s")
    for recipe, count in RECIPES.items():
        spent: dict[str, list[float]] = {"0": [], "1": []}
        for turn in range(2 * count):
            # alternate the order within pairs
            every = str((turn + turn // 2) % 2)
            changes = [f"logger.root={folder / recipe / every}", f"logger.draw_every_n_epochs={every}"]
            start = processor_s()
            timed("train", f"experiment={recipe}", *changes)
            spent[every].append(processor_s() - start)
        never, default = (statistics.median(seconds) for seconds in spent.values())
        walls = [json.loads(path.read_text())["wall_s"] for path in (folder / recipe / "1").glob("*/*/run.json")]
        own, whole = (statistics.median(wall[name] for wall in walls) for name in ("draw", "total"))
        share = f"{own:.2f} of {whole:.1f}, {100 * own / whole:.1f} %"
        print(f"{recipe:<24}{never:>14.1f}{default:>13.1f}{default / never:>8.3f}    {share}", flush=True)


def processor_s() -> float:
    """Return the CPU time of all child processes that have ended, less noisy than wall time on a shared machine."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def report(folder: Path) -> None:
    real = trained(folder)
    copy_runs(real, folder / "many", 200, [100 * 10, 500])
    seconds = [timed("report", str(folder / "many"), "--out", str(folder / "page")) for _ in range(3)]
    page = folder / "page" / "report.html"
    everything = sum(path.stat().st_size for path in (folder / "page").rglob("*") if path.is_file())
    size = f"page {page.stat().st_size / 1e6:.2f} MB, with figures and data {everything / 1e6:.2f} MB"
    print(f"report of 200 runs: {statistics.median(seconds):.2f} s (of {times(seconds)}), {size}")
    seconds = [timed("report", str(real), "--out", str(folder / "one")) for _ in range(3)]
    print(f"report of one run: {statistics.median(seconds):.2f} s (of {times(seconds)})", flush=True)


def runs(folder: Path) -> None:
    copy_runs(trained(folder), folder / "many", 1000, [100])
    timed("runs", str(folder / "many"))
    for options in ([], ["--json"], ["test/l1<0.05", "--sort", "test/l1"]):
        seconds = [timed("runs", str(folder / "many"), *options) for _ in range(5)]
        print(f"snnexp runs {' '.join(options)}: {statistics.median(seconds):.2f} s (of {times(seconds)}), 1,000 runs")


def timed(*arguments: str) -> float:
    began = time.perf_counter()
    subprocess.run([*SNNEXP, *arguments], check=True, stdout=subprocess.DEVNULL, env=os.environ)
    return time.perf_counter() - began


def times(seconds: list[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in sorted(seconds))


def trained(folder: Path) -> Path:
    timed("train", "experiment=regression_sqrt", f"logger.root={folder / 'real'}", "trainer.log_every_n_steps=1")
    (record,) = (folder / "real").glob("*/*/run.json")
    return record.parent


def copy_runs(real: Path, folder: Path, count: int, rows: list[int]) -> None:
    """Copy a real run with other parameters and metrics; one in 20 failed."""
    random_numbers = random.Random(0)
    config, record = (real / "config.yaml").read_text(), json.loads((real / "run.json").read_text())
    logged = (real / "metrics.jsonl").read_text().splitlines(keepends=True)
    for index in range(count):
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(1.75e9 + 600 * index))
        copy = folder / f"{stamp}-{index:04x}"
        shutil.copytree(real, copy, ignore=shutil.ignore_patterns("checkpoints", "tensorboard", "figures", "probe"))
        lr, hidden, seed = (
            random_numbers.uniform(1e-4, 1e-2),
            random_numbers.choice(("[64]", "[128]", "[9,9]")),
            index % 5,
        )
        text = config.replace("lr: 0.001", f"lr: {lr}").replace("\nseed: 0", f"\nseed: {seed}")
        (copy / "config.yaml").write_text(text)
        overrides = ["experiment=regression_sqrt", f"optimizer.lr={lr}", f"network.hidden={hidden}", f"seed={seed}"]
        (copy / "overrides.yaml").write_text("".join(f"- {override}\n" for override in overrides))
        measures = {name: value * random_numbers.uniform(0.8, 1.2) for name, value in record["metrics"].items()}
        failed = {"status": "failed", "exit_code": 1, "metrics": {}, "reason": "something was wrong"}
        changed = record | {"seed": seed} | (failed if index % 20 == 7 else {"metrics": measures})
        (copy / "run.json").write_text(json.dumps(changed))
        (copy / "metrics.jsonl").write_text("".join((logged * 10)[: rows[index % len(rows)]]))


if __name__ == "__main__":
    main(sys.argv[1:])
