"""Another project's graph, between the input and the outputs of the contract.

Its own nodes stay as they are, under the prefix `net/`. Nodes before them (`in/`) make its input of
uint8 BGR pixels; nodes behind them (`out/`) choose the exact best K of its scores.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, compose, helper, numpy_helper

from nmsfree.spec import ModelSpec
from nmsfree_export.adopt.foreign import MEAN_RGB, STD_RGB, Foreign, candidates_of
from nmsfree_export.graph.contract import (
    CANDIDATES,
    describe,
    images_of,
    made_of,
    outputs_of,
    set_inputs,
    set_outputs,
)
from nmsfree_export.graph.nms import append_nms
from nmsfree_export.graph.nodes import Nodes

FLOAT, HALF, INT64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64


def opset_of(model: ModelProto) -> int:
    """The version of the standard operators that a model uses."""
    return max(
        int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")
    )


def rewrite(model: ModelProto, foreign: Foreign, spec: ModelSpec) -> ModelProto:
    """Return the adopted model with its description; the original is left as it is."""
    adopted = compose.add_prefix(model, "net/")
    graph = adopted.graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in [*graph.input, *graph.output]}
    opset = opset_of(model)
    before, behind = Nodes("in/", opset), Nodes("out/", opset)
    _add_input(before, adopted, foreign, kinds)
    _add_other_inputs(before, model, foreign, spec)
    found = [
        behind("Cast", name, to=FLOAT) if kinds[name] == HALF else name
        for name in (f"net/{output}" for output in foreign.output.names)
    ]
    read = {"dense": _from_dense, "sorted": _from_sorted}.get(foreign.output.kind, _from_rows)
    count = candidates_of(foreign, spec)
    boxes, scores, classes = read(behind, found, foreign, replace(spec, top_k=count))
    plain_end = spec.nms is None or foreign.own_nms
    if plain_end:
        behind("Identity", scores, name="detection_scores")
        behind.results(boxes, classes, behind.of(spec.score_floor, np.float32), spec)
    else:
        for name, value in zip(CANDIDATES, (boxes, scores, classes), strict=True):
            behind("Identity", value, name=name)
    own = list(graph.node)
    del graph.node[:], graph.value_info[:]
    graph.node.extend([*before.nodes, *own, *behind.nodes])
    graph.initializer.extend([*before.constants, *behind.constants])
    n = spec.batch or "batch"
    set_inputs(adopted, images_of(spec, n))
    if plain_end:
        set_outputs(adopted, outputs_of(spec, n))
    else:
        candidates = zip(CANDIDATES, ("float32", "float32", "int64"), ((4,), (), ()), strict=True)
        set_outputs(adopted, {name: (kind, (n, count, *size)) for name, kind, size in candidates})
        append_nms(adopted, spec)
    _drop_unused(adopted)
    adopted.producer_name = "nmsfree"
    adopted.ir_version = max(adopted.ir_version, 8)  # older ones list weights among the inputs
    describe(adopted, spec)
    return adopted


def _drop_unused(adopted: ModelProto) -> None:
    """Leave out what only other outputs needed, as masks, and domains that no node uses."""
    graph = adopted.graph
    nodes, needed = made_of(graph.node, (value.name for value in graph.output))
    weights = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(weights)
    for entry in [entry for entry in adopted.opset_import if entry.domain]:
        adopted.opset_import.remove(entry)


def _add_input(add: Nodes, adopted: ModelProto, foreign: Foreign, kinds: dict[str, int]) -> None:
    """uint8 BGR [N, H, W, 3] → what the network takes.

    Where the first thing it does is a convolution in float32, that takes the channels' order and
    the division; a half would hold weights that small as subnormals.
    """
    image = f"net/{foreign.images}"
    mean, deviation = (
        (MEAN_RGB, STD_RGB) if foreign.normalize == "imagenet" else ((0, 0, 0), (1, 1, 1))
    )
    order = slice(None, None, 1 if foreign.bgr else -1)  # of the input's channels, in BGR's
    shift = 255 * np.array(mean[order], np.float64)[:, None, None]
    scale = 1 / (255 * np.array(deviation[order], np.float64)[:, None, None])
    if foreign.normalize == "none":
        scale = np.ones_like(scale)
    # Cast first: TensorRT-RTX does not transpose uint8.
    pixels = add("Cast", "images", to=FLOAT)
    pixels = add("Transpose", pixels, perm=[0, 3, 1, 2])
    if shift.any():
        pixels = add("Sub", pixels, add.of(shift, np.float32))
    if kinds[image] == FLOAT and _fold(adopted, image, scale, flip=not foreign.bgr):
        add("Identity", pixels, name=image)
        return
    if foreign.normalize != "none":
        pixels = add("Mul", pixels, add.of(scale, np.float32))
    if not foreign.bgr:
        pixels = add("Gather", pixels, add.of([2, 1, 0]), axis=1)
    add("Cast", pixels, name=image, to=kinds[image])


def _fold(adopted: ModelProto, image: str, scale: Any, flip: bool) -> bool:
    """Let the first convolution take the scale of each channel and their order, if it can."""
    graph = adopted.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    readers = [n for n in graph.node if image in n.input and n.op_type != "Shape"]
    uses = [name for node in graph.node for name in node.input]
    for node in readers:
        groups = [a.i for a in node.attribute if a.name == "group"]
        own = node.op_type == "Conv" and node.input[1] in weights and groups in ([], [1])
        if not own or uses.count(node.input[1]) > 1:
            return False
    for node in readers:
        tensor = weights[node.input[1]]
        weight = numpy_helper.to_array(tensor).astype(np.float64)  # [out, 3, h, w]
        weight = (weight[:, ::-1] if flip else weight) * scale
        tensor.CopyFrom(numpy_helper.from_array(weight.astype(np.float32), tensor.name))
    return bool(readers)


def _add_other_inputs(add: Nodes, model: ModelProto, foreign: Foreign, spec: ModelSpec) -> None:
    """Inputs beside the picture become constants: boxes shall come in pixels of the input.

    RT-DETR's own script gives `orig_target_sizes` as (width, height); Paddle divides `im_shape`,
    (height, width), by `scale_factor`; Hugging Face's `pixel_mask` is 1 where the picture is.
    """
    height, width = spec.height, spec.width
    weights = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        if value.name in weights or value.name == foreign.images:
            continue
        sizes = [d.dim_value for d in value.type.tensor_type.shape.dim[1:]]
        found: Any = {
            "orig_target_sizes": (width, height),
            "im_shape": (height, width),
            "scale_factor": (1, 1),
            "pixel_mask": np.ones([size or (height, width)[i] for i, size in enumerate(sizes)]),
        }[value.name]
        kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        row = np.asarray(found, kind)[None]
        if spec.batch is None:
            count = add("Shape", "images", start=0, end=1)
            shape = add("Concat", count, add.of(row.shape[1:]), axis=0)
        else:
            shape = add.of([spec.batch, *row.shape[1:]])
        add("Expand", add.of(row, kind), shape, name=f"net/{value.name}")


def _from_rows(
    add: Nodes, outputs: list[str], foreign: Foreign, spec: ModelSpec
) -> tuple[str, str, str]:
    """[N, K, 6] → boxes, scores [N, K], classes int64 [N, K] by their number in the file."""
    rows, places = outputs[0], ([0, 1, 2, 3], 4, 5)
    if foreign.output.kind == "paddle":
        rows, places = add("Reshape", rows, add.of([-1, foreign.rows, 6])), ([2, 3, 4, 5], 1, 0)
    # No Slice: OpenVINO takes away one that GatherElements reads, and refuses what is left.
    boxes, scores, classes = (add("Gather", rows, add.of(place), axis=2) for place in places)
    boxes = _corners(add, boxes, foreign, spec)
    return _chosen(add, boxes, scores, add("Cast", classes, to=INT64), foreign, spec)


def _from_sorted(
    add: Nodes, outputs: list[str], foreign: Foreign, spec: ModelSpec
) -> tuple[str, str, str]:
    labels, boxes, scores = outputs
    classes = add("Cast", labels, to=INT64)
    return _chosen(add, _corners(add, boxes, foreign, spec), scores, classes, foreign, spec)


def _chosen(
    add: Nodes, boxes: str, scores: str, classes: str, foreign: Foreign, spec: ModelSpec
) -> tuple[str, str, str]:
    """The best rows of the classes that are kept, their numbers those of the description."""
    numbers = np.full(max(foreign.columns) + 1, -1, np.int64)
    numbers[list(foreign.columns)] = range(len(foreign.columns))
    if (numbers != range(len(numbers))).any():
        known = add("Clip", classes, add.of(0), add.of(len(numbers) - 1))
        number = add("Gather", add.of(numbers), known)
        kept = add("And", add("Equal", known, classes), add("GreaterOrEqual", number, add.of(0)))
        scores = add("Where", kept, scores, add.of(0, np.float32))
        classes = add("Max", number, add.of(0))
    return add.best(boxes, scores, classes, spec.top_k)


def _from_dense(
    add: Nodes, outputs: list[str], foreign: Foreign, spec: ModelSpec
) -> tuple[str, str, str]:
    """Boxes [N, Q, 4] and scores [N, Q, C] → the best K of all queries × classes.

    Columns that are no class go first, or they would take rows. Of more queries than rows those
    with the best class are enough: a pair among the best K lies in one of them.
    """
    found = foreign.output
    if len(outputs) == 1:
        joined = outputs[0]
        if found.columns_first:
            joined = add("Transpose", joined, perm=[0, 2, 1])
        boxes = add("Gather", joined, add.of(range(4)), axis=2)  # no Slice: see `_from_rows`
        scores = add("Gather", joined, add.of([4 + c for c in foreign.columns]), axis=2)
    else:
        boxes = outputs[0]
        scores = add("Gather", outputs[1], add.of(foreign.columns), axis=2)
    count, queries = len(foreign.columns), foreign.queries
    if queries is None or queries > spec.top_k:
        _, places = add.top(add.maximum(scores), spec.top_k)
        scores, boxes = add.rows(scores, places, count), add.rows(boxes, places, 4)
    flat = add("Reshape", scores, add.of([0, -1]))
    best, places = add.top(flat, spec.top_k)
    query, label = add("Div", places, add.of(count)), add("Mod", places, add.of(count))
    boxes = _corners(add, add.rows(boxes, query, 4), foreign, spec)
    return boxes, add("Sigmoid", best) if found.logits else best, label


def _corners(add: Nodes, boxes: str, foreign: Foreign, spec: ModelSpec) -> str:
    """Boxes [N, K, 4] as corners in pixels of the input."""
    form, _, share = foreign.output.boxes.partition("-")
    if form == "cxcywh":
        centre, size = (
            add("Slice", boxes, add.of([a]), add.of([b]), add.of([2])) for a, b in ((0, 2), (2, 4))
        )
        half = add("Mul", size, add.of(0.5, np.float32))
        boxes = add("Concat", add("Sub", centre, half), add("Add", centre, half), axis=2)
    if share:
        boxes = add("Mul", boxes, add.limit(spec))
    return boxes
