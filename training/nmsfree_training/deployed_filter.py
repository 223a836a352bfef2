"""Another τ for a trained rival filter: fewer duplicates, or more of two objects that overlap."""

from dataclasses import replace

from nmsfree.errors import InputError
from nmsfree.spec import ModelSpec
from nmsfree_training.checkpoint import Checkpoint

KEY = "deployed_rival_iou"  # entry of a file's provenance, where it was asked for at export


def with_rival_iou(checkpoint: Checkpoint, iou: float) -> Checkpoint:
    """Return the checkpoint with this τ, see `rival_filter.py`; nothing is trained again.

    Recommended thresholds stay, and say with which τ they were measured.

    Raises:
        InputError: the network has no rival filter, or the IoU is not one.
    """
    model, thresholds = checkpoint.model, checkpoint.thresholds
    if not model.rival_iou:
        raise InputError(
            f"rival IoU is {iou:g}, but {model.name} was trained without a rival filter:"
            " leave it out, or train with --rival-iou"
        )
    if not 0 < iou <= 1:
        raise InputError(f"rival IoU is {iou:g}, expected more than 0, up to 1")
    own = model.deployed_rival_iou or model.rival_iou
    if iou == own:
        return checkpoint
    if thresholds is not None:
        where = f"{thresholds.measured_on}, with rival IoU {own:g}"
        thresholds = replace(thresholds, measured_on=where)
    return replace(
        checkpoint,
        model=replace(model, deployed_rival_iou=iou),
        provenance={**checkpoint.provenance, KEY: f"{iou:g}"},
        thresholds=thresholds,
    )


def deployed_like(checkpoint: Checkpoint, spec: ModelSpec) -> Checkpoint:
    """Return the checkpoint with the τ that a deployed model was exported with.

    Raises:
        InputError: as `with_rival_iou`.
    """
    iou = spec.provenance.get(KEY)
    return checkpoint if iou is None else with_rival_iou(checkpoint, float(iou))
