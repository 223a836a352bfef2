"""The ONNX file that an engine is built from, checked and made into what the builder takes."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto, TensorProto, helper

from nmsfree.backends.contract import MAX_ONNX
from nmsfree.decode import read_bytes
from nmsfree.errors import ModelError
from nmsfree.spec import METADATA_KEY, ModelSpec
from nmsfree_export.graph.nms import CANDIDATES

_CLASSES = CANDIDATES[2]


def cut_nms(model: ModelProto) -> None:
    """Take off what `nms_tail.append_nms` added, in place: the outputs are `CANDIDATES` again.

    Classes become int32: TensorRT takes int64 outputs only into int64 buffers.
    """
    graph = model.graph
    _rename(model, _CLASSES, f"{_CLASSES}_int64")
    _keep_what_feeds(model, {*CANDIDATES[:2], f"{_CLASSES}_int64"})
    graph.node.append(
        helper.make_node("Cast", [f"{_CLASSES}_int64"], [_CLASSES], to=TensorProto.INT32)
    )
    batch = graph.input[0].type.tensor_type.shape.dim[0]
    n = batch.dim_param or batch.dim_value
    kinds = (TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.INT32)
    shapes = ([n, "candidates", 4], [n, "candidates"], [n, "candidates"])
    del graph.output[:]
    for name, kind, shape in zip(CANDIDATES, kinds, shapes, strict=True):
        graph.output.append(helper.make_tensor_value_info(name, kind, shape))


def _rename(model: ModelProto, old: str, new: str) -> None:
    """Give a value another name, where it is made and wherever it is used."""
    for node in model.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new
    for value in model.graph.value_info:
        if value.name == old:
            value.name = new


def _keep_what_feeds(model: ModelProto, needed: set[str]) -> None:
    """Drop the nodes, initialisers and notes on types that these values do not need."""
    graph, kept = model.graph, []
    for node in reversed(graph.node):  # sorted topologically, by ONNX's rules
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    kept.reverse()
    weights = [tensor for tensor in graph.initializer if tensor.name in needed]
    notes = [value for value in graph.value_info if value.name in needed]
    for field, values in (
        (graph.node, kept),
        (graph.initializer, weights),
        (graph.value_info, notes),
    ):
        copies = [type(value).FromString(value.SerializeToString()) for value in values]
        del field[:]
        field.extend(copies)


@dataclass(frozen=True)
class Source:
    """A model, ready for the vendor's parser.

    Attributes:
        path: the ONNX file.
        sha256: of the file.
        spec: its description.
        graph: what is parsed: the file's bytes, or those of its graph without NMS.
        nms_on_host: the NMS was cut off.
    """

    path: Path
    sha256: str
    spec: ModelSpec
    graph: bytes
    nms_on_host: bool


def read_source(path: Path, *, builds_nms: bool) -> Source:
    """Read an ONNX file of this project.

    Args:
        builds_nms: whether the builder has NonMaxSuppression; else it is cut off.

    Raises:
        ModelError: missing, not ONNX, not written by this project, or its weights lie elsewhere.
    """
    content = read_bytes(path, MAX_ONNX, ModelError)
    model = _parse(path, content)
    spec = _read_spec(path, model)
    if any(t.data_location == TensorProto.EXTERNAL for t in model.graph.initializer):
        raise ModelError(
            f"{path}: its weights lie in another file, expected one file: export the model again"
        )
    cut = spec.nms is not None and not builds_nms
    if cut:
        cut_nms(model)
    graph = model.SerializeToString() if cut else content
    return Source(path, hashlib.sha256(content).hexdigest(), spec, graph, cut)


def _parse(path: Path, content: bytes) -> ModelProto:
    try:
        return onnx.load_from_string(content)
    except DecodeError:
        raise ModelError(
            f"{path}: not an ONNX file: export the checkpoint with `nmsfree export`"
        ) from None


def _read_spec(path: Path, model: ModelProto) -> ModelSpec:
    texts = [entry.value for entry in model.metadata_props if entry.key == METADATA_KEY]
    if not texts:
        raise ModelError(
            f"{path}: no '{METADATA_KEY}' metadata, so this is not a model exported by nmsfree: "
            "export the checkpoint with `nmsfree export`"
        )
    return ModelSpec.from_json(texts[0], f"{path}: model description")
