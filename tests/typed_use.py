"""What a user's type checker sees: mypy reads this file, nothing runs it."""

from omegaconf import DictConfig

from snnexp.experiment import Parts, Record, build, compose, evaluate, load, run, runs, sweep
from snnexp.network import Network

cfg: DictConfig = compose(["experiment=mnist_leaky"])
parts: Parts = build(cfg)
record: Record = run(cfg)
loaded: tuple[Network, DictConfig] = load(record.path, checkpoint="best")
accuracy: float = evaluate(str(record.path))["test/accuracy"]
paths: list[str] = [str(point["path"]) for point in [*sweep(["seed=0,1"]), *runs()]]
compose(5)  # type: ignore[arg-type]  # this line alone is a mistake, which must be found
