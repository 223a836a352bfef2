"""Detectors that LibreYOLO exports: DETRs with raw logits, and the one-to-one YOLOv9."""

from nmsfree.errors import InputError
from nmsfree.parsing import decode_json, whole_number
from nmsfree.text import shown
from nmsfree_export.adopt.foreign import (
    RESIZES,
    AdoptOptions,
    File,
    Foreign,
    Output,
    axis_of,
    classes_of,
    count_of,
    in_order,
    known,
    of_queries,
    vision_transformer,
)

BY_MEAN = {"rfdetr", "lwdetr", "ec", "gtr"}  # trained with ImageNet's mean and deviation


def recognize(file: File, options: AdoptOptions) -> Foreign | None:
    """Describe a file of this family; None for another's.

    InputError: it is one of another task, or of a family that is not NMS-free.
    """
    entries = file.metadata
    if "libreyolo_version" not in entries:
        return None
    family, task = shown(entries.get("model_family", "?"), 60), entries.get("task", "detect")
    if task != "detect":
        raise InputError(f"{file.path}: made for the task {shown(task)}, expected detect")
    outputs = tuple(file.outputs)
    boxes = next((name for name in outputs if file.outputs[name][2:] == (4,)), None)
    if len(outputs) == 1 and family == "yolo9_e2e":
        center = "center" in entries.get("letterbox", "")
        resize = "letterbox" if center else "letterbox-top-left"
        found = {
            "output": Output("dense", outputs, "xyxy", columns_first=True),
            **classes_of(file, options, _names(file), count_of(file, outputs[0], 1) - 4),
            "queries": known(axis_of(file, outputs[0], 2)),
        }
    elif len(outputs) >= 2 and boxes is not None:
        logits = next(name for name in outputs if name != boxes)
        resize = "stretch" if family == "rfdetr" else "stretch-antialiased"
        found = of_queries(file, options, boxes, logits, _names(file))
    else:
        raise InputError(
            f"{file.path}: outputs {', '.join(outputs)} of {family} are not those of an"
            " NMS-free detector (yolo9_e2e, or one with pred_logits and pred_boxes)"
        )
    usual = tuple(whole_number(entries.get(key, "")) for key in ("imgsz_h", "imgsz_w"))
    mean = family in BY_MEAN or (family == "deimv2" and vision_transformer(file))
    return Foreign(
        family=f"LibreYOLO {family}",
        concluded=(
            ("project", f"LibreYOLO, {family}, by the entry model_family"),
            ("normalize", "ImageNet's mean and deviation" if mean else "÷ 255"),
            ("resize", f"{resize}, by family"),
        ),
        images=file.image,
        size=file.input_size(options, usual),
        resize=RESIZES[resize],
        normalize="imagenet" if mean else "unit",
        **found,
        threshold=0.4 if found["output"].logits else 0.25,
        provenance=file.said("model_family", "size", "libreyolo_version", "license"),
    )


def _names(file: File) -> tuple[str, ...] | None:
    text = file.metadata.get("names")
    if text is None:
        return None
    where = f"{file.path}: metadata entry names"
    return in_order(decode_json(text, dict[str, str], where, InputError, "give --names"), where)
