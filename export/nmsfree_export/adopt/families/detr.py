"""Detection transformers by their outputs alone: these files carry no metadata.

Sorted triples (labels, boxes, scores) of RT-DETR, D-FINE, DEIM and DEIMv2; boxes and raw logits of
RF-DETR and LW-DETR (dets, labels), and of other exports (logits and pred_boxes).
"""

from nmsfree.errors import InputError
from nmsfree_export.adopt.foreign import (
    RESIZES,
    AdoptOptions,
    File,
    Foreign,
    Output,
    axis_of,
    classes_of,
    count_of,
    known,
    of_queries,
    vision_transformer,
)

THRESHOLD = 0.4
LOGITS = ("labels", "pred_logits", "logits")
BOXES = ("dets", "pred_boxes", "boxes")

NOT_SAID = ("normalize", "resize", "boxes")  # by files of no project that is known


def recognize(file: File, options: AdoptOptions) -> Foreign | None:
    """Describe a file of this family; None for another's.

    InputError: class names, or the place of the background, must be told; of raw logits of no
    known project more than that.
    """
    boxes = next((name for name in BOXES if name in file.outputs), None)
    logits = next((name for name in LOGITS if name in file.outputs), None)
    if boxes is None or logits is None:
        return None
    triple = "scores" in file.outputs and "orig_target_sizes" in file.inputs
    if not triple and file.outputs[boxes][2:] != (4,):
        return None
    rf_detr = boxes == "dets"
    mean = rf_detr or vision_transformer(file)
    if triple:
        family = "RT-DETR, D-FINE or DEIM"
        found = {
            "output": Output("sorted", ("labels", "boxes", "scores")),
            **classes_of(file, options),
            "queries": known(axis_of(file, boxes, 1)),
            "head": "queries",
        }
        said = "labels, boxes and scores, sorted, by orig_target_sizes"
    else:
        family = "RF-DETR or LW-DETR"
        if not rf_detr:
            family = "a detection transformer with raw logits"
            _check_told(file, options)
        found = of_queries(file, options, boxes, logits)
        width, kept = count_of(file, logits, 2), len(found["columns"])
        said = f"{boxes} and raw {logits} of {width} columns, {kept} of them kept"
    # Without antialiasing: RF-DETR trains so.
    resize = "stretch" if rf_detr else "stretch-antialiased"
    return Foreign(
        family=family,
        concluded=(
            ("output", said),
            ("normalize", "ImageNet's mean and deviation" if mean else "÷ 255"),
            ("resize", resize),
        ),
        images=file.image,
        size=file.input_size(options),
        resize=RESIZES[resize],
        normalize="imagenet" if mean else "unit",
        **found,
        threshold=THRESHOLD,
    )


def _check_told(file: File, options: AdoptOptions) -> None:
    missing = [f"--{name}" for name in NOT_SAID if getattr(options, name) is None]
    if missing:
        raise InputError(
            f"{file.path}: is of no project that is known by its outputs, and does not say how it"
            f" is fed and read: give {', '.join(missing)}, or labelled pictures with"
            " --find-preprocessing"
        )
