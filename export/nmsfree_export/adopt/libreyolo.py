"""Detectors that LibreYOLO exports: DETRs with raw logits, and the one-to-one YOLOv9."""

import re

from nmsfree.decode import decode_json
from nmsfree.errors import InputError
from nmsfree.spec import Head, Resize
from nmsfree.text import shown
from nmsfree_export.adopt.foreign import (
    AdoptOptions,
    File,
    Foreign,
    Output,
    classes_of,
    count_of,
    known,
)

# Where no other is told; all were trained with pictures that Pillow had stretched.
ANTIALIASED = Resize("stretch", antialias=True)
BY_MEAN = {"rfdetr", "lwdetr", "ec", "gtr"}  # trained with ImageNet's mean and deviation


def recognize(file: File, options: AdoptOptions) -> Foreign | None:
    """Describe a file of this family; None for another's.

    Raises:
        InputError: it is one of another task, or of a family that is not NMS-free.
    """
    entries = file.metadata
    if "libreyolo_version" not in entries:
        return None
    family, task = entries.get("model_family", "?"), entries.get("task", "detect")
    if task != "detect":
        raise InputError(f"{file.path}: made for the task {shown(task)}, expected detect")
    names = _names(file)
    image = next(iter(file.inputs))
    usual = [int(entries[k]) for k in ("imgsz_h", "imgsz_w") if entries.get(k, "").isdecimal()]
    size = file.input_size(options, (usual[0], usual[1]) if len(usual) == 2 else None)
    outputs = tuple(file.outputs)
    boxes = next((name for name in outputs if file.outputs[name][2:] == (4,)), None)
    head: Head
    if len(outputs) == 1 and family == "yolo9_e2e":
        found = Output("dense", outputs, "xyxy", columns_first=True)
        resize = Resize(
            place="center" if "center" in entries.get("letterbox", "") else "top-left",
            pad=(114, 114, 114),
        )
        count, head = count_of(file, outputs[0], 1) - 4, "o2o"
        queries = known(file.outputs[outputs[0]][2])
    elif len(outputs) >= 2 and boxes is not None:
        logits = next(name for name in outputs if name != boxes)
        found = Output("dense", (boxes, logits), "cxcywh-share", logits=True)
        resize = Resize("stretch") if family == "rfdetr" else ANTIALIASED
        count, head = count_of(file, logits, 2), "queries"
        queries = known(file.outputs[boxes][1])
    else:
        raise InputError(
            f"{file.path}: outputs {', '.join(outputs)} of {shown(family)} are not those of an"
            " NMS-free detector (yolo9_e2e, or one with pred_logits and pred_boxes)"
        )
    patches = vision_transformer(file)
    mean = family in BY_MEAN or (family == "deimv2" and patches)
    return Foreign(
        family=f"LibreYOLO {family}",
        concluded=(
            ("project", f"LibreYOLO, {shown(family)}, by the entry model_family"),
            ("normalize", "ImageNet's mean and deviation" if mean else "÷ 255"),
            ("resize", f"{resize.kind}{', antialiased' if resize.antialias else ''}, by family"),
        ),
        images=image,
        size=size,
        resize=resize,
        normalize="imagenet" if mean else "unit",
        output=found,
        **classes_of(file, options, count, names),
        rows=min(300, queries or 300),
        queries=queries,
        threshold=0.4 if head == "queries" else 0.25,
        head=head,
        provenance={
            key: shown(entries[key], 400)
            for key in ("model_family", "size", "libreyolo_version", "license")
            if key in entries
        },
    )


def vision_transformer(file: File) -> bool:
    """Whether the picture is cut into patches: DINOv3 and its like want ImageNet's mean."""
    weights = {tensor.name: tensor.dims for tensor in file.model.graph.initializer}
    image = next(iter(file.inputs))
    for node in file.model.graph.node:
        if node.op_type == "Conv" and image in node.input:
            side = weights.get(node.input[1], [])[2:]
            return len(side) == 2 and min(side) >= 8
    return False


def _names(file: File) -> tuple[str, ...] | None:
    text = file.metadata.get("names")
    if text is None:
        return None
    where = f"{file.path}: metadata entry names"
    names = decode_json(text, dict[str, str], where, InputError, "give --names")
    order = sorted(names, key=lambda key: int(re.sub("[^0-9]", "", key) or -1))
    return tuple(names[key] for key in order)
