"""Creates the observers of a run or an evaluation."""

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
    """Return the observers that count and check, for training and test."""
    layers = [*parts.network.neurons()]
    read = union([parts.loss.reads, *([] if parts.decoder is None else [parts.decoder.reads])])
    layers = layers if need_spikes(read) else layers[:-1]
    result: list[Observer] = [
        observers.ProjectParameters(),
        observers.DivergenceGuard(),
        observers.EpochLoss(processes),
        observers.ActivityMonitor(layers),
        observers.EvaluationCounts(layers, parts.decoder),
    ]
    if isinstance(parts.loss, CrossEntropy) and cfg.loss.get("class_weights") == "balanced":
        result.append(observers.ClassWeights(parts.task))
    if parts.data.scaling is not None:
        result.append(observers.InputScaling(parts.data.scaling))
    return [*result, *([observers.TutorialMeanLoss(processes)] if has_tutorial_mean_loss(parts) else [])]


def has_tutorial_mean_loss(parts: Parts) -> bool:
    """Return True for a run like the regression tutorial, which prints its mean loss: the target is a trace."""
    return parts.data.target == "trace" and statistic_names(parts.loss.reads) == ("membrane",)


def run_observers(start: Start) -> list[Observer]:
    """Return all observers of a run whose parts are built."""
    cfg, parts, run_dir = start.cfg, start.parts, start.run
    logger = cfg.logger
    text = json.dumps(OmegaConf.to_container(cfg))
    saver = saving.MemberCheckpoints(run_dir, text)
    result = evaluation_observers(cfg, parts, parts.trainer.world_size)
    if (patience := cfg.trainer.get("early_stopping")) is not None:
        result.append(early_stopping.EarlyStopping(patience))
    (counts,) = (callback for callback in result if isinstance(callback, observers.EvaluationCounts))
    often = (logger.get("draw_every_n_epochs", 0), logger.get("draw_every_s", 0))
    drawing = probe.Probe(run_dir, parts.data, parts.decoder, counts, cfg.seed, *often)
    histograms = observers.ParameterHistograms(logger.save_every_n_epochs)
    if logger.get("predictions", False):
        result.append(predictions.PredictionsOfRun(run_dir, parts.decoder, parts.loss))
    # observers with a state precede the one that saves
    return [*result, histograms, saver, drawing, *start.extra_observers]
