"""Another project's graph, between the input and the outputs of the contract.

Its own nodes stay as they are, under the prefix `net/`. Nodes before them (`in/`) make its input of
uint8 BGR pixels; nodes behind them (`out/`) choose the exact best K of its scores.
"""

from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, compose, helper, numpy_helper

from nmsfree.spec import ModelSpec
from nmsfree_export.adopt.foreign import Foreign
from nmsfree_export.graph.contract import describe, images_of, outputs_of, set_outputs

MEAN_RGB, STD_RGB = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet, of values in 0 … 1
FLOAT, HALF, INT32, INT64 = (
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.INT32,
    TensorProto.INT64,
)


class _Nodes:
    """Nodes as they are written down: a call adds one and returns the name of its output."""

    def __init__(self, prefix: str, opset: int) -> None:
        self.prefix, self.opset = prefix, opset
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def __call__(self, op: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        output = name or f"{self.prefix}{op}_{len(self.nodes)}"
        self._add(op, inputs, [output], attributes)
        return output

    def top(self, scores: str, k: int, name: str = "") -> tuple[str, str]:
        """The best k [N, k] along the second axis of scores [N, M], and their places."""
        places = f"{self.prefix}places_{len(self.nodes)}"
        best = name or f"{self.prefix}best_{len(self.nodes)}"
        self._add("TopK", [scores, self.of([k])], [best, places], {"axis": 1})
        return best, places

    def rows(self, values: str, places: str, columns: int) -> str:
        """Rows [N, k, columns] of values [N, M, columns] at places [N, k]."""
        wide = [self("Unsqueeze", places, self.of([2]))] * columns
        index = wide[0] if columns == 1 else self("Concat", *wide, axis=2)
        return self("GatherElements", values, index, axis=1)

    def maximum(self, values: str) -> str:
        """[N, M, C] → [N, M]; the axis became an input with opset 18."""
        if self.opset < 18:
            return self("ReduceMax", values, axes=[2], keepdims=0)
        return self("ReduceMax", values, self.of([2]), keepdims=0)

    def of(self, value: Any, kind: Any = np.int64) -> str:
        """A constant."""
        name = f"{self.prefix}constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, kind), name))
        return name

    def _add(self, op: str, inputs: Any, outputs: list[str], attributes: dict[str, Any]) -> None:
        name = f"{self.prefix}{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, outputs, name, **attributes))


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
    before, behind = _Nodes("in/", opset), _Nodes("out/", opset)
    _add_input(before, adopted, foreign, kinds)
    if foreign.output.kind == "sorted":
        _add_sizes(before, spec)
    found = [
        behind("Cast", name, to=FLOAT) if kinds[name] == HALF else name
        for name in (f"net/{output}" for output in foreign.output.names)
    ]
    boxes, scores, classes = {"rows": _from_rows, "dense": _from_dense, "sorted": _from_sorted}[
        foreign.output.kind
    ](behind, found, foreign, spec)
    _add_outputs(behind, boxes, scores, classes, spec)
    own = list(graph.node)
    del graph.node[:], graph.input[:], graph.value_info[:]
    graph.node.extend([*before.nodes, *own, *behind.nodes])
    graph.initializer.extend([*before.constants, *behind.constants])
    n = spec.batch or "batch"
    for name, (kind, shape) in images_of(spec, n).items():
        element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
        graph.input.append(helper.make_tensor_value_info(name, element, shape))
    set_outputs(adopted, outputs_of(spec, n))
    adopted.producer_name = "nmsfree"
    describe(adopted, spec)
    return adopted


def _add_input(add: _Nodes, adopted: ModelProto, foreign: Foreign, kinds: dict[str, int]) -> None:
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


def _add_sizes(add: _Nodes, spec: ModelSpec) -> None:
    """Boxes shall come in pixels of the input: (width, height), see RT-DETR's own script."""
    size = add.of([[spec.width, spec.height]])
    if spec.batch is None:
        count = add("Shape", "images", start=0, end=1)
        size = add("Expand", size, add("Concat", count, add.of([2]), axis=0))
        add("Identity", size, name="net/orig_target_sizes")
    else:
        add("Expand", size, add.of([spec.batch, 2]), name="net/orig_target_sizes")


def _from_rows(
    add: _Nodes, outputs: list[str], foreign: Foreign, spec: ModelSpec
) -> tuple[str, str, str]:
    """[N, K, 6] → boxes, scores [N, K], classes int64 [N, K] by their number in the file."""
    parts = [
        add("Slice", outputs[0], add.of([a]), add.of([b]), add.of([2]))
        for a, b in ((0, 4), (4, 5), (5, 6))
    ]
    boxes = _corners(add, parts[0], foreign, spec)
    scores, classes = (add("Squeeze", part, add.of([2])) for part in parts[1:])
    return _chosen(add, boxes, scores, add("Cast", classes, to=INT64), foreign, spec)


def _from_sorted(
    add: _Nodes, outputs: list[str], foreign: Foreign, spec: ModelSpec
) -> tuple[str, str, str]:
    labels, boxes, scores = outputs
    classes = add("Cast", labels, to=INT64)
    return _chosen(add, _corners(add, boxes, foreign, spec), scores, classes, foreign, spec)


def _chosen(
    add: _Nodes, boxes: str, scores: str, classes: str, foreign: Foreign, spec: ModelSpec
) -> tuple[str, str, str]:
    """The best rows of the classes that are kept, their numbers those of the description."""
    numbers = np.full(max(foreign.columns) + 1, -1, np.int64)
    numbers[list(foreign.columns)] = range(len(foreign.columns))
    if (numbers != range(len(numbers))).any():
        known = add("Min", classes, add.of(len(numbers) - 1))
        number = add("Gather", add.of(numbers), known)
        kept = add("And", add("Equal", known, classes), add("GreaterOrEqual", number, add.of(0)))
        scores = add("Where", kept, scores, add.of(0, np.float32))
        classes = add("Max", number, add.of(0))
    best, places = add.top(scores, spec.top_k)
    return add.rows(boxes, places, 4), best, add("GatherElements", classes, places, axis=1)


def _from_dense(
    add: _Nodes, outputs: list[str], foreign: Foreign, spec: ModelSpec
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
        end = np.iinfo(np.int64).max
        boxes, scores = (
            add("Slice", joined, add.of([a]), add.of([b]), add.of([2]))
            for a, b in ((0, 4), (4, end))
        )
    else:
        boxes, scores = outputs
    scores = add("Gather", scores, add.of(foreign.columns), axis=2)
    count, queries = len(foreign.columns), foreign.queries
    if queries is None or queries > spec.top_k:
        _, places = add.top(add.maximum(scores), spec.top_k)
        scores, boxes = add.rows(scores, places, count), add.rows(boxes, places, 4)
    flat = add("Reshape", scores, add.of([0, -1]))
    best, places = add.top(flat, spec.top_k)
    query, label = add("Div", places, add.of(count)), add("Mod", places, add.of(count))
    boxes = _corners(add, add.rows(boxes, query, 4), foreign, spec)
    return boxes, add("Sigmoid", best) if found.logits else best, label


def _corners(add: _Nodes, boxes: str, foreign: Foreign, spec: ModelSpec) -> str:
    """Boxes [N, K, 4] as corners in pixels of the input."""
    form, _, share = foreign.output.boxes.partition("-")
    if form == "cxcywh":
        centre, size = (
            add("Slice", boxes, add.of([a]), add.of([b]), add.of([2])) for a, b in ((0, 2), (2, 4))
        )
        half = add("Mul", size, add.of(0.5, np.float32))
        boxes = add("Concat", add("Sub", centre, half), add("Add", centre, half), axis=2)
    if share:
        boxes = add("Mul", boxes, add.of([spec.width, spec.height] * 2, np.float32))
    return boxes


def _add_outputs(add: _Nodes, boxes: str, scores: str, classes: str, spec: ModelSpec) -> None:
    """The four outputs of the contract."""
    limit = add.of([spec.width, spec.height] * 2, np.float32)
    above = add("Max", boxes, add.of(0, np.float32))
    add("Min", above, limit, name="detection_boxes")
    add("Identity", scores, name="detection_scores")
    add("Cast", classes, name="detection_classes", to=INT32)
    counted = add("Greater", scores, add.of(spec.score_floor, np.float32))
    counted = add("Cast", counted, to=INT32)
    add("ReduceSum", counted, add.of([1]), name="num_detections", keepdims=1)
