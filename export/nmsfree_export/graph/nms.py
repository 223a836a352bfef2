"""The NMS baseline's last part: candidates → NMS → the outputs of the contract.

NMS is the operator or, for engines that lack it, plain operators. Greedy NMS is the fixed point of
"a candidate stays if no better one that stays overlaps it". Asked of all at once, as a product with
the matrix of overlaps, beginning with all that stay, the answer is right for chains of as many
overlaps as there were products.
"""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
from onnx import ModelProto, TensorProto

from nmsfree.spec import ModelSpec, NmsSpec
from nmsfree_export.graph.contract import CANDIDATES as CANDIDATES
from nmsfree_export.graph.contract import outputs_of, set_outputs
from nmsfree_export.graph.nodes import Nodes

# The matrix of overlaps is made in parts, of so many rows at least: a processor's cache holds them.
MOST_PARTS, ROWS = 8, 128


def append_nms(model: ModelProto, spec: ModelSpec) -> None:
    """Add NMS to a graph whose outputs are `CANDIDATES` (see `CandidatesModule`), in place.

    Class-aware NMS spreads the scores over a class axis, exactly; shifting boxes per class, the
    usual trick, would cost precision. Rows that NMS removed get score 0.
    """
    nms = spec.nms
    assert nms is not None
    scores = next(o for o in model.graph.output if o.name == "candidate_scores")
    most = scores.type.tensor_type.shape.dim[1].dim_value
    add = Nodes("nms/", opset=18)
    add.of([nms.iou], np.float32, "nms_iou")
    add.of([spec.score_floor], np.float32, "nms_floor")
    if nms.steps is None:
        boxes, kept, classes = _suppress(add, spec)
    else:
        most = min(most, nms.candidates or most)
        boxes, kept, classes = _suppress_plainly(add, nms, most)
    k = min(spec.top_k, most)
    boxes, _, classes = add.best(boxes, kept, classes, k, name="detection_scores")
    add.results(boxes, classes, "nms_floor", spec)
    model.graph.initializer.extend(add.constants)
    model.graph.node.extend(add.nodes)
    set_outputs(model, outputs_of(replace(spec, top_k=k), spec.batch or "batch"))


def _suppress(add: Nodes, spec: ModelSpec) -> tuple[str, str, str]:
    """All candidates, and their scores [N, T], 0 for those that the operator removes."""
    boxes, scores, classes = CANDIDATES
    assert spec.nms is not None
    spread = add("Unsqueeze", scores, add.of([1]))
    if spec.nms.class_aware:  # [N, C, T], −1 where a candidate is of another class
        numbers = add.of(np.arange(len(spec.class_names))[None, :, None])
        own = add("Equal", add("Unsqueeze", classes, add.of([1])), numbers)
        spread = add("Where", own, spread, add.of(-1, np.float32))
    rules = add.of([np.iinfo(np.int32).max]), "nms_iou", "nms_floor"
    selected = add("NonMaxSuppression", boxes, spread, *rules, name="nms_selected")
    rows = add("Gather", selected, add.of([0, 2]), axis=1)  # image and candidate
    ones = add("Expand", add.of(1, np.float32), add("Shape", rows, start=0, end=1))
    kept = add("ScatterND", add("Mul", scores, add.of(0, np.float32)), rows, ones)
    return boxes, add("Mul", scores, kept, name="nms_kept_scores"), classes


def _suppress_plainly(add: Nodes, nms: NmsSpec, count: int) -> tuple[str, str, str]:
    """The best `count` candidates [N, M], sorted, and their scores, 0 for those removed."""
    assert nms.steps is not None
    boxes, best, classes = add.best(*CANDIDATES, count, name="nms_sorted_scores")
    zero = add.of(0, np.float32)
    matrix = _removal_matrix(add, boxes, classes if nms.class_aware else None, count)
    stays = add("Unsqueeze", add("Add", add("Mul", best, zero), add.of(1, np.float32)), add.of([1]))
    for _ in range(nms.steps):
        removed = add("MatMul", stays, matrix)  # [N, 1, M]: by how many
        stays = add("Cast", add("Less", removed, add.of(0.5, np.float32)), to=TensorProto.FLOAT)
    kept = add("Mul", best, add("Squeeze", stays, add.of([1])), name="nms_kept_scores")
    return boxes, kept, classes


def _removal_matrix(add: Nodes, boxes: str, classes: str | None, count: int) -> str:
    """Whether a candidate (row) removes another (column) if it stays: 0 or 1, float32 [N, M, M].

    Every part is made without the columns of candidates that are better than all its rows.
    """
    given = [_slice(add, boxes, 2, i, i + 1) for i in range(4)]  # x1, y1, x2, y2: [N, M, 1]
    columns = [add(op, given[i], given[i + 2]) for op in ("Min", "Max") for i in (0, 1)]
    x1, y1, x2, y2 = columns
    area = add("Mul", add("Sub", x2, x1), add("Sub", y2, y1))
    columns += [area, add.of(np.arange(count)[None, :, None])]
    if classes is not None:  # Equal of int64 is slow
        small = add("Cast", classes, to=TensorProto.INT32)
        columns.append(add("Unsqueeze", small, add.of([2])))
    across = [add("Transpose", column, perm=[0, 2, 1]) for column in columns]
    number = min(MOST_PARTS, math.ceil(count / ROWS))
    edges = [count * part // number for part in range(number + 1)]
    parts = []
    for first, last in pairwise(edges):
        pairs = [
            (_slice(add, column, 1, first, last), _slice(add, row, 2, first, count))
            for column, row in zip(columns, across, strict=True)
        ]
        part = add("Cast", _removes(add, pairs), to=TensorProto.FLOAT)
        parts.append(add("Pad", part, add.of([0, 0, first, 0, 0, 0])))
    return add("Concat", *parts, axis=1)


def _slice(add: Nodes, value: str, axis: int, first: int, last: int) -> str:
    return add("Slice", value, add.of([first]), add.of([last]), add.of([axis]))


def _removes(add: Nodes, pairs: list[tuple[str, str]]) -> str:
    """Of each row and column, by the arithmetic of `nmsfree.nms.greedy_nms`.

    The overlap may be negative, which exceeds nothing either.
    """
    x1, y1, x2, y2, area, rank, *classes = pairs
    width, height = (
        add("Sub", add("Min", *high), add("Max", *low)) for low, high in ((x1, x2), (y1, y2))
    )
    shared = add("Mul", add("Max", width, add.of(0, np.float32)), height)
    union = add("Sub", add("Add", *area), shared)
    over = add("Greater", shared, add("Mul", union, "nms_iou"))
    removes = add("And", over, add("Less", *rank))
    return add("And", removes, add("Equal", *classes[0])) if classes else removes
