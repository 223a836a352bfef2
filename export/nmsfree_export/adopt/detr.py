"""Detection transformers by their outputs alone: these files carry no metadata.

Sorted triples (labels, boxes, scores) of RT-DETR, D-FINE, DEIM and DEIMv2; boxes and raw logits of
RF-DETR and LW-DETR (dets, labels), and of other exports (logits and pred_boxes).
"""

from typing import Any

from nmsfree.datasets.rows import COCO_CATEGORY_IDS, COCO_NAMES
from nmsfree.errors import InputError
from nmsfree.spec import Resize
from nmsfree_export.adopt.foreign import (
    AdoptOptions,
    File,
    Foreign,
    Output,
    classes_of,
    count_of,
    known,
    needed_names,
)
from nmsfree_export.adopt.libreyolo import ANTIALIASED, vision_transformer

SPARSE_COCO = 91  # columns: COCO's own ids, eleven of which no category has
THRESHOLD = 0.4
_LOGITS = ("labels", "pred_logits", "logits")
_BOXES = ("dets", "pred_boxes", "boxes")


def recognize(file: File, options: AdoptOptions) -> Foreign | None:
    """Describe a file of this family; None for another's.

    Raises:
        InputError: class names, or the place of the background, must be told.
    """
    if {"labels", "boxes", "scores"} <= file.outputs.keys() and "orig_target_sizes" in file.inputs:
        return _sorted(file, options)
    logits = next((name for name in _LOGITS if name in file.outputs), None)
    boxes = next((name for name in _BOXES if name in file.outputs), None)
    if logits is None or boxes is None or file.outputs[boxes][2:] != (4,):
        return None
    rf_detr = boxes == "dets"
    width = count_of(file, logits, 2)
    concluded = [("output", f"{boxes} and raw {logits} of {width} columns")]
    if width == SPARSE_COCO and options.names in (None, "coco") and options.background is None:
        names, places = COCO_NAMES, COCO_CATEGORY_IDS
        concluded.append(("classes", "91 columns: COCO's own ids, eleven of them unused"))
    else:
        names = needed_names(file, options)
        places = _places(file, width, len(names), options)
        concluded.append(("classes", f"columns {places[0]} … {places[-1]} of {width}"))
    kept = classes_of(file, options, len(places), names)
    kept["columns"] = tuple(places[i] for i in kept["columns"])
    # Without antialiasing: RF-DETR trains so.
    resize = Resize("stretch") if rf_detr else ANTIALIASED
    mean = rf_detr or vision_transformer(file)
    concluded.append(("normalize", "ImageNet's mean and deviation" if mean else "÷ 255"))
    return _described(
        file,
        options,
        family="RF-DETR or LW-DETR" if rf_detr else "a detection transformer with raw logits",
        concluded=concluded,
        resize=resize,
        mean=mean,
        output=Output("dense", (boxes, logits), "cxcywh-share", logits=True),
        rows=file.outputs[boxes][1],
        kept=kept,
    )


def _sorted(file: File, options: AdoptOptions) -> Foreign:
    names, mean = needed_names(file, options), vision_transformer(file)
    return _described(
        file,
        options,
        family="RT-DETR, D-FINE or DEIM",
        concluded=[
            ("output", "labels, boxes and scores, sorted, by orig_target_sizes"),
            ("normalize", "ImageNet's, by its patches" if mean else "÷ 255, by its convolutions"),
        ],
        resize=ANTIALIASED,
        mean=mean,
        output=Output("sorted", ("labels", "boxes", "scores")),
        rows=file.outputs["scores"][1],
        kept=classes_of(file, options, len(names), names),
    )


def _places(file: File, width: int, names: int, options: AdoptOptions) -> tuple[int, ...]:
    """The columns that are classes."""
    told = options.background or ("none" if names == width else None)
    if told is None:
        raise InputError(
            f"{file.path}: {width} columns for {names} names, so one may be the background: give"
            " --background last (as RF-DETR 1.11 has it), first or none"
        )
    hidden = {"none": None, "first": 0, "last": width - 1}[told]
    return tuple(i for i in range(width) if i != hidden)


def _described(
    file: File,
    options: AdoptOptions,
    *,
    family: str,
    concluded: list[tuple[str, str]],
    resize: Resize,
    mean: bool,
    output: Output,
    rows: Any,
    kept: dict[str, Any],
) -> Foreign:
    image = next(name for name, sizes in file.inputs.items() if len(sizes) == 4)
    concluded.append(("resize", "stretch" + (", antialiased" if resize.antialias else "")))
    return Foreign(
        family=family,
        concluded=tuple(concluded),
        images=image,
        size=file.input_size(options, None),
        resize=resize,
        normalize="imagenet" if mean else "unit",
        output=output,
        **kept,
        rows=min(300, rows) if isinstance(rows, int) and rows else 300,
        queries=known(rows),
        threshold=THRESHOLD,
        head="queries",
    )
