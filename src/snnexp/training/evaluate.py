"""A trained network is measured again, loaded, exported, or asked for its predictions."""

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
from snnexp.training.initial import checkpoint_file
from snnexp.training.members import Bridge, Member, Observer
from snnexp.training.observer_setup import evaluation_observers
from snnexp.training.opaque import Opaque
from snnexp.training.predictions import Predictions
from snnexp.training.signals import Signals
from snnexp.training.start import example_checkpoint, is_overridden, label_names, limits_of, without_download


@isolated()
def evaluate(
    path: str | Path,
    checkpoint: str | Path = "last",
    split: str = "test",
    overrides: Sequence[str] = (),
    folders: Sequence[Path] = (),
) -> dict[str, float]:
    """Measure one split with the weights of a checkpoint; nothing is written.

    Args:
        path: the run directory.
        checkpoint: ``last``, ``best``, ``init``, or a file from anywhere whose weights fit the run's network.
        split: ``test``, ``val`` or ``train``.
        overrides: changes of the run's config, such as ``trainer.accelerator=cpu``; ``data=OTHER`` measures on other
            data.
        folders: more configs, as of ``--config-dir``; by default those that the run was composed with.

    Returns:
        ``<split>/<measure>`` to value; with the last weights on the test split, the values that the run reported. (Of
        several processes, each drew random spikes of its own; one process draws others.)

    Raises:
        ConfigError: it is no run directory, the run has no such split, or the network does not take such data.
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
    """Write the predictions for each sample of a split as CSV, in the order of the split.

    :class:`~snnexp.training.predictions.Predictions` says which columns there are. The file is complete or not there.

    Args:
        path: the run directory.
        checkpoint: as of :func:`evaluate`, as are ``split``, ``overrides`` and ``folders``.
        output: a file that does not exist yet; by default the run's ``predictions.csv``, which is replaced.

    Returns:
        The file.

    Raises:
        SnnexpError: as :func:`evaluate`, or ``output`` exists.
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
    """Refuse to replace a file that is not the run's own.

    Raises:
        ConfigError: it exists, or its folder does not.
    """
    if output.exists() or output.is_symlink():
        raise ConfigError(f"--output: {output} exists; delete it, or choose another file")
    if not output.parent.is_dir():
        raise ConfigError(f"--output: {output.parent} is not a folder")


def export(path: str | Path, checkpoint: str | Path = "last") -> Path:
    """Write the weights of a checkpoint as ``export/network.pt``: the ``state_dict`` of what :func:`load` returns.

    ``load(path)[0].load_state_dict(torch.load(file, weights_only=True))`` reads it. Data are not needed.

    Args:
        path: the run directory.
        checkpoint: as of :func:`evaluate`.

    Returns:
        The file.

    Raises:
        ConfigError: it is no run directory.
        CheckpointError: the checkpoint is missing, damaged, or does not fit.
    """
    run_dir = Run.open(Path(path))
    file = _checkpoint(run_dir, checkpoint)
    if checkpoint in CHECKPOINT_NAMES:
        weights = checkpoints.read_network_weights(file)
    else:
        own = checkpoints.read_network_weights(_checkpoint(run_dir, "init"))
        wanted = {f"{checkpoints.NETWORK}{name}": value for name, value in own.items()}
        found = checkpoints.read_weights(file, wanted)
        weights = {name.removeprefix(checkpoints.NETWORK): value for name, value in found.items()}
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
    """The trained network of a run, on the CPU and in evaluation mode, and a config to build with.

    Its input comes from the encoder, ``network(build(cfg).encoder(x))``; a plain module is returned as it is, and takes
    ``[T, B, *N]``. The config is the run's with ``overrides``,
    for one process on the CPU, and names no other run to start from.

    Args:
        path: the run directory.
        checkpoint: ``last``, ``best``, ``init``, or a file from anywhere whose weights fit the run's network.
        overrides: changes of the run's config as in :func:`evaluate`, such as ``data.root=DIR`` on another machine.
        folders: as of :func:`evaluate`.

    Raises:
        SnnexpError: as :func:`evaluate`.
    """
    run_dir = Run.open(Path(path))
    saved = config.load(run_dir.path / "config.yaml")
    cfg = config.with_provenance(saved, run_dir.overrides(), saved.copy())
    cfg.trainer.accelerator, cfg.trainer.devices, cfg.trainer.strategy = "cpu", 1, "auto"
    if cfg.kernel == "triton":
        # which a CPU has not
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
    """What :func:`evaluate` returns, while the observers of ``more`` watch."""
    with Signals() as signals, out_of_memory_as_config_error(), signals.reraising_interrupts():
        run_dir = Run.open(path)
        saved = config.load(run_dir.path / "config.yaml")
        cfg = _apply_overrides(saved, run_dir, overrides, folders)
        config.require_split(split, saved.data, cfg.data)
        processes, cfg.trainer.devices, cfg.trainer.strategy = cfg.trainer.devices, 1, "auto"
        if split != "test":
            cfg.trainer.limit_test_batches = limits_of(cfg)[0]
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
            found = checkpoints.read(
                file, example_checkpoint(parts, [*watching, saving.MemberCheckpoints(run_dir, "")])
            )
            weights = found["state_dict"]
            for observer in watching:
                if isinstance(observer, observers.InputScaling) and observer.state_key in found["callbacks"]:
                    # a part of a user's own may have fitted another one
                    observer.load_state_dict(found["callbacks"][observer.state_key])
                if isinstance(observer, observers.TutorialMeanLoss):
                    observer.sums = found["callbacks"][observer.state_key]["sums"].mean(0)
        else:
            weights = checkpoints.read_weights(file, parts.task.state_dict())
            # what a foreign network was trained with is not known
            watching = [observer for observer in watching if not isinstance(observer, observers.TutorialMeanLoss)]
        parts.task.load_state_dict(weights)
        parts.trainer.callbacks.append(callbacks.StatelessSeeding(cfg.seed))  # type: ignore[attr-defined]
        with more(parts) as others, terminal.quiet(), user_parts.wrap_errors(cfg=cfg):
            Bridge.of(parts.trainer).assigned = [Member(parts.task, [*watching, *others])]
            measured = parts.trainer.test(parts.task, dataloaders=loader, verbose=False)[0]
        return {f"{split}/{name.removeprefix('test/')}": value for name, value in measured.items()}


def _apply_overrides(saved: DictConfig, run_dir: Run, overrides: Sequence[str], folders: Sequence[Path]) -> DictConfig:
    """The config of a run, changed as typed."""
    known = folders or [folder for folder in origin(run_dir.facts()).folders if folder.is_dir()]
    return without_download(config.change_evaluation(saved, overrides, known), overrides)


def _with_fitted_values(
    cfg: DictConfig, saved: DictConfig, run_dir: Run, checkpoint: str | Path, overrides: Sequence[str]
) -> DictConfig:
    """As :func:`snnexp.training.fitted.with_fitted_values`, whatever weights are measured."""
    return with_fitted_values(
        cfg, saved, _checkpoint(run_dir, checkpoint if checkpoint in CHECKPOINT_NAMES else "init"), overrides
    )


def _require_names(parts: Parts, run_dir: Run) -> None:
    """Refuse other data whose classes or features have other names, or another order, than those of the run.

    Raises:
        ConfigError: they have.
    """
    trained, now = run_dir.read(), label_names(parts.data.description)
    for what in ("classes", "features"):
        before = trained.get(what)
        if before is not None and what in now and now[what] != before:
            lists = [format_value(", ".join(map(str, each))) for each in (now[what], before)]
            raise ConfigError(f"data: the {what} are {lists[0]}, and the run was trained with {lists[1]}")


def _require_fit(parts: Parts, file: Path, foreign: bool, saved: DictConfig, overrides: Sequence[str]) -> None:
    """Refuse other data, or another decoder, for which the network has other shapes than its weights.

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
            told = f"{list(value.shape)} where the network of this run has {list(trained[name].shape)}"
            raise ConfigError(f"decoder: needs another readout, {name} would be {told}")
        shapes = f"inputs {list(parts.data.inputs)} and {parts.data.outputs} outputs"
        spec = parts_of(saved.data._target_)
        before = [spec.fact("inputs"), spec.fact("outputs")]
        told = f"whose {name} is {list(trained[name].shape)} and not {list(value.shape)}"
        if MISSING not in before:
            told = f"which was trained with inputs {list(before[0])} and {before[1]} outputs"
        raise ConfigError(f"data: {shapes} do not fit the network of this run, {told}")


def _checkpoint(run_dir: Run, name: str | Path) -> Path:
    """The file of one of a run's own checkpoints, or of one from anywhere."""
    return checkpoint_file(run_dir.checkpoints / f"{name}.ckpt" if name in CHECKPOINT_NAMES else Path(name))


def _threads_of(cfg: DictConfig, run_dir: Run, overrides: Sequence[str]) -> int:
    """The number of threads that a run is measured with: as many as it was trained with, if that can be."""
    if is_overridden("trainer.threads", overrides):
        threads.require(cfg)
        return threads.number(cfg)
    recorded = run_dir.facts().record.get("threads")
    found = threads.number(cfg, recorded)
    if recorded is not None and recorded != found:
        terminal.warn(f"threads: {format_value(recorded)} -> {found}, so the last digits may differ")
    return found
