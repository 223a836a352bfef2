"""What an ONNX graph must do at least: multiply-adds and bytes, layer by layer.

A layer is a convolution or matrix product with what works element by element on its result (ReLU,
a sum with another map …), or any other operator for itself. Within a layer nothing is written and
read again, as a good engine joins such operators; between layers every value is written once
and read once by each reader. Weights are read once by each layer that uses them.
"""

import math
import tempfile
from collections import Counter
from dataclasses import dataclass

import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto

from nmsfree.backends.contract import one_line
from nmsfree.errors import ModelError

CONVOLUTIONS = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3}  # operator → index of the weights
PRODUCTS = {"MatMul": 1, "Gemm": 1, "MatMulInteger": 1, "QLinearMatMul": 3}
MULTIPLYING = CONVOLUTIONS | PRODUCTS
ELEMENTWISE = frozenset(
    {
        *("Relu", "LeakyRelu", "Clip", "Sigmoid", "HardSigmoid", "Tanh", "Exp", "Sqrt", "Floor"),
        *("Add", "Sub", "Mul", "Div", "Pow", "Neg", "Max", "Min", "BatchNormalization"),
        *("Cast", "QuantizeLinear"),
    }
)
PICKERS = ("Gather", "GatherElements", "GatherND", "Slice")  # read what they pick, not all
# Another name or shape for the same bytes; DequantizeLinear is done by whoever reads the value.
VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "DequantizeLinear")
NOTHING = (*VIEWS, "Constant", "Shape", "ConstantOfShape", "Size")
PRECISIONS: dict[int, str] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "int8",
}


@dataclass(frozen=True)
class Value:
    shape: tuple[int, ...]  # a dimension that depends on the data (what NMS leaves) counts as 0
    kind: int  # a `TensorProto.DataType`
    weight: bool = False  # an initialiser, so it is read but never written

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        item = onnx.helper.tensor_dtype_to_np_dtype(self.kind).itemsize if self.kind else 0
        return self.count * item

    @property
    def precision(self) -> str:
        """ "fp32", "fp16", "bf16", "int8"; "other" for what no convolution computes in."""
        return PRECISIONS.get(self.kind, "other")


class Values:
    """All values of a graph by name; views are followed to what they look at.

    A batch size that the file leaves open becomes `batch`.
    """

    def __init__(self, model: ModelProto, batch: int = 1) -> None:
        graph = _inferred(model, batch).graph
        self._known = {w.name: Value(tuple(w.dims), w.data_type, True) for w in graph.initializer}
        for info in (*graph.input, *graph.output, *graph.value_info):
            self._known.setdefault(info.name, _value(info))
        self._origin: dict[str, str] = {}
        self.readers: Counter[str] = Counter()
        for node in graph.node:
            if node.op_type in VIEWS:
                self._origin[node.output[0]] = self.origin(node.input[0])
            else:
                self.readers.update(map(self.origin, node.input))
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


def with_constants(model: ModelProto, batch: int = 1) -> ModelProto:
    """The graph with what ONNX Runtime computes of constants, as shapes may depend on it.

    ModelError: it does not read the graph.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3  # it warns that others may not read the file
    with tempfile.TemporaryDirectory(prefix="nmsfree-layers-") as folder:
        options.optimized_model_filepath = f"{folder}/model.onnx"
        data = _inferred(model, batch).SerializeToString()
        try:
            onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001 (of many classes of its own)
            raise ModelError(f"ONNX Runtime does not read the graph: {one_line(error)}") from None
        return onnx.load(options.optimized_model_filepath)


def _value(info: ValueInfoProto) -> Value:
    tensor = info.type.tensor_type
    return Value(tuple(dim.dim_value for dim in tensor.shape.dim), tensor.elem_type)


@dataclass(frozen=True)
class Layer:
    """Nodes that an engine runs as one, and what they cost at least."""

    name: str  # of its first node
    kind: str  # operator of that node
    precision: str  # of the factors that are multiplied; "" where nothing is
    macs: int  # multiply-adds of convolutions and matrix products
    weight_bytes: int
    read_bytes: int  # values from other layers
    written_bytes: int
    names: frozenset[str] = frozenset()  # by which an engine may call it in a profile

    @property
    def flop(self) -> int:
        """A multiply-add is two operations."""
        return 2 * self.macs

    @property
    def bytes(self) -> int:
        return self.weight_bytes + self.read_bytes + self.written_bytes

    @property
    def intensity(self) -> float:
        """FLOP for each byte; the horizontal axis of a roofline."""
        return self.flop / self.bytes if self.bytes else 0.0


Group = list[NodeProto]  # nodes that become one layer


def count_layers(model: ModelProto, batch: int = 1) -> tuple[Layer, ...]:
    """Count every layer of a graph that computes or moves something, in the graph's order.

    A batch size that the file leaves open becomes `batch`. ModelError: a shape is not known.
    """
    values = Values(model, batch)
    made: dict[str, Group] = {}  # value → the group whose last node gives it
    groups: list[Group] = []
    for node in model.graph.node:
        if node.op_type in NOTHING:
            continue
        group = _to_join(node, made, values)
        if group is None:
            group = []
            groups.append(group)
        group.append(node)
        made.update({name: group for name in node.output if name})
    return tuple(_layer(group, values) for group in groups)


def _to_join(node: NodeProto, made: dict[str, Group], values: Values) -> Group | None:
    """The layer whose result this node changes in place: of several, one that multiplies."""
    if node.op_type not in ELEMENTWISE:
        return None
    count = values[node.output[0]].count
    found = []
    for name in map(values.origin, node.input):
        group = made.get(name)
        alone = values.readers[name] == 1 and name not in values.outputs
        if group and name in group[-1].output and alone and values[name].count == count:
            found.append(group)
    return max(found, key=lambda group: group[0].op_type in MULTIPLYING, default=None)


def _layer(group: Group, values: Values) -> Layer:
    first = group[0]
    made = {name for node in group for name in node.output}
    weights, read = 0, 0
    seen: set[str] = set()
    for node in group:
        for name in map(values.origin, node.input):
            if name and name not in made and name not in seen:
                seen.add(name)
                value = values[name]
                weights += value.bytes if value.weight else 0
                read += 0 if value.weight else _read_bytes(node, name, values)
    index = MULTIPLYING.get(first.op_type)
    return Layer(
        first.name or first.output[0],
        first.op_type,
        "" if index is None else values[first.input[index]].precision,
        0 if index is None else _macs(first, values),
        weights,
        read,
        sum(values[name].bytes for name in {name for name in group[-1].output if name}),
        frozenset(name for node in group for name in (node.name, *node.output)),
    )


def _read_bytes(node: NodeProto, name: str, values: Values) -> int:
    whole = values[name].bytes
    if node.op_type in PICKERS and name == values.origin(node.input[0]):
        return min(whole, values[node.output[0]].bytes)
    return whole


def _macs(node: NodeProto, values: Values) -> int:
    """Every output value is one row of the weights times one column of what it sees."""
    outputs = math.prod(values.shape(node.output[0]))
    if node.op_type in CONVOLUTIONS:
        each = math.prod(values.shape(node.input[CONVOLUTIONS[node.op_type]])[1:])
    else:
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        left = values.shape(node.input[0])
        each = left[0 if transposed else -1] if left else 0
    if outputs * each == 0:
        raise ModelError(f"{node.op_type} {node.name}: its shape is not known, expected fixed ones")
    return outputs * each
