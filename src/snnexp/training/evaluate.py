"""Evaluate, load and export trained networks, and write their predictions."""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from snnexp import config, terminal, threads
from snnexp.config import user_parts
from snnexp.errors import ConfigError
from snnexp.isolation import isolated
from snnexp.limits import out_of_memory_as_config_error
from snnexp.record import checkpoint as checkpoints
from snnexp.record.files import replacing, write_atomically
from snnexp.record.names import CHECKPOINT_NAMES
from snnexp.record.origin import origin
from snnexp.record.run import Run
from snnexp.spec.classes import MISSING
from snnexp.spec.parts import of as parts_of
from snnexp.text import format_value
from snnexp.training import callbacks, observers, saving
from snnexp.training.assembly import Parts, build
from snnexp.training.fitted import with_fitted_values
from snnexp.training.initial import require_checkpoint_file
from snnexp.training.members import Bridge, Member, Observer
from snnexp.training.observer_setup import evaluation_observers
from snnexp.training.opaque import Opaque
from snnexp.training.predictions import Predictions
from snnexp.training.signals import Signals
from snnexp.training.start import batch_limits, example_checkpoint, is_overridden, label_names, without_download


@isolated()
def evaluate(
    path: str | Path,
    checkpoint: str | Path = "last",
    split: str = "test",
    overrides: Sequence[str] = (),
    folders: Sequence[Path] = (),
) -> dict[str, float]:
    """Evaluate one split with the weights of a checkpoint; write nothing.

    Args:
        path: the run directory.
        checkpoint: ``last``, ``best``, ``init``, or any file whose weights fit the run's network.
        split: ``test``, ``val`` or ``train``.
        overrides: overrides of the run's config, such as ``trainer.accelerator=cpu``; ``data=OTHER`` evaluates on
            other data.
        folders: additional config folders, as for ``--config-dir``; by default those that the run was composed with.

    Returns:
        ``<split>/<metric>`` to value; for the last weights on the test split, the values that the run reported, unless
        several processes drew random spikes.

    Raises:
        ConfigError: not a run directory, the run has no such split, or the data do not fit the network.
        CheckpointError: the checkpoint is missing, damaged, or does not fit.
        DataError: data are missing or damaged.
    """
    return _evaluate(Path(path), checkpoint, split, overrides, folders)


@isolated()
def predict(
    path: str | Path,
    checkpoint: str | Path = "last",
    split: str = "test",
    overrides: Sequence[str] = (),
    output: str | Path | None = None,
    folders: Sequence[Path] = (),
) -> Path:
    """Write the predictions for each sample of a split to a CSV file, in the order of the split.

    See :class:`~snnexp.training.predictions.Rows` for the columns. The file is written atomically.

    Args:
        path: the run directory.
        checkpoint: as for :func:`evaluate`; likewise ``split``, ``overrides`` and ``folders``.
        output: a new file; by default the run's ``predictions.csv``, which is replaced.

    Returns:
        The file.

    Raises:
        SnnexpError: as for :func:`evaluate`, or ``output`` exists.
    """
    run_dir = Run.open(Path(path))
    if output is not None:
        require_new(Path(output))
    file = run_dir.path / "predictions.csv" if output is None else Path(output)

    @contextmanager
    def writing(parts: Parts) -> Iterator[list[Observer]]:
        with replacing(file) as handle:
            yield [Predictions(handle, parts.decoder, parts.loss)]

    _evaluate(run_dir.path, checkpoint, split, overrides, folders, writing)
    return file


def require_new(output: Path) -> None:
    """Require that an output file does not exist yet.

    Raises:
        ConfigError: the file exists, or its folder does not.
    """
    if output.exists() or output.is_symlink():
        raise ConfigError(f"--output: {output} exists; delete it, or choose another file")
    if not output.parent.is_dir():
        raise ConfigError(f"--output: {output.parent} is not a folder")


def export(path: str | Path, checkpoint: str | Path = "last") -> Path:
    """Write the weights of a checkpoint to ``export/network.pt``, the ``state_dict`` of the network of :func:`load`.

    Read it with ``load(path)[0].load_state_dict(torch.load(file, weights_only=True))``. Needs no data.

    Args:
        path: the run directory.
        checkpoint: as for :func:`evaluate`.

    Returns:
        The file.

    Raises:
        ConfigError: not a run directory.
        CheckpointError: the checkpoint is missing, damaged, or does not fit.
    """
    run_dir = Run.open(Path(path))
    file = _checkpoint(run_dir, checkpoint)
    if checkpoint in CHECKPOINT_NAMES:
        weights = checkpoints.read_network_weights(file)
    else:
        own = checkpoints.read_network_weights(_checkpoint(run_dir, "init"))
        wanted = {f"{checkpoints.NETWORK}{name}": value for name, value in own.items()}
        loaded = checkpoints.read_weights(file, wanted)
        weights = {name.removeprefix(checkpoints.NETWORK): value for name, value in loaded.items()}
    module = checkpoints.MODULE.removeprefix(checkpoints.NETWORK)
    if all(name.startswith(module) for name in weights):
        weights = {name.removeprefix(module): value for name, value in weights.items()}
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    target = run_dir.path / "export" / "network.pt"
    target.parent.mkdir(exist_ok=True)
    write_atomically(target, buffer.getvalue())
    return target


@isolated()
def load(
    path: str | Path,
    checkpoint: str | Path = "last",
    overrides: Sequence[str] = (),
    folders: Sequence[Path] = (),
) -> tuple[Any, DictConfig]:
    """Return the trained network of a run, on the CPU and in evaluation mode, and a config for :func:`build`.

    Its input is encoded: ``network(build(cfg).encoder(x))``; a plain module is returned unchanged and takes
    ``[T, B, *N]``. The config is that of the run with ``overrides``, for one process on the CPU, without ``init_from``.

    Args:
        path: the run directory.
        checkpoint: ``last``, ``best``, ``init``, or any file whose weights fit the run's network.
        overrides: as for :func:`evaluate`, such as ``data.root=DIR`` on another machine.
        folders: as for :func:`evaluate`.

    Raises:
        SnnexpError: as for :func:`evaluate`.
    """
    run_dir = Run.open(Path(path))
    saved = config.load(run_dir.path / "config.yaml")
    cfg = config.with_provenance(saved, run_dir.overrides(), saved.copy())
    cfg.trainer.accelerator, cfg.trainer.devices, cfg.trainer.strategy = "cpu", 1, "auto"
    if cfg.kernel == "triton":
        # triton needs a GPU
        cfg.kernel = "auto"
    file = _checkpoint(run_dir, checkpoint)
    cfg = config.without_init_run(
        _with_fitted_values(_apply_overrides(cfg, run_dir, overrides, folders), saved, run_dir, checkpoint, overrides)
    )
    parts = build(cfg)
    _require_fit(parts, file, checkpoint not in CHECKPOINT_NAMES, saved, overrides)
    weights = checkpoints.read_weights(file, parts.task.state_dict(), foreign=checkpoint not in CHECKPOINT_NAMES)
    parts.task.load_state_dict(weights)
    network = parts.network.eval()
    return network.module if isinstance(network, Opaque) else network, cfg


def _evaluate(
    path: Path,
    checkpoint: str | Path,
    split: str,
    overrides: Sequence[str],
    folders: Sequence[Path],
    more: Callable[[Parts], AbstractContextManager[Sequence[Observer]]] = lambda parts: nullcontext(()),
) -> dict[str, float]:
    """Return the result of :func:`evaluate`, with additional observers from ``more``."""
    with Signals() as signals, out_of_memory_as_config_error(), signals.reraising_interrupts():
        run_dir = Run.open(path)
        saved = config.load(run_dir.path / "config.yaml")
        cfg = _apply_overrides(saved, run_dir, overrides, folders)
        config.require_split(split, saved.data, cfg.data)
        processes, cfg.trainer.devices, cfg.trainer.strategy = cfg.trainer.devices, 1, "auto"
        if split != "test":
            cfg.trainer.limit_test_batches = batch_limits(cfg)[0]
        file = _checkpoint(run_dir, checkpoint)
        cfg = _with_fitted_values(cfg, saved, run_dir, checkpoint, overrides)
        threads.use(_threads_of(cfg, run_dir, overrides))
        parts = build(cfg)
        _require_fit(parts, file, checkpoint not in CHECKPOINT_NAMES, saved, overrides)
        _require_names(parts, run_dir)
        signals.data = parts.data
        loader = parts.data.loader(split)
        watching = evaluation_observers(cfg, parts, processes)
        if checkpoint in CHECKPOINT_NAMES:
            content = checkpoints.read(
                file, example_checkpoint(parts, [*watching, saving.MemberCheckpoints(run_dir, "")])
            )
            weights = content["state_dict"]
            for observer in watching:
                if isinstance(observer, observers.InputScaling) and observer.state_key in content["callbacks"]:
                    # user-defined data may have fitted a different scaling
                    observer.load_state_dict(content["callbacks"][observer.state_key])
                if isinstance(observer, observers.TutorialMeanLoss):
                    observer.sums = content["callbacks"][observer.state_key]["sums"].mean(0)
        else:
            weights = checkpoints.read_weights(file, parts.task.state_dict())
            # the training losses of another network are unknown
            watching = [observer for observer in watching if not isinstance(observer, observers.TutorialMeanLoss)]
        parts.task.load_state_dict(weights)
        parts.trainer.callbacks.append(callbacks.StatelessSeeding(cfg.seed))  # type: ignore[attr-defined]
        with more(parts) as others, terminal.quiet(), user_parts.wrap_errors(cfg=cfg):
            Bridge.of(parts.trainer).assigned = [Member(parts.task, [*watching, *others])]
            measured = parts.trainer.test(parts.task, dataloaders=loader, verbose=False)[0]
        return {f"{split}/{name.removeprefix('test/')}": value for name, value in measured.items()}


def _apply_overrides(saved: DictConfig, run_dir: Run, overrides: Sequence[str], folders: Sequence[Path]) -> DictConfig:
    """Return the config of a run with command-line overrides applied."""
    known = folders or [folder for folder in origin(run_dir.facts()).folders if folder.is_dir()]
    return without_download(config.change_evaluation(saved, overrides, known), overrides)


def _with_fitted_values(
    cfg: DictConfig, saved: DictConfig, run_dir: Run, checkpoint: str | Path, overrides: Sequence[str]
) -> DictConfig:
    """As :func:`snnexp.training.fitted.with_fitted_values`, for any checkpoint."""
    return with_fitted_values(
        cfg, saved, _checkpoint(run_dir, checkpoint if checkpoint in CHECKPOINT_NAMES else "init"), overrides
    )


def _require_names(parts: Parts, run_dir: Run) -> None:
    """Require the class and feature names of the run, in the same order.

    Raises:
        ConfigError: the names differ.
    """
    trained, current = run_dir.read(), label_names(parts.data.description)
    for what in ("classes", "features"):
        expected = trained.get(what)
        if expected is not None and what in current and current[what] != expected:
            lists = [format_value(", ".join(map(str, each))) for each in (current[what], expected)]
            raise ConfigError(f"data: the {what} are {lists[0]}, but the run was trained with {lists[1]}")


def _require_fit(parts: Parts, file: Path, foreign: bool, saved: DictConfig, overrides: Sequence[str]) -> None:
    """Require that the weights fit the network for other data or another decoder.

    Raises:
        ConfigError: the shapes differ.
        CheckpointError: the checkpoint is damaged.
    """
    key = next((key for key in ("data", "decoder") if any(word.startswith(key) for word in overrides)), None)
    if key is None:
        return
    wanted = parts.network.state_dict()
    trained = checkpoints.read_network_weights(file, wanted, foreign)
    for name, value in wanted.items():
        if name not in trained or trained[name].shape == value.shape:
            continue
        if key == "decoder":
            difference = f"{list(value.shape)} where the network of this run has {list(trained[name].shape)}"
            raise ConfigError(f"decoder: requires a different readout, {name} would be {difference}")
        shapes = f"inputs {list(parts.data.inputs)} and {parts.data.outputs} outputs"
        spec = parts_of(saved.data._target_)
        sizes = [spec.fact("inputs"), spec.fact("outputs")]
        difference = f"whose {name} is {list(trained[name].shape)} and not {list(value.shape)}"
        if MISSING not in sizes:
            difference = f"which was trained with inputs {list(sizes[0])} and {sizes[1]} outputs"
        raise ConfigError(f"data: {shapes} do not fit the network of this run, {difference}")


def _checkpoint(run_dir: Run, name: str | Path) -> Path:
    """Return the file of a checkpoint of the run, or any other file."""
    return require_checkpoint_file(run_dir.checkpoints / f"{name}.ckpt" if name in CHECKPOINT_NAMES else Path(name))


def _threads_of(cfg: DictConfig, run_dir: Run, overrides: Sequence[str]) -> int:
    """Return the number of threads: that of the training if possible."""
    if is_overridden("trainer.threads", overrides):
        threads.require(cfg)
        return threads.number(cfg)
    recorded = run_dir.facts().record.get("threads")
    count = threads.number(cfg, recorded)
    if recorded is not None and recorded != count:
        terminal.warn(f"threads: {format_value(recorded)} -> {count}, so the last digits may differ")
    return count
