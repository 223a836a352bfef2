"""Graphs of exported files cut in two, or with other settings, and their sessions."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.utils import Extractor

from nmsfree.backends.onnxruntime.session import OUTPUTS, make_session
from nmsfree.errors import ModelError
from nmsfree.files import write_atomic
from nmsfree.spec import ModelSpec
from nmsfree_export.graph.contract import describe, read_description
from nmsfree_export.graph.nms import CANDIDATES, append_nms

DETECTIONS = OUTPUTS
# Values inside of what `append_nms` adds. Of the operator: int64 [kept, 3] (image, class, row).
SELECTED = {"nms_selected": (TensorProto.INT64, ("kept", 3))}
# Of plain operators: scores float32 [N, M], 0 where a row was removed, and which rows these are.
SORTED = {
    "nms_kept_scores": (TensorProto.FLOAT, ("batch", "best")),
    "nms_sorted_scores_places": (TensorProto.INT64, ("batch", "best")),
}


def load_model(path: Path) -> ModelProto:
    """Read an ONNX file (ModelError: it is missing or no ONNX file)."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        return onnx.load(path)
    except (OSError, DecodeError) as error:
        reason = getattr(error, "strerror", None) or "not ONNX"
        raise ModelError(f"{path}: cannot be read ({reason}), expected an ONNX file") from None


def open_session(model: ModelProto, threads: int) -> Any:
    """Open a graph in ONNX Runtime on the processor."""
    return make_session(model.SerializeToString(), threads=threads)


def raw_maps(model: ModelProto) -> list[str]:
    """Name the head's raw maps: outputs of the convolutions that feed no further one.

    ModelError: the graph has no convolution.
    """
    fed: set[str] = set()  # values that some convolution depends on
    maps = []
    for node in reversed(model.graph.node):  # sorted topologically, by ONNX's rules
        if node.op_type == "Conv" and node.output[0] not in fed:
            maps.append(node.output[0])
        if node.op_type == "Conv" or fed.intersection(node.output):
            fed.update(node.input)
    if not maps:
        raise ModelError("the model has no convolution, so it has no raw maps to cut at")
    return maps[::-1]


def split_at_raw_maps(path: Path) -> tuple[ModelProto, ModelProto]:
    """A file's graph up to its raw maps, and from there to its outputs."""
    model = onnx.load(path)
    maps = raw_maps(model)
    parts = Extractor(model)
    return parts.extract_model(["images"], maps), parts.extract_model(maps, DETECTIONS)


def with_floor(file: Path, floor: float) -> Path:
    """Write a file with NMS, and another score floor, beside it; returns it.

    The floor is a constant of the graph's last part, so nothing needs to be traced anew.
    """
    model = onnx.load(file)
    for tensor in model.graph.initializer:
        if tensor.name == "nms_floor":
            new = np.full_like(numpy_helper.to_array(tensor), floor)
            tensor.CopyFrom(numpy_helper.from_array(new, tensor.name))
    spec = read_description(file.name, model)
    threshold = max(spec.threshold, floor)
    describe(model, replace(spec, score_floor=floor, threshold=threshold))
    changed = file.with_name(f"{file.stem}-floor{floor:g}.onnx")
    write_atomic(changed, model.SerializeToString())
    return changed


def without_nms(path: Path) -> ModelProto:
    """An exported graph of the o2m head that ends in the candidates of its NMS."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path))  # names the values inside
    part: ModelProto = Extractor(model).extract_model(["images"], list(CANDIDATES))
    return part


def nms_tail(spec: ModelSpec, candidates: int, floor: float, iou: float) -> ModelProto:
    """The exported graphs' last part alone: `CANDIDATES` → detections, for any batch.

    Its inputs are named "in_" and the candidate's name: boxes float32 [N, T, 4], scores float32
    [N, T], classes int64 [N, T], T = `candidates`. Scores above `floor` take part, boxes that
    overlap by more than `iou` go.
    """
    from nmsfree_export.graph.write import OPSET  # brings PyTorch

    assert spec.nms is not None
    kinds = (TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.INT64)
    row: list[str | int] = ["batch", candidates]
    values = list(zip(CANDIDATES, kinds, ([*row, 4], row, row), strict=True))
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", [f"in_{name}"], [name]) for name, _, _ in values],
        "nms",
        [info(f"in_{name}", kind, shape) for name, kind, shape in values],
        [info(name, kind, shape) for name, kind, shape in values],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    own = replace(spec, batch=None, score_floor=floor, nms=replace(spec.nms, iou=iou))
    append_nms(model, own)
    return model


def nms_alone(spec: ModelSpec, candidates: int, floor: float, iou: float) -> ModelProto:
    """`nms_tail` up to which rows stay: its outputs are `SELECTED`, or `SORTED` of plain NMS."""
    assert spec.nms is not None
    model = nms_tail(spec, candidates, floor, iou)
    del model.graph.output[:]
    for name, (kind, shape) in (SORTED if spec.nms.steps else SELECTED).items():
        model.graph.output.append(helper.make_tensor_value_info(name, kind, shape))
    return model
