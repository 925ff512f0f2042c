"""Run experiments from a notebook or another program, as the command line does.

cfg = compose(["experiment=mnist_leaky", "neuron.beta=0.9", "seed=3"])
parts = build(cfg)
record = run(cfg)
record = resume(record.path, ["trainer.max_epochs=2"])
measured = evaluate(record.path, split="val")

No verb leaves a trace in the process that calls it: random states, flags of PyTorch, environment variables, loggers
and Hydra are as they were before.
"""

from snnexp import assembly, config
from snnexp.assembly import Parts
from snnexp.isolation import isolated
from snnexp.training import Record, evaluate, resume, run

__all__ = ["Parts", "Record", "build", "compose", "evaluate", "resume", "run"]

compose = isolated()(config.compose)
build = isolated()(assembly.build)
