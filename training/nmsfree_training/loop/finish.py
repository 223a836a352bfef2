"""The end of a run: the best weights are analysed, get their thresholds, and pictures are made."""

import logging
from dataclasses import replace
from pathlib import Path

from nmsfree.errors import NmsfreeError
from nmsfree.evaluation.analysis import Analysis, analyse
from nmsfree.evaluation.plots import write_plots
from nmsfree_training.loop.trainer import Trainer
from nmsfree_training.model.detector import place
from nmsfree_training.weights.checkpoint import load_checkpoint, save_checkpoint

logger = logging.getLogger(__name__)


def finish(trainer: Trainer) -> Analysis | None:
    """Measure the best weights on the validation set; rank 0 gets the outcome.

    The recommended thresholds are added to `best.safetensors`; `confusion_matrix.png` and
    `pr_curve.png` are written beside it.
    """
    if trainer.validator is None:
        return None
    world, validator = trainer.world, trainer.validator
    path = trainer.outputs.folder / "best.safetensors"
    checkpoint = world.on_main(lambda: load_checkpoint(path))
    # A network of its own: an interrupt in here saves the trainer's, which must stay the last.
    network = place(checkpoint.build(), trainer.world.device)
    results = validator.results(network)
    analyses: list[Analysis] = []

    def conclude() -> None:
        analysis = analyse(validator.dataset, results, validator.detector(network).spec)
        save_checkpoint(replace(checkpoint, thresholds=analysis.thresholds), path)
        write_plots(analysis, trainer.outputs.folder)
        analyses.append(analysis)

    world.on_main(conclude)
    return analyses[0] if analyses else None


def draw_curves(folder: Path, title: str) -> Path | None:
    """Draw `results.png` from `metrics.jsonl`; a run that has no epoch yet has none."""
    metrics, picture = folder / "metrics.jsonl", folder / "results.png"
    if not metrics.is_file():
        return None
    from nmsfree_training.monitor.curves import write_curves  # brings matplotlib

    try:
        write_curves(metrics, picture, title)
    except NmsfreeError as error:
        logger.warning("%s: no picture (%s)", picture, error)
        return None
    return picture
