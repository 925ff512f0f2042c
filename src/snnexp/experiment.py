"""Run experiments from a notebook or another program, as the command line does.

cfg = compose(["experiment=mnist_leaky", "neuron.beta=0.9", "seed=3"])
parts = build(cfg)
record = run(cfg)
record = resume(record.path, ["trainer.max_epochs=2"])
measured = evaluate(record.path, split="val")
network, cfg = load(record.path)
file = predict(record.path)
weights = export(record.path)
points = sweep(["experiment=mnist_leaky", "seed=0,1,2"])
found = runs("outputs")

No verb leaves a trace in the process that calls it: random states, flags of PyTorch, environment variables, loggers
and Hydra are as they were before.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from snnexp.cli import train as launch
from snnexp.isolation import isolated
from snnexp.record.find import as_json, list_runs
from snnexp.record.run import Run
from snnexp.sweeps.ledger import Ledger, Point
from snnexp.training.assembly import Parts
from snnexp.training.evaluate import evaluate, export, load, predict
from snnexp.training.execute import Record, resume, run
from snnexp.training.start import build_started

__all__ = [
    "Parts",
    "Record",
    "build",
    "compose",
    "evaluate",
    "export",
    "load",
    "predict",
    "resume",
    "run",
    "runs",
    "sweep",
]

compose = isolated(computing=False)(launch.compose)
build = isolated()(build_started)


@isolated()
def sweep(words: Sequence[str]) -> list[dict[str, Any]]:
    """Run a sweep, or a search, as ``snnexp train -m`` does.

    Args:
        words: what would be typed, ``["experiment=mnist_leaky", "seed=0,1,2", "hydra/launcher=stacked"]``.

    Returns:
        For each point ``path``, ``status``, ``metrics``, ``overrides`` and what else :func:`runs` tells of a run; also
        for points that failed, and with a ``path`` of None for those that have no run.

    Raises:
        ConfigError: a point, or the launcher, cannot work; nothing is written.
        InterruptedRunError: a signal ended it; ``snnexp resume`` completes it.
    """
    ledger = launch.sweep(words)
    return [] if ledger is None else [_as_json(ledger, point) for point in ledger.points]


def _as_json(ledger: Ledger, point: Point) -> dict[str, Any]:
    known = as_json(Run(ledger.path / point.run).facts())
    without = {} if point.run else dict.fromkeys(("path", "id", "started"))
    told = {name: getattr(point, name) for name in ("status", "metrics", "overrides", "exit_code", "reason")}
    return {**known, **without, **told, "experiment": ledger.experiment, "seed": ledger.config(point)["seed"]}


def runs(folder: str | Path = "outputs") -> list[dict[str, Any]]:
    """What ``snnexp runs --json`` tells of the runs below a folder, the newest last.

    Raises:
        ConfigError: there is no such folder.
    """
    return [as_json(facts) for facts in list_runs(Path(folder))]
