"""Run experiments from a notebook or another program.

cfg = compose(["experiment=mnist_leaky", "neuron.beta=0.9", "seed=3"])
parts = build(cfg)
record = run(cfg)
record = resume(record.path, ["trainer.max_epochs=2"])
measured = evaluate(record.path, split="val")
network, cfg = load(record.path)
file = predict(record.path)
weights = export(record.path)
points = sweep(["experiment=mnist_leaky", "seed=0,1,2"])
table = runs("outputs")

These functions restore process-wide state when they return: random states, PyTorch flags, environment variables,
loggers and Hydra.
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
from snnexp.training.start import build_with_initial_weights

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
build = isolated()(build_with_initial_weights)


@isolated()
def sweep(words: Sequence[str]) -> list[dict[str, Any]]:
    """Run a sweep or a search, like ``snnexp train -m``.

    Args:
        words: command-line arguments, such as ``["experiment=mnist_leaky", "seed=0,1,2", "hydra/launcher=stacked"]``.

    Returns:
        For each point, also those that failed: ``path``, ``status``, ``metrics``, ``overrides`` and the other entries
        of :func:`runs`. ``path`` is None for a point without a run.

    Raises:
        ConfigError: a point or the launcher is invalid; nothing is written.
        InterruptedRunError: a signal ended the sweep; ``snnexp resume`` completes it.
    """
    ledger = launch.sweep(words)
    return [] if ledger is None else [_as_json(ledger, point) for point in ledger.points]


def _as_json(ledger: Ledger, point: Point) -> dict[str, Any]:
    facts = as_json(Run(ledger.path / point.run).facts())
    missing = {} if point.run else dict.fromkeys(("path", "id", "started"))
    entries = {name: getattr(point, name) for name in ("status", "metrics", "overrides", "exit_code", "reason")}
    return {**facts, **missing, **entries, "experiment": ledger.experiment, "seed": ledger.config(point)["seed"]}


def runs(folder: str | Path = "outputs") -> list[dict[str, Any]]:
    """Return the runs below a folder, the newest last, like ``snnexp runs --json``.

    Raises:
        ConfigError: the folder does not exist.
    """
    return [as_json(facts) for facts in list_runs(Path(folder))]
