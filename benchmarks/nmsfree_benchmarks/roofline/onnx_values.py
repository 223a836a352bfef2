"""The values of an ONNX graph: how large each is, and in what it is really stored."""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import ModelProto, TensorProto, ValueInfoProto

from nmsfree.errors import ModelError

# Another name or shape for the same bytes; DequantizeLinear is done by whoever reads the value.
VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "DequantizeLinear")
PRECISIONS: dict[int, str] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "int8",
}


@dataclass(frozen=True)
class Value:
    """Attributes:
    shape: a dimension that depends on the data (what NMS leaves) counts as 0; () is a scalar.
    kind: a `TensorProto.DataType`.
    weight: an initialiser, so it is read but never written.
    """

    shape: tuple[int, ...]
    kind: int
    weight: bool = False

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.count * _item_bytes(self.kind)

    @property
    def precision(self) -> str:
        """ "fp32", "fp16", "bf16", "int8"; "other" for what no convolution computes in."""
        return PRECISIONS.get(self.kind, "other")


class Values:
    """All values of a graph by name; views are followed to what they look at."""

    def __init__(self, model: ModelProto, batch: int = 1) -> None:
        """Infer the shapes.

        Args:
            model: stays as it is.
            batch: takes the place of a batch size that the file leaves open.
        """
        graph = _inferred(model, batch).graph
        self._known = {w.name: Value(tuple(w.dims), w.data_type, True) for w in graph.initializer}
        for info in (*graph.input, *graph.output, *graph.value_info):
            self._known.setdefault(info.name, _value(info))
        self._origin: dict[str, str] = {}
        for node in graph.node:
            if node.op_type in VIEWS:
                self._origin[node.output[0]] = self.origin(node.input[0])
        reads = (
            self.origin(name) for n in graph.node for name in n.input if n.op_type not in VIEWS
        )
        self.readers = Counter(reads)
        self.outputs = {self.origin(output.name) for output in graph.output}

    def origin(self, name: str) -> str:
        """The stored value behind a name; itself unless it is a view."""
        return self._origin.get(name, name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the value as the graph names it, views included."""
        known = self._known.get(name)
        return () if known is None else known.shape

    def __getitem__(self, name: str) -> Value:
        """The stored value; what nothing is known of counts as nothing."""
        return self._known.get(self.origin(name), Value((0,), TensorProto.FLOAT))


def load_model(path: Path) -> ModelProto:
    """Read an ONNX file.

    Raises:
        ModelError: it is missing or no ONNX file.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        return onnx.load(path)
    except (OSError, DecodeError) as error:
        reason = getattr(error, "strerror", None) or "not ONNX"
        raise ModelError(f"{path}: cannot be read ({reason}), expected an ONNX file") from None


def _inferred(model: ModelProto, batch: int) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    for info in copy.graph.input:
        dims = info.type.tensor_type.shape.dim
        if dims and not dims[0].HasField("dim_value"):
            dims[0].dim_value = batch
    for output in copy.graph.output:
        output.type.tensor_type.ClearField("shape")  # they name the open batch size
    del copy.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(copy, data_prop=True)


def _value(info: ValueInfoProto) -> Value:
    tensor = info.type.tensor_type
    return Value(tuple(dim.dim_value for dim in tensor.shape.dim), tensor.elem_type)


def _item_bytes(kind: int) -> int:
    return onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize if kind else 0
