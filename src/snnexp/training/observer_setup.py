"""What watches a run, and writes what it leaves."""

import json

from omegaconf import DictConfig, OmegaConf

from snnexp.losses import CrossEntropy
from snnexp.neurons import need_spikes, statistic_names
from snnexp.training import early_stopping, observers, predictions, probe, saving
from snnexp.training.assembly import Parts
from snnexp.training.members import Observer
from snnexp.training.start import Start
from snnexp.training.task import union


def evaluation_observers(cfg: DictConfig, parts: Parts, processes: int) -> list[Observer]:
    """What counts and checks, in training and in a test."""
    layers = [*parts.network.neurons()]
    read = union([parts.loss.reads, *([] if parts.decoder is None else [parts.decoder.reads])])
    layers = layers if need_spikes(read) else layers[:-1]
    watching: list[Observer] = [
        observers.ProjectParameters(),
        observers.DivergenceGuard(),
        observers.EpochLoss(processes),
        observers.ActivityMonitor(layers),
        observers.EvaluationCounts(layers, parts.decoder),
    ]
    if isinstance(parts.loss, CrossEntropy) and cfg.loss.get("class_weights") == "balanced":
        watching.append(observers.ClassWeights(parts.task))
    if parts.data.scaling is not None:
        watching.append(observers.InputScaling(parts.data.scaling))
    return [*watching, *([observers.TutorialMeanLoss(processes)] if has_tutorial_mean_loss(parts) else [])]


def has_tutorial_mean_loss(parts: Parts) -> bool:
    """Whether a run is one of those whose mean loss the regression tutorial prints: a membrane follows a trace."""
    return parts.data.target == "trace" and statistic_names(parts.loss.reads) == ("membrane",)


def run_observers(start: Start) -> list[Observer]:
    """All that watches a run whose parts are built, and writes what it leaves."""
    cfg, parts, run_dir = start.cfg, start.parts, start.run
    logger = cfg.logger
    text = json.dumps(OmegaConf.to_container(cfg))
    saver = saving.MemberCheckpoints(run_dir, text)
    watching = evaluation_observers(cfg, parts, parts.trainer.world_size)
    if (patience := cfg.trainer.get("early_stopping")) is not None:
        watching.append(early_stopping.EarlyStopping(patience))
    (counts,) = (callback for callback in watching if isinstance(callback, observers.EvaluationCounts))
    often = (logger.get("draw_every_n_epochs", 0), logger.get("draw_every_s", 0))
    drawing = probe.Probe(run_dir, parts.data, parts.decoder, counts, cfg.seed, *often)
    histograms = observers.ParameterHistograms(logger.save_every_n_epochs)
    if logger.get("predictions", False):
        watching.append(predictions.PredictionsOfRun(run_dir, parts.decoder, parts.loss))
    # what saves comes after what counts
    return [*watching, histograms, saver, drawing, *start.extra_observers]
