"""Small files like those of other projects: their inputs, outputs and metadata, weights by chance.

The network is the same in all: two convolutions, a box and scores for each of 64 cells.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, compose, helper, numpy_helper

from nmsfree_export.adopt.rewrite import MEAN_RGB, STD_RGB

SIZE, CELLS, CLASSES = 64, 64, 5
NAMES = tuple(f"thing {i}" for i in range(CLASSES))
FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
ULTRALYTICS = {
    "author": "Ultralytics",
    "description": "a YOLO",
    "license": "AGPL-3.0",
    "task": "detect",
    "imgsz": f"[{SIZE}, {SIZE}]",
    "names": str(dict(enumerate(NAMES))),
}
LIBREYOLO = {
    "libreyolo_version": "1.6.0",
    "model_family": "dfine",
    "names": '{"0": "thing 0", "1": "thing 1", "2": "thing 2", "3": "thing 3", "4": "thing 4"}',
}


class Graph:
    """Nodes and weights of a file, and its outside."""

    def __init__(
        self,
        columns: int = CLASSES,
        batch: Any = 1,
        image: str = "images",
        neck: Callable[["Graph", str], str] = lambda graph, features: features,
    ) -> None:
        self.batch, self.columns = batch, columns
        self.nodes: list[NodeProto] = []
        self.weights: dict[str, Any] = {}
        self.inputs = {image: (FLOAT, (batch, 3, SIZE, SIZE))}
        self.outputs: dict[str, tuple[int, tuple[Any, ...]]] = {}
        self.rng = rng = np.random.default_rng(0)
        first = self.add("Conv", image, self.of(rng.normal(0, 0.3, (16, 3, 4, 4))), strides=[4, 4])
        second = self.of(rng.normal(0, 0.5, (4 + columns, 16, 2, 2)))
        bias = self.of(np.append([0, 0, -1, -1], rng.normal(0, 1, columns)))
        self.features = neck(self, self.add("Tanh", first))  # [N, 16, 16, 16]
        grid = self.add("Conv", self.features, second, bias, strides=[2, 2])
        shape = self.of([0, 4 + columns, -1], np.int64)
        flat = self.add("Transpose", self.add("Reshape", grid, shape), perm=[0, 2, 1])
        self.boxes = self.add("Sigmoid", self.part(flat, 0, 4))  # [N, Q, 4] cxcywh, 0 … 1
        self.logits = self.part(flat, 4, 4 + columns)  # [N, Q, C]

    def add(self, op: str, *inputs: str, out: tuple[str, ...] = (), **attributes: Any) -> str:
        outputs = out or (f"v{len(self.nodes)}",)
        self.nodes.append(helper.make_node(op, inputs, outputs, **attributes))
        return outputs[0]

    def of(self, value: Any, kind: Any = np.float32) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = np.asarray(value, kind)
        return name

    def linear(self, value: str, inside: int = 16, outside: int = 16, scale: float = 0.3) -> str:
        weight = self.of(self.rng.normal(0, scale, (inside, outside)))
        return self.add("Add", self.add("MatMul", value, weight), self.of(np.zeros(outside)))

    def attention(self, tokens: str) -> str:
        """Self-attention of one head between norms, tokens [N, T, 16]."""
        ones, zeros = self.of(np.ones(16)), self.of(np.zeros(16))
        query, key, value = (self.linear(tokens) for _ in range(3))
        match = self.add("MatMul", query, self.add("Transpose", key, perm=[0, 2, 1]))
        share = self.add("Softmax", self.add("Mul", match, self.of(0.25)), axis=-1)
        mixed = self.linear(self.add("MatMul", share, value))
        return self.add("LayerNormalization", self.add("Add", tokens, mixed), ones, zeros, axis=-1)

    def part(self, value: str, start: int, end: int) -> str:
        ends = [self.of([n], np.int64) for n in (start, end, 2)]
        return self.add("Slice", value, *ends)

    def corners(self, scale: Any = SIZE) -> str:
        """The boxes as corners, in pixels or what `scale` says."""
        centre, size = self.part(self.boxes, 0, 2), self.part(self.boxes, 2, 4)
        half = self.add("Mul", size, self.of(0.5))
        low, high = self.add("Sub", centre, half), self.add("Add", centre, half)
        corners = self.add("Concat", low, high, axis=2)
        return self.add("Mul", corners, scale if isinstance(scale, str) else self.of(scale))

    def best(self, boxes: str, k: int) -> tuple[str, str, str]:
        """Boxes [N, k, 4], scores [N, k] and classes [N, k] int64 of the best pairs."""
        scores = self.add("Sigmoid", self.logits)
        flat = self.add("Reshape", scores, self.of([0, -1], np.int64))
        self.add("TopK", flat, self.of([k], np.int64), out=("best", "places"))
        columns = self.of(self.columns, np.int64)
        query, label = self.add("Div", "places", columns), self.add("Mod", "places", columns)
        wide = self.add("Unsqueeze", query, self.of([2], np.int64))
        index = self.add("Concat", wide, wide, wide, wide, axis=2)
        return self.add("GatherElements", boxes, index, axis=1), "best", label

    def rows(self, boxes: str, k: int = 50, name: str = "output0") -> None:
        """One output [N, k, 6]."""
        box, score, label = self.best(boxes, k)
        axis = self.of([2], np.int64)
        columns = [score, self.add("Cast", label, to=FLOAT)]
        parts = [self.add("Unsqueeze", column, axis) for column in columns]
        self.output(name, self.add("Concat", box, *parts, axis=2), (k, 6))

    def output(self, name: str, value: str, sizes: tuple[Any, ...], kind: int = FLOAT) -> None:
        self.add("Identity", value, out=(name,))
        self.outputs[name] = kind, (self.batch, *sizes)

    def model(
        self,
        metadata: dict[str, str] | None = None,
        opset: int = 17,
        more: Sequence[TensorProto] = (),
    ) -> ModelProto:
        info = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes,
            "foreign",
            [info(name, *port) for name, port in self.inputs.items()],
            [info(name, *port) for name, port in self.outputs.items()],
            [numpy_helper.from_array(v, name) for name, v in self.weights.items()] + list(more),
        )
        made = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8
        )
        helper.set_model_props(made, metadata or {})
        onnx.checker.check_model(made)
        return made


def yolo_rows(**metadata: str) -> ModelProto:
    """A: YOLO26; also F, YOLOv10, with fewer entries."""
    graph = Graph()
    graph.rows(graph.corners())
    return graph.model(ULTRALYTICS | {"head": "Detect"} | metadata, opset=18)


def yolo_cells() -> ModelProto:
    """B: YOLO11, a box and scores for every cell."""
    graph = Graph()
    scores = graph.add("Sigmoid", graph.logits)
    boxes = graph.add("Mul", graph.boxes, graph.of(SIZE))
    joined = graph.add("Concat", boxes, scores, axis=2)
    turned = graph.add("Transpose", joined, perm=[0, 2, 1])
    graph.output("output0", turned, (4 + CLASSES, CELLS))
    return graph.model(ULTRALYTICS)


def yolo_any_size(batch: Any = "batch", nms_free: bool = True) -> ModelProto:
    """A, or B, as their package exports them with `dynamic=True`."""
    graph = Graph(batch=batch)
    graph.inputs["images"] = FLOAT, (batch, 3, "height", "width")
    sides = graph.add("Gather", graph.add("Shape", "images"), graph.of([3, 2, 3, 2], np.int64))
    scale = graph.add("Cast", sides, to=FLOAT)
    if nms_free:
        graph.rows(graph.corners(scale))
        return graph.model(ULTRALYTICS | {"head": "Detect"}, opset=18)
    boxes = graph.add("Mul", graph.boxes, scale)
    joined = graph.add("Concat", boxes, graph.add("Sigmoid", graph.logits), axis=2)
    cells = graph.add("Transpose", joined, perm=[0, 2, 1])
    graph.output("output0", cells, (4 + CLASSES, "anchors"))
    return graph.model(ULTRALYTICS)


def yolo26() -> ModelProto:
    """A with what the real one computes: SiLU, pooling, joined halves, attention."""

    def neck(graph: Graph, features: str) -> str:
        for _ in range(2):
            weight = graph.of(graph.rng.normal(0, 0.2, (16, 16, 3, 3)))
            conv = graph.add("Conv", features, weight, pads=[1] * 4)
            features = graph.add("Mul", conv, graph.add("Sigmoid", conv))
        left, right = f"{features}.left", f"{features}.right"
        graph.add("Split", features, graph.of([8, 8], np.int64), out=(left, right), axis=1)
        pooled = graph.add("MaxPool", right, kernel_shape=[5, 5], pads=[2] * 4)
        joined = graph.add("Concat", left, pooled, axis=1)
        flat = graph.add("Reshape", joined, graph.of([0, 16, 256], np.int64))
        tokens = graph.attention(graph.add("Transpose", flat, perm=[0, 2, 1]))
        back = graph.add("Transpose", tokens, perm=[0, 2, 1])
        return graph.add("Reshape", back, graph.of([0, 16, 16, 16], np.int64))

    graph = Graph(neck=neck)
    graph.rows(graph.corners())
    return graph.model(ULTRALYTICS | {"head": "Detect"}, opset=18)


def dfine() -> ModelProto:
    """K with what a real one computes: chosen queries, sampling, attention, refined boxes."""
    graph = Graph()
    axis, wide = graph.of([2], np.int64), graph.of([0, 30, 16], np.int64)
    best = graph.add("ReduceMax", graph.logits, axes=[2], keepdims=0)
    graph.add("TopK", best, graph.of([30], np.int64), out=("queries", "places"))
    index = graph.add("Unsqueeze", "places", axis)
    four = graph.add("Concat", index, index, index, index, axis=2)
    boxes = graph.add("GatherElements", graph.boxes, four, axis=1)
    grid = graph.add("Sub", graph.add("Mul", graph.part(boxes, 0, 2), graph.of(2)), graph.of(1))
    points = graph.add("Unsqueeze", grid, axis)  # [N, 30, 1, 2]
    sampled = graph.add("GridSample", graph.features, points, mode="bilinear")
    rows = graph.add("Squeeze", sampled, graph.of([3], np.int64))
    tokens = graph.add("Reshape", graph.add("Transpose", rows, perm=[0, 2, 1]), wide)
    tokens = graph.attention(tokens)
    offsets = graph.add("Reshape", graph.linear(tokens, 16, 20), graph.of([0, 30, 4, 5], np.int64))
    shares = graph.add("Softmax", offsets, axis=-1)
    moves = graph.add("MatMul", shares, graph.of([[-1], [-0.5], [0], [0.5], [1]]))
    low, high = graph.of(1e-5), graph.of(1)
    ahead, behind = (
        graph.add("Clip", value, low, high) for value in (boxes, graph.add("Sub", high, boxes))
    )
    odds = graph.add("Log", graph.add("Div", ahead, behind))
    moved = graph.add("Add", odds, graph.add("Squeeze", moves, graph.of([3], np.int64)))
    graph.output("pred_logits", graph.linear(tokens, 16, CLASSES, 1.0), (30, CLASSES))
    graph.output("pred_boxes", graph.add("Sigmoid", moved), (30, 4))
    return graph.model(LIBREYOLO)


def rtdetr_rows() -> ModelProto:
    """D: of the same shape, but boxes in 0 … 1 and pictures stretched."""
    graph = Graph(batch="batch")
    graph.rows(graph.boxes)
    return graph.model(ULTRALYTICS | {"head": "RTDETRDecoder"})


def rtdetr_dense() -> ModelProto:
    """E: boxes and scores of every query; it has a GridSample, by which it is known."""
    graph = Graph()
    grid = graph.of(np.zeros((1, 1, 1, 2)))
    sampled = graph.add("GridSample", next(iter(graph.inputs)), grid)
    nothing = graph.add("Mul", graph.add("ReduceMax", sampled, keepdims=0), graph.of(0))
    scores = graph.add("Add", graph.add("Sigmoid", graph.logits), nothing)
    joined = graph.add("Concat", graph.boxes, scores, axis=2)
    graph.output("output0", joined, (CELLS, 4 + CLASSES))
    return graph.model(ULTRALYTICS)


def sorted_triple(batch: Any = "N") -> ModelProto:
    """G: RT-DETR, D-FINE and DEIM, boxes times (width, height) of `orig_target_sizes`."""
    graph = Graph(batch=batch)
    graph.inputs["orig_target_sizes"] = TensorProto.INT64, (batch, 2)
    size = graph.add("Cast", "orig_target_sizes", to=FLOAT)
    twice = graph.add("Concat", size, size, axis=1)
    scale = graph.add("Unsqueeze", twice, graph.of([1], np.int64))
    box, score, label = graph.best(graph.corners(scale), 50)
    graph.output("labels", label, (50,), TensorProto.INT64)
    graph.output("boxes", box, (50, 4))
    graph.output("scores", score, (50,))
    return graph.model(opset=16)


def logits(
    boxes: str = "dets", labels: str = "labels", columns: int = CLASSES + 1, **metadata: str
) -> ModelProto:
    """J: RF-DETR, boxes and raw logits; K with other names and metadata."""
    graph = Graph(columns, batch="batch")
    graph.output(boxes, graph.boxes, (CELLS, 4))
    graph.output(labels, graph.logits, (CELLS, columns))
    return graph.model(metadata)


def any_logits() -> ModelProto:
    """P: a dump of somebody's, without a background column."""
    return logits("pred_boxes", "logits", CLASSES)


def libreyolo_logits(**metadata: str) -> ModelProto:
    """K: logits first, and how many queries there are is not said."""
    graph = Graph(batch="batch")
    graph.output("pred_logits", graph.logits, ("queries", CLASSES))
    graph.output("pred_boxes", graph.boxes, ("queries", 4))
    return graph.model(LIBREYOLO | metadata)


def huggingface() -> ModelProto:
    """M: what says more lies beside it, see `huggingface_files`."""
    graph = Graph(batch="batch", image="pixel_values")
    graph.inputs["pixel_mask"] = TensorProto.INT64, ("batch", SIZE, SIZE)
    seen = graph.add("Cast", "pixel_mask", to=FLOAT)
    whole = graph.add("ReduceMean", seen, axes=[1, 2], keepdims=0)
    scale = graph.add("Reshape", whole, graph.of([-1, 1, 1], np.int64))
    graph.output("logits", graph.add("Mul", graph.logits, scale), (CELLS, CLASSES))
    graph.output("pred_boxes", graph.boxes, (CELLS, 4))
    return graph.model()


def huggingface_files(folder: Path, **told: Any) -> None:
    config = {"model_type": "d_fine", "id2label": {str(i): name for i, name in enumerate(NAMES)}}
    size = {"height": SIZE, "width": SIZE}
    processor = {"do_normalize": False, "size": size, "resample": 2, "rescale_factor": 1 / 255}
    for name, said in (("config", config), ("preprocessor_config", processor)):
        merged = said | {key: value for key, value in told.items() if key in said}
        (folder / f"{name}.json").write_text(json.dumps(merged))


def lightlytrain(**metadata: str) -> ModelProto:
    """N: LT-DETR, its normalisation in its metadata."""
    normalize = json.dumps({"mean": MEAN_RGB, "std": STD_RGB})
    classes = json.dumps({str(i): name for i, name in enumerate(NAMES)})
    said = {"lightly_train_version": "0.15.0", "license_info": "AGPL-3.0", "classes": classes}
    return logits("boxes", "logits", CLASSES, **said | {"image_normalize": normalize} | metadata)


def paddle(batch: Any = 1) -> ModelProto:
    """O: rows of class, score and box of all pictures, the boxes by im_shape ÷ scale_factor."""
    graph = Graph(batch=batch, image="image")
    for name in ("im_shape", "scale_factor"):
        graph.inputs[name] = FLOAT, (batch, 2)
    size = graph.add("Div", "im_shape", "scale_factor")  # height, width
    turned = graph.add("Gather", size, graph.of([1, 0, 1, 0], np.int64), axis=1)
    scale = graph.add("Unsqueeze", turned, graph.of([1], np.int64))
    box, score, label = graph.best(graph.corners(scale), 50)
    axis = graph.of([2], np.int64)
    columns = [graph.add("Cast", label, to=FLOAT), score]
    parts = [graph.add("Unsqueeze", column, axis) for column in columns]
    rows = graph.add("Concat", *parts, box, axis=2)
    graph.add("Reshape", rows, graph.of([-1, 6], np.int64), out=("reshape2_95.tmp_0",))
    graph.outputs["reshape2_95.tmp_0"] = FLOAT, (50 if batch == 1 else "rows", 6)
    graph.outputs["tile_3.tmp_0"] = TensorProto.INT32, (1,)
    graph.weights["counted"] = np.array([50], np.int32)
    graph.add("Identity", "counted", out=("tile_3.tmp_0",))
    return graph.model(opset=16)


def libreyolo_yolo9() -> ModelProto:
    """L: [N, 4 + C, A], boxes in pixels, nothing chosen yet."""
    graph = Graph()
    scores = graph.add("Sigmoid", graph.logits)
    joined = graph.add("Concat", graph.corners(), scores, axis=2)
    turned = graph.add("Transpose", joined, perm=[0, 2, 1])
    graph.output("output", turned, (4 + CLASSES, CELLS))
    return graph.model(LIBREYOLO | {"model_family": "yolo9_e2e"}, opset=17)


def yolo_with_nms(iou: float = 0.45) -> ModelProto:
    """C: NMS inside, rows padded with zeros; the shape is that of A."""
    graph = Graph()
    boxes = graph.corners()
    scores = graph.add("Transpose", graph.add("Sigmoid", graph.logits), perm=[0, 2, 1])
    most, row = graph.of(10, np.int64), graph.of([1], np.int64)
    chosen = graph.add(
        "NonMaxSuppression", boxes, scores, most, graph.of(iou), graph.of(0.3)
    )  # [n, 3]: picture, class, cell
    pair = graph.add("Cast", chosen, to=TensorProto.INT64)
    label = graph.add("Gather", chosen, row, axis=1)
    cell = graph.add("Gather", chosen, graph.of([2], np.int64), axis=1)
    flat = graph.add("Squeeze", cell, row)
    box = graph.add("Gather", graph.add("Squeeze", boxes, graph.of([0], np.int64)), flat)
    score = graph.add("Unsqueeze", graph.add("GatherND", scores, pair), row)
    rows = graph.add("Concat", box, score, graph.add("Cast", label, to=FLOAT), axis=1)
    count = graph.add("Shape", rows, start=0, end=1)
    rest = graph.add("Sub", graph.of([50], np.int64), count)
    zero = graph.of([0, 0], np.int64)
    pads = graph.add("Concat", zero, rest, graph.of([0], np.int64), axis=0)
    full = graph.add("Pad", rows, pads)
    graph.output("output0", graph.add("Unsqueeze", full, graph.of([0], np.int64)), (50, 6))
    return graph.model(ULTRALYTICS | {"end2end": "False", "args": "{'nms': True}"})


def save(model: ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def wrapped(ours: ModelProto, letter: str) -> ModelProto:
    """One of this project's files, batch 1, as a file of another contract: A, D, G, J or K."""
    net = compose.add_prefix(ours, "own/")
    (size,) = {d.dim_value for d in net.graph.input[0].type.tensor_type.shape.dim[1:3]}
    rows, columns = 100, 10
    graph = Graph.__new__(Graph)
    graph.batch, graph.nodes, graph.weights, graph.outputs = 1, [], {}, {}
    graph.inputs = {"images": (FLOAT, (1, 3, size, size))}
    pixels = "images"
    if letter == "J":
        planes = [np.array(v)[None, :, None, None] for v in (STD_RGB, MEAN_RGB)]
        pixels = graph.add("Mul", pixels, graph.of(planes[0]))
        pixels = graph.add("Add", pixels, graph.of(planes[1]))
    pixels = graph.add("Round", graph.add("Mul", pixels, graph.of(255)))
    pixels = graph.add("Gather", pixels, graph.of([2, 1, 0], np.int64), axis=1)
    pixels = graph.add("Transpose", pixels, perm=[0, 2, 3, 1])
    graph.add("Cast", pixels, out=("own/images",), to=TensorProto.UINT8)
    graph.nodes.extend(net.graph.node)
    boxes, scores, classes = (f"own/detection_{what}" for what in ("boxes", "scores", "classes"))
    share = graph.add("Div", boxes, graph.of(size))
    low, high = graph.part(share, 0, 2), graph.part(share, 2, 4)
    centre = graph.add("Mul", graph.add("Add", low, high), graph.of(0.5))
    centred = graph.add("Concat", centre, graph.add("Sub", high, low), axis=2)
    if letter in "AD":
        axis = graph.of([2], np.int64)
        labels = graph.add("Cast", classes, to=FLOAT)
        parts = [graph.add("Unsqueeze", column, axis) for column in (scores, labels)]
        rows6 = graph.add("Concat", boxes if letter == "A" else centred, *parts, axis=2)
        graph.output("output0", rows6, (rows, 6))
        names = str({i: str(i) for i in range(columns)})
        head = {"head": "RTDETRDecoder"} if letter == "D" else {}
        entries = ULTRALYTICS | {"names": names, "imgsz": f"[{size}, {size}]"} | head
    elif letter == "G":
        graph.inputs["orig_target_sizes"] = TensorProto.INT64, (1, 2)
        sizes = graph.add("Cast", "orig_target_sizes", to=FLOAT)
        graph.output("labels", graph.add("Cast", classes, to=TensorProto.INT64), (rows,))
        graph.outputs["labels"] = TensorProto.INT64, (1, rows)
        graph.output(
            "boxes", graph.add("Mul", share, graph.add("Concat", sizes, sizes, axis=1)), (rows, 4)
        )
        graph.output("scores", scores, (rows,))
        entries = {}
    else:
        depth, off_on = graph.of(columns, np.int64), graph.of([0, 1])
        own = graph.add("OneHot", graph.add("Cast", classes, to=TensorProto.INT64), depth, off_on)
        wide = graph.add("Unsqueeze", scores, graph.of([2], np.int64))
        share_of = graph.add(
            "Clip", graph.add("Mul", wide, own), graph.of(1e-6), graph.of(1 - 1e-6)
        )
        odds = graph.add("Div", share_of, graph.add("Sub", graph.of(1), share_of))
        logits = graph.add("Log", odds)
        if letter == "J":
            logits = graph.add("Concat", logits, graph.of(np.full((1, rows, 1), 9)), axis=2)
        names = ("labels", "dets") if letter == "J" else ("pred_logits", "pred_boxes")
        graph.output(names[0], logits, (rows, columns + (letter == "J")))
        graph.output(names[1], centred, (rows, 4))
        digits = json.dumps({str(i): str(i) for i in range(columns)})
        entries = LIBREYOLO | {"names": digits} if letter == "K" else {}
    return graph.model(entries, opset=net.opset_import[0].version, more=list(net.graph.initializer))
