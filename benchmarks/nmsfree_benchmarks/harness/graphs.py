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
from nmsfree.spec import METADATA_KEY, ModelSpec
from nmsfree_export.graph.nms import CANDIDATES, append_nms

DETECTIONS = OUTPUTS
SELECTED = "nms_selected"  # int64 [kept, 3] (image, class, row), of `append_nms`


def open_session(model: ModelProto, threads: int, *, spinning: bool = True) -> Any:
    """Open a graph in ONNX Runtime on the processor."""
    return make_session(model.SerializeToString(), threads=threads, spinning=spinning)


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


def with_settings(model: ModelProto, floor: float, iou: float) -> ModelProto:
    """An exported graph of the o2m head with another score floor and IoU threshold.

    Both are constants of its last part, so nothing needs to be traced anew.
    """
    changed = ModelProto()
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        if tensor.name in ("nms_floor", "nms_iou"):
            value = floor if tensor.name == "nms_floor" else iou
            new = np.full_like(numpy_helper.to_array(tensor), value)
            tensor.CopyFrom(numpy_helper.from_array(new, tensor.name))
    entry = next(p for p in changed.metadata_props if p.key == METADATA_KEY)
    spec = ModelSpec.from_json(entry.value)
    assert spec.nms is not None
    entry.value = replace(
        spec,
        score_floor=floor,
        threshold=max(spec.threshold, floor),
        nms=replace(spec.nms, iou=iou),
    ).to_json()
    return changed


def with_floor(file: Path, floor: float, iou: float) -> Path:
    """Write a file of the o2m head with another score floor beside it; returns it."""
    changed = file.with_name(f"{file.stem}-floor{floor:g}.onnx")
    write_atomic(changed, with_settings(onnx.load(file), floor, iou).SerializeToString())
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


def nms_operator(spec: ModelSpec, candidates: int, floor: float, iou: float) -> ModelProto:
    """`nms_tail` up to what `NonMaxSuppression` selects: one output, `SELECTED`."""
    model = nms_tail(spec, candidates, floor, iou)
    del model.graph.output[:]
    selected = helper.make_tensor_value_info(SELECTED, TensorProto.INT64, ["kept", 3])
    model.graph.output.append(selected)
    return model
