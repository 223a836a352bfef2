"""The ONNX file that an engine is built from, checked and made into what the builder takes."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto, TensorProto

from nmsfree.backends import MAX_ONNX
from nmsfree.decode import read_bytes
from nmsfree.errors import ModelError
from nmsfree.spec import METADATA_KEY, ModelSpec
from nmsfree_export.engine_cut import cut_nms


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
