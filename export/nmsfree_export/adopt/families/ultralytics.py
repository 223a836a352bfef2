"""YOLO26, YOLOv10 and RT-DETR as Ultralytics' package and THU-MIG's YOLOv10 export them.

From their published interface alone: the metadata entries and the outputs of the files. Nothing
here comes from their code. The files are AGPL, and stay so.
"""

import ast

from onnx import numpy_helper

from nmsfree.errors import InputError
from nmsfree.parsing import whole_number
from nmsfree.spec import Head, NmsSpec
from nmsfree.text import shown
from nmsfree_export.adopt.foreign import (
    RESIZES,
    AdoptOptions,
    File,
    Foreign,
    Output,
    axis_of,
    classes_of,
    known,
    read_names,
)

THRESHOLD = 0.25  # what their own prediction shows
_NMS_FREE = (
    "export the NMS-free head: `YOLO(…).export(format='onnx', nms=False)` of a YOLO26 or YOLOv10"
)


def recognize(file: File, options: AdoptOptions) -> Foreign | None:
    """Describe a file of this family; None for another's.

    InputError: it is one, but needs NMS, is of another task, or its metadata are damaged.
    """
    entries = file.metadata
    if entries.get("author") != "Ultralytics" and "Ultralytics" not in entries.get("license", ""):
        return None
    if entries.get("task", "detect") != "detect":
        raise InputError(
            f"{file.path}: made for the task {shown(entries['task'])}, expected detect"
        )
    names = _names(file, options)
    found, detr, said = _output(file, options, len(names))
    rows = axis_of(file, found.names[0], 2 if found.columns_first else 1)
    own_nms = _own_nms(file)
    o2m = found.columns_first or own_nms is not None
    head: Head = "queries" if detr else "o2m" if o2m else "o2o"
    resize = "stretch" if detr else "letterbox"
    dense = found.kind == "dense"
    return Foreign(
        family=f"Ultralytics {'RT-DETR' if detr else f'YOLO, {head} head'}",
        concluded=(
            (
                "project",
                f"Ultralytics, by the entry author; {shown(entries.get('description', ''), 100)}",
            ),
            ("output", f"{list(file.outputs[found.names[0]])}: {said}"),
            ("resize", "stretch, as an RT-DETR's" if detr else "letterbox in the centre, grey 114"),
        ),
        images=file.image,
        size=file.input_size(options, _image_size(file)),
        resize=RESIZES[resize],
        normalize="unit",
        output=found,
        **classes_of(file, options, names, len(names) if dense else None),
        queries=known(rows),
        threshold=THRESHOLD,
        head=head,
        nms=own_nms,
        provenance=file.said("description", "author", "version", "license"),
    )


def _output(file: File, options: AdoptOptions, classes: int) -> tuple[Output, bool, str]:
    """Where the detections are, whether of a DETR, and that in words."""
    output = next(iter(file.outputs))
    sizes = file.outputs[output]
    deformable = file.has("GridSample")  # of a DETR's attention; a YOLO has none
    if len(sizes) != 3:
        raise InputError(f"{file.path}: output '{output}' has the sizes {list(sizes)}, expected 3")
    if sizes[2:] == (6,):
        if file.has("NonMaxSuppression"):
            return _with_own_nms(file, options)
        detr = file.metadata.get("head") == "RTDETRDecoder" or deformable
        found = Output("rows", (output,), "cxcywh-share" if detr else "xyxy")
        return found, detr, "rows of box, score and class"
    if deformable and sizes[2:] == (4 + classes,):
        found = Output("dense", (output,), "cxcywh-share")
        return found, True, f"boxes and {classes} scores of every query"
    if sizes[1] == 4 + classes and options.nms.given:
        found = Output("dense", (output,), "cxcywh", columns_first=True)
        return found, False, f"a box and {classes} scores of every cell"
    raise InputError(
        f"{file.path}: output {list(sizes)} is not NMS-free, it has a box for every cell:"
        f" {_NMS_FREE}, or adopt it as an NMS baseline with --nms plain"
    )


def _with_own_nms(file: File, options: AdoptOptions) -> tuple[Output, bool, str]:
    """A file that was exported with `nms=True` is a baseline as it is.

    InputError: it is not asked for as one, or with other NMS than its own.
    """
    given = options.nms
    if given.nms == "operator" and given.nms_iou is None:
        return Output("rows", tuple(file.outputs)[:1]), False, "rows that its own NMS left"
    advice = "or adopt it as an NMS baseline as it is, with --nms operator"
    if given.given:
        advice = (
            "with another NMS only what has none is adopted: export with nms=None, and adopt that"
            " with --nms plain; or take its own, with --nms operator alone"
        )
    raise InputError(f"{file.path}: holds NonMaxSuppression: {_NMS_FREE}, {advice}")


def _own_nms(file: File) -> NmsSpec | None:
    """The NMS in a graph; its IoU is 0.7, the package's own, where the node does not say it."""
    graph = file.model.graph
    node = next((n for n in graph.node if n.op_type == "NonMaxSuppression"), None)
    if node is None:
        return None
    values = {tensor.name: tensor for tensor in graph.initializer}
    values |= {n.output[0]: n.attribute[0].t for n in graph.node if n.op_type == "Constant"}
    iou = values.get(node.input[3]) if len(node.input) > 3 else None
    return NmsSpec(iou=0.7 if iou is None else float(numpy_helper.to_array(iou).item()))


def _names(file: File, options: AdoptOptions) -> tuple[str, ...]:
    """Class names: the text of a Python dictionary from numbers to names; else those told."""
    text = file.metadata.get("names", "")
    try:
        names = ast.literal_eval(text)
        found = tuple(names[i] for i in range(len(names)))
        if isinstance(names, str) or not all(isinstance(name, str) for name in found):
            raise TypeError("no names")
        return found
    except (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError):
        if options.names is not None:
            return read_names(options.names)
        raise InputError(
            f"{file.path}: names is {shown(text, 60)!r}, expected {{0: 'person', …}}: give --names"
        ) from None


def _image_size(file: File) -> tuple[int | None, ...]:
    try:
        height, width = ast.literal_eval(file.metadata["imgsz"])
        return whole_number(str(height)), whole_number(str(width))
    except (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError):
        return None, None
