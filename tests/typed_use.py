"""Types of the notebook interface; checked by mypy, never run."""

from pathlib import Path

from omegaconf import DictConfig

from snnexp.experiment import Parts, Record, build, compose, evaluate, export, load, predict, run, runs, sweep
from snnexp.network import Network

cfg: DictConfig = compose(["experiment=mnist_leaky"])
parts: Parts = build(cfg)
record: Record = run(cfg)
loaded: tuple[Network, DictConfig] = load(record.path, checkpoint="best")
accuracy: float = evaluate(str(record.path))["test/accuracy"]
files: list[Path] = [predict(record.path, split="val"), export(record.path)]
paths: list[str] = [str(point["path"]) for point in [*sweep(["seed=0,1"]), *runs()]]
compose(5)  # type: ignore[arg-type]  # mypy must report this line
