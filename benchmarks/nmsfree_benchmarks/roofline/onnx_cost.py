"""What an ONNX graph must do at least: multiply-adds and bytes, layer by layer.

A layer is a convolution or matrix product with what works element by element on its result (ReLU,
a sum with another map …), or any other operator for itself. Within a layer nothing is written and
read again, as a good engine joins such operators; between layers every value is written once
and read once by each reader. Weights are read once by each layer that uses them.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from onnx import ModelProto, NodeProto

from nmsfree.errors import ModelError
from nmsfree_benchmarks.roofline.onnx_values import VIEWS, Values

CONVOLUTIONS = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3}  # operator → index of the weights
PRODUCTS = {"MatMul": 1, "Gemm": 1, "MatMulInteger": 1, "QLinearMatMul": 3}
ELEMENTWISE = frozenset(
    {
        *("Relu", "LeakyRelu", "Clip", "Sigmoid", "HardSigmoid", "Tanh", "Exp", "Sqrt", "Floor"),
        *("Add", "Sub", "Mul", "Div", "Pow", "Neg", "Max", "Min", "BatchNormalization"),
        *("Cast", "QuantizeLinear"),
    }
)
PICKERS = ("Gather", "GatherElements", "GatherND", "Slice")  # read what they pick, not all
NOTHING = (*VIEWS, "Constant", "Shape", "ConstantOfShape", "Size")


@dataclass(frozen=True)
class Layer:
    """Attributes:
    name: of its first node; kind: operator of that node.
    precision: of the factors that are multiplied; "" where nothing is.
    macs: multiply-adds of convolutions and matrix products.
    weight_bytes, read_bytes, written_bytes: initialisers, and values from and for other layers.
    names: nodes and values by which an engine may call it in a profile.
    """

    name: str
    kind: str
    precision: str
    macs: int
    weight_bytes: int
    read_bytes: int
    written_bytes: int
    names: frozenset[str] = frozenset()

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


@dataclass(eq=False)
class _Group:
    """Nodes that become one layer."""

    nodes: list[NodeProto] = field(default_factory=list)


def count_layers(model: ModelProto, batch: int = 1) -> tuple[Layer, ...]:
    """Count every layer of a graph that computes or moves something, in the graph's order.

    Args:
        batch: takes the place of a batch size that the file leaves open.

    Raises:
        ModelError: the shape of a convolution is not known.
    """
    values = Values(model, batch)
    groups = _groups(model, values)
    return tuple(_layer(group, values) for group in groups)


def _groups(model: ModelProto, values: Values) -> list[_Group]:
    made: dict[str, _Group] = {}  # value → the group whose last node gives it
    groups: list[_Group] = []
    for node in model.graph.node:
        if node.op_type in NOTHING:
            continue
        group = _to_join(node, made, values)
        if group is None:
            group = _Group()
            groups.append(group)
        group.nodes.append(node)
        made.update({name: group for name in node.output if name})
    return groups


def _to_join(node: NodeProto, made: dict[str, _Group], values: Values) -> _Group | None:
    """The layer whose result this node changes in place: of several, one that multiplies."""
    if node.op_type not in ELEMENTWISE:
        return None
    count = values[node.output[0]].count
    found = []
    for name in map(values.origin, node.input):
        group = made.get(name)
        last = group is not None and name in group.nodes[-1].output
        alone = values.readers[name] == 1 and name not in values.outputs
        if group is not None and last and alone and values[name].count == count:
            found.append(group)
    return max(found, key=lambda group: _multiplies(group.nodes[0]), default=None)


def _multiplies(node: NodeProto) -> bool:
    return node.op_type in CONVOLUTIONS or node.op_type in PRODUCTS


def _layer(group: _Group, values: Values) -> Layer:
    first = group.nodes[0]
    made = {name for node in group.nodes for name in node.output}
    final = {name for name in group.nodes[-1].output if name}
    weights, read = 0, 0
    seen: set[str] = set()
    for node in group.nodes:
        for name in map(values.origin, node.input):
            if name and name not in made and name not in seen:
                seen.add(name)
                value = values[name]
                weights += value.bytes if value.weight else 0
                read += 0 if value.weight else _read_bytes(node, name, values)
    return Layer(
        first.name or first.output[0],
        first.op_type,
        _precision(first, values),
        _macs(first, values),
        weights,
        read,
        sum(values[name].bytes for name in final),
        frozenset(_names(group)),
    )


def _read_bytes(node: NodeProto, name: str, values: Values) -> int:
    whole = values[name].bytes
    if node.op_type in PICKERS and name == values.origin(node.input[0]):
        return min(whole, values[node.output[0]].bytes)
    return whole


def _names(group: _Group) -> Iterator[str]:
    for node in group.nodes:
        yield node.name
        yield from node.output


def _precision(node: NodeProto, values: Values) -> str:
    index = (CONVOLUTIONS | PRODUCTS).get(node.op_type)
    return "" if index is None else values[node.input[index]].precision


def _macs(node: NodeProto, values: Values) -> int:
    """Every output value is one row of the weights times one column of what it sees."""
    if not _multiplies(node):
        return 0
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
