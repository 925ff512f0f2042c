"""A trained network is measured again, or loaded."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from snnexp import config, terminal, threads
from snnexp.config import user_parts
from snnexp.errors import CheckpointError
from snnexp.isolation import isolated
from snnexp.limits import memory_told
from snnexp.network import Network
from snnexp.record import checkpoint as checkpoints
from snnexp.record.run import Run
from snnexp.text import shown
from snnexp.training import callbacks, observers, saving
from snnexp.training.assembly import build
from snnexp.training.members import Bridge, Member
from snnexp.training.signals import Signals
from snnexp.training.start import example, is_typed, limits_of, without_download
from snnexp.training.watching import measuring

OWN = ("last", "best", "init")
"""Checkpoints of a run, by what is typed."""


@isolated()
def evaluate(
    path: str | Path, checkpoint: str | Path = "last", split: str = "test", overrides: Sequence[str] = ()
) -> dict[str, float]:
    """Measure one split with the weights of a checkpoint; nothing is written.

    Args:
        path: the run directory.
        checkpoint: ``last``, ``best``, ``init``, or a file from anywhere whose weights fit the run's network.
        split: ``test``, ``val`` or ``train``.
        overrides: changes of the run's config, such as ``trainer.accelerator=cpu``.

    Returns:
        ``<split>/<measure>`` to value; with the last weights on the test split, the values that the run reported. (Of
        several processes, each drew random spikes of its own; one process draws others.)

    Raises:
        ConfigError: it is no run directory, or the run has no such split.
        CheckpointError: the checkpoint is missing, damaged, or does not fit.
        DataError: data are missing or damaged.
    """
    with Signals() as signals, memory_told(), signals.heeded():
        run_dir = Run.open(Path(path))
        saved = config.load(run_dir.path / "config.yaml")
        cfg = without_download(config.change_evaluation(saved, overrides), overrides)
        processes, cfg.trainer.devices, cfg.trainer.strategy = cfg.trainer.devices, 1, "auto"
        if split != "test":
            cfg.trainer.limit_test_batches = limits_of(cfg)[0]
        file = _checkpoint(run_dir, checkpoint)
        threads.use(_threads_of(cfg, run_dir, overrides))
        parts = build(cfg)
        signals.data = parts.data
        loader = parts.data.loader(split)
        watching = measuring(cfg, parts, processes)
        if checkpoint in OWN:
            found = checkpoints.read(file, example(parts, [*watching, saving.Checkpoints(run_dir, "")]))
            weights = found["state_dict"]
            for observer in watching:
                if isinstance(observer, observers.SeedMeanLoss):
                    observer.sums = found["callbacks"][observer.state_key]["sums"].mean(0)
        else:
            weights = checkpoints.read_weights(file, parts.task.state_dict())
            # what a foreign network was trained with is not known
            watching = [observer for observer in watching if not isinstance(observer, observers.SeedMeanLoss)]
        parts.task.load_state_dict(weights)
        Bridge.of(parts.trainer).given = [Member(parts.task, watching)]
        parts.trainer.callbacks.append(callbacks.RandomNumbers(cfg.seed))  # type: ignore[attr-defined]
        with terminal.quiet(), user_parts.running(cfg=cfg):
            measured = parts.trainer.test(parts.task, dataloaders=loader, verbose=False)[0]
        return {f"{split}/{name.removeprefix('test/')}": value for name, value in measured.items()}


@isolated()
def load(
    path: str | Path, checkpoint: str | Path = "last", overrides: Sequence[str] = ()
) -> tuple[Network, DictConfig]:
    """The trained network of a run, on the CPU and in evaluation mode, and a config to build with.

    Its input comes from the encoder, ``network(build(cfg).encoder(x))``. The config is the run's with ``overrides``,
    for one process on the CPU.

    Args:
        path: the run directory.
        checkpoint: ``last``, ``best``, ``init``, or a file from anywhere whose weights fit the run's network.
        overrides: changes of the run's config as in :func:`evaluate`, such as ``data.root=DIR`` on another machine.

    Raises:
        SnnexpError: as :func:`evaluate`.
    """
    run_dir = Run.open(Path(path))
    saved = config.load(run_dir.path / "config.yaml")
    cfg = config.remembering(saved, run_dir.overrides(), saved.copy())
    cfg.trainer.accelerator, cfg.trainer.devices, cfg.trainer.strategy = "cpu", 1, "auto"
    if cfg.kernel == "triton":
        # which a CPU has not
        cfg.kernel = "auto"
    cfg = without_download(config.change_evaluation(cfg, overrides), overrides)
    file = _checkpoint(run_dir, checkpoint)
    parts = build(cfg)
    weights = checkpoints.read_weights(file, parts.task.state_dict(), foreign=checkpoint not in OWN)
    parts.task.load_state_dict(weights)
    return parts.network.eval(), cfg


def _checkpoint(run_dir: Run, name: str | Path) -> Path:
    """The file of one of a run's own checkpoints, or of one from anywhere."""
    file = run_dir.checkpoints / f"{name}.ckpt" if name in OWN else Path(name)
    if not file.is_file():
        raise CheckpointError(f"{file}: no such checkpoint; the choice is {', '.join(OWN)}, or a file")
    return file


def _threads_of(cfg: DictConfig, run_dir: Run, overrides: Sequence[str]) -> int:
    """The number of threads that a run is measured with: as many as it was trained with, if that can be."""
    if is_typed("trainer.threads", overrides):
        threads.require(cfg)
        return threads.number(cfg)
    recorded = run_dir.facts().record.get("threads")
    found = threads.number(cfg, recorded)
    if recorded is not None and recorded != found:
        terminal.tell(f"threads: {shown(recorded)} -> {found}, so the last digits may differ")
    return found
