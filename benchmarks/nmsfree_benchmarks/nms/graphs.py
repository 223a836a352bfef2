"""Graphs around NMS: an exported file with other settings, without its NMS, and the NMS alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.utils import Extractor

from nmsfree.spec import METADATA_KEY, ModelSpec
from nmsfree_export.graph.nms import CANDIDATES, append_nms
from nmsfree_export.graph.write import OPSET

SELECTED = "nms_selected"  # int64 [kept, 3] (image, class, row), of `append_nms`


def open_session(model: bytes, threads: int) -> Any:
    """Open a graph in ONNX Runtime on the processor."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3  # warnings are about the unused parts of a cut graph
    options.intra_op_num_threads = threads
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def read_spec(model: ModelProto) -> ModelSpec:
    """Read the description in a graph's metadata."""
    return ModelSpec.from_json(next(p.value for p in model.metadata_props if p.key == METADATA_KEY))


def with_settings(model: ModelProto, floor: float, iou: float) -> ModelProto:
    """Return an exported graph of the o2m head with another score floor and IoU threshold.

    Both are constants of its last part, so nothing needs to be traced anew.
    """
    changed = ModelProto()
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        if tensor.name in ("nms_floor", "nms_iou"):
            value = floor if tensor.name == "nms_floor" else iou
            new = np.full_like(numpy_helper.to_array(tensor), value)
            tensor.CopyFrom(numpy_helper.from_array(new, tensor.name))
    spec = read_spec(model)
    assert spec.nms is not None
    spec = replace(
        spec,
        score_floor=floor,
        threshold=max(spec.threshold, floor),
        nms=replace(spec.nms, iou=iou),
    )
    entry = next(p for p in changed.metadata_props if p.key == METADATA_KEY)
    entry.value = spec.to_json()
    return changed


def without_nms(path: Path) -> bytes:
    """Return an exported graph of the o2m head that ends in the candidates of its NMS."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path))  # names the values inside
    part: ModelProto = Extractor(model).extract_model(["images"], list(CANDIDATES))
    return bytes(part.SerializeToString())


def nms_tail(spec: ModelSpec, candidates: int, floor: float, iou: float) -> ModelProto:
    """Return the exported graphs' last part alone: `CANDIDATES` → detections, for any batch.

    Its inputs are named "in_" and the candidate's name: boxes float32 [N, T, 4], scores float32
    [N, T], classes int64 [N, T].

    Args:
        spec: of the o2m model.
        candidates: T, of each image.
        floor, iou: scores above the one take part; boxes overlapping by more than the other go.
    """
    assert spec.nms is not None
    kinds = (TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.INT64)
    row: list[str | int] = ["batch", candidates]
    shapes = [[*row, 4], row, row]
    values = list(zip(CANDIDATES, kinds, shapes, strict=True))
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
    """Return `nms_tail` up to what `NonMaxSuppression` selects: one output, `SELECTED`."""
    model = nms_tail(spec, candidates, floor, iou)
    del model.graph.output[:]
    selected = helper.make_tensor_value_info(SELECTED, TensorProto.INT64, ["kept", 3])
    model.graph.output.append(selected)
    return model
