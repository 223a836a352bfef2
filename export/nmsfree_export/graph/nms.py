"""The NMS baseline's last part: candidates → NMS → the outputs of the contract.

NMS is the operator or, for engines that lack it, plain operators. Greedy NMS is the fixed point of
"a candidate stays if no better one that stays overlaps it". Asked of all at once, as a product with
the matrix of overlaps, beginning with all that stay, the answer is right for chains of as many
overlaps as there were products.
"""

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

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
    assert spec.nms is not None
    scores = next(o for o in model.graph.output if o.name == "candidate_scores")
    most = scores.type.tensor_type.shape.dim[1].dim_value
    plain = spec.nms.steps is not None
    if plain:
        most = min(most, spec.nms.candidates or most)
    k = min(spec.top_k, most)
    constants = {
        **({} if plain else _constants(spec)),
        "nms_floor": np.array([spec.score_floor], np.float32),
        "nms_iou": np.array([spec.nms.iou], np.float32),
        "nms_axis1": np.array([1], np.int64),
        "nms_axis2": np.array([2], np.int64),
        "nms_zero": np.float32(0),
        "nms_k": np.array([k], np.int64),
    }
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    limit = Nodes("nms/limit/", opset=18)
    limit.limit(spec, name="nms_limit")
    model.graph.initializer.extend(limit.constants)
    model.graph.node.extend(limit.nodes)
    if plain:
        add = _suppress_plainly(spec.nms, most)
        model.graph.initializer.extend(add.constants)
        model.graph.node.extend([*add.nodes, *_best_rows("nms_sorted")])
    else:
        by_class = _scores_by_class(spec.nms.class_aware)
        model.graph.node.extend([*by_class, *_suppress(), *_best_rows("candidate")])
    set_outputs(model, outputs_of(replace(spec, top_k=k), spec.batch or "batch"))


def _constants(spec: ModelSpec) -> dict[str, Any]:
    """What the operator and the nodes around it need."""
    return {
        "nms_classes": np.arange(len(spec.class_names), dtype=np.int64)[None, :, None],
        "nms_removed": np.float32(-1),
        "nms_most": np.array([np.iinfo(np.int32).max], np.int64),
        "nms_image_and_row": np.array([0, 2], np.int64),
        "nms_one": np.float32(1),
    }


def _suppress_plainly(nms: NmsSpec, count: int) -> Nodes:
    """The best `count` candidates [N, M], sorted, and their scores, 0 for those removed."""
    assert nms.steps is not None
    add = Nodes("nms/", opset=18)
    best, places = add.top("candidate_scores", count, name="nms_sorted_scores")
    boxes = add.rows("candidate_boxes", places, 4, name="nms_sorted_boxes")
    classes = add("GatherElements", "candidate_classes", places, name="nms_sorted_classes", axis=1)
    zero = add.of(0, np.float32)
    matrix = _removal_matrix(add, boxes, classes if nms.class_aware else None, count)
    stays = add("Unsqueeze", add("Add", add("Mul", best, zero), add.of(1, np.float32)), add.of([1]))
    for _ in range(nms.steps):
        removed = add("MatMul", stays, matrix)  # [N, 1, M]: by how many
        stays = add("Cast", add("Less", removed, add.of(0.5, np.float32)), to=TensorProto.FLOAT)
    add("Mul", best, add("Squeeze", stays, add.of([1])), name="nms_kept_scores")
    return add


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


def _node(kind: str, inputs: str, output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(kind, inputs.split(), [output], name=f"nms/{output}", **attributes)


def _scores_by_class(class_aware: bool) -> list[NodeProto]:
    """Scores [N, T] → [N, C, T], −1 where a candidate is of another class; or [N, 1, T]."""
    if not class_aware:
        return [_node("Unsqueeze", "candidate_scores nms_axis1", "nms_scores")]
    return [
        _node("Unsqueeze", "candidate_scores nms_axis1", "nms_scores_1"),
        _node("Unsqueeze", "candidate_classes nms_axis1", "nms_classes_1"),
        _node("Equal", "nms_classes_1 nms_classes", "nms_own_class"),
        _node("Where", "nms_own_class nms_scores_1 nms_removed", "nms_scores"),
    ]


def _suppress() -> list[NodeProto]:
    """Scores of the removed candidates become 0: [N, T]."""
    boxes_and_rules = "candidate_boxes nms_scores nms_most nms_iou nms_floor"
    return [
        _node("NonMaxSuppression", boxes_and_rules, "nms_selected"),
        _node("Gather", "nms_selected nms_image_and_row", "nms_rows", axis=1),
        _node("Shape", "nms_rows", "nms_row_count", start=0, end=1),
        _node("Expand", "nms_one nms_row_count", "nms_ones"),
        _node("Mul", "candidate_scores nms_zero", "nms_none_kept"),
        _node("ScatterND", "nms_none_kept nms_rows nms_ones", "nms_kept"),
        _node("Mul", "candidate_scores nms_kept", "nms_kept_scores"),
    ]


def _best_rows(source: str) -> list[NodeProto]:
    """The best k of what is left, as the contract's four outputs."""
    top = helper.make_node(
        "TopK", ["nms_kept_scores", "nms_k"], ["detection_scores", "nms_best"], name="nms/top"
    )
    return [
        top,
        _node("GatherElements", f"{source}_classes nms_best", "nms_best_classes", axis=1),
        _node("Cast", "nms_best_classes", "detection_classes", to=TensorProto.INT32),
        _node("Unsqueeze", "nms_best nms_axis2", "nms_best_1"),
        _node("Concat", "nms_best_1 nms_best_1 nms_best_1 nms_best_1", "nms_best_4", axis=2),
        _node("GatherElements", f"{source}_boxes nms_best_4", "nms_best_boxes", axis=1),
        _node("Max", "nms_best_boxes nms_zero", "nms_best_boxes_low"),
        _node("Min", "nms_best_boxes_low nms_limit", "detection_boxes"),
        _node("Greater", "detection_scores nms_floor", "nms_above"),
        _node("Cast", "nms_above", "nms_above_int", to=TensorProto.INT32),
        _node("ReduceSum", "nms_above_int nms_axis1", "num_detections", keepdims=1),
    ]
