"""What watches a run, and writes what it leaves."""

import json

from lightning.pytorch import Callback
from omegaconf import DictConfig, OmegaConf

from snnexp.record.run import Run
from snnexp.training import callbacks, probe, saving
from snnexp.training.assembly import Parts


def measuring(cfg: DictConfig, parts: Parts, processes: int) -> list[Callback]:
    """Callbacks needed for training and testing."""
    read_by = (parts.loss.reads, parts.decoder)
    layers = [*parts.network.neurons()][: None if "spike_count" in read_by else -1]
    watching: list[Callback] = [
        callbacks.RandomNumbers(cfg.seed),
        callbacks.EpochLoss(processes),
        callbacks.QuietLayers(layers),
        callbacks.TestCounts(layers, parts.decoder),
    ]
    return [*watching, *([callbacks.SeedMeanLoss(processes)] if parts.decoder is None else [])]


def watching_over(cfg: DictConfig, parts: Parts, run_dir: Run, pictures: bool = True) -> list[Callback]:
    """All that watches a run and writes what it leaves; without ``pictures``, arrays are recorded and not drawn."""
    logger = cfg.logger
    text = json.dumps(OmegaConf.to_container(cfg))
    saver = saving.Checkpoints(run_dir, text, logger.save_every_n_epochs, logger.save_every_s)
    watching = measuring(cfg, parts, parts.trainer.world_size)
    (counts,) = (callback for callback in watching if isinstance(callback, callbacks.TestCounts))
    often = (logger.get("draw_every_n_epochs", 0), logger.get("draw_every_s", 0))
    drawing = probe.Probe(run_dir, parts.decoder, counts, cfg.seed, *often, pictures)
    histograms = callbacks.ParameterHistograms(logger.save_every_n_epochs)
    # what saves comes after what counts
    return [*watching, histograms, saver, drawing]
