"""The layers of a graph: what they are called, what feeds them, and which are the same in another.

A layer is a convolution, a norm, a sum or a pooling that the picture reaches before the best rows
are chosen; after that the values of two files belong to different cells. A convolution is called
by its weights, "backbone.layer1.0.conv2", any other by the layer before it, "….conv2.add". So the
levels that share weights share a name, and the layers of a name have one precision.

Between two layers lie activations, shapes, and what makes a precision: Cast, QuantizeLinear and
DequantizeLinear. All of that belongs to the layer that reads it.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from nmsfree.backends.onnxruntime.session import make_session
from nmsfree_export.graph.contract import batch_of, made_of

SUFFIXES = {
    "Conv": "",
    "Add": ".add",
    "MaxPool": ".maxpool",
    "InstanceNormalization": ".norm",
    "GroupNormalization": ".norm",
    "BatchNormalization": ".norm",
}
CHOICES = ("TopK", "NonMaxSuppression")
SHAPES = ("Shape", "Size")  # depend on the size of a value only


_NAMES: dict[int, str] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.INT8: "int8",
}


def conv_weights(model: ModelProto) -> dict[str, tuple[str, str]]:
    """By the output of each convolution: its weights' name, and precision "fp32", "fp16" or "int8".

    The name is that of the initialiser, which may be dequantized on the way.
    """
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    stored = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    found = {}
    for node in model.graph.node:
        if node.op_type == "Conv":
            name = stored.get(node.input[1], node.input[1])
            found[node.output[0]] = name, _NAMES.get(kinds.get(name, 0), "unknown")
    return found


def conv_precisions(model: ModelProto) -> Counter[str]:
    """Count the convolutions of a graph by their precision."""
    return Counter(precision for _, precision in conv_weights(model).values())


@dataclass(frozen=True)
class Layer:
    """One node that computes, and its place."""

    name: str  # "backbone.layer1.0.conv2"; several layers may share it
    op: str  # operator of ONNX
    output: str  # its value in the graph
    feeds: tuple[str, ...]  # values of the layers it is computed from, in order; "images" first
    precision: str  # of a convolution's weights, "fp32", "fp16" or "int8"; "" for others
    weights: str  # name of a convolution's weights before quantization; "" for others
    node: str  # name of the node


def read_layers(model: ModelProto) -> list[Layer]:
    """Return the layers of a graph, each after those that feed it."""
    convs = conv_weights(model)
    origins: dict[str, tuple[str, ...]] = {v.name: (v.name,) for v in model.graph.input}
    chosen: set[str] = set()
    names: dict[str, str] = {}
    layers: list[Layer] = []
    for node in model.graph.node:  # sorted topologically, by ONNX's rules
        read = [] if node.op_type in SHAPES else node.input
        feeds = tuple(dict.fromkeys(feed for name in read for feed in origins.get(name, ())))
        if node.op_type in CHOICES or chosen.intersection(node.input):
            chosen.update(node.output)
        elif node.op_type in SUFFIXES and feeds:
            output = node.output[0]
            weights, precision = convs.get(output, ("", ""))
            weights = weights.removesuffix("_quantized")
            name = weights.removesuffix(".weight").removeprefix("network.")
            name = name or names.get(feeds[0], feeds[0]) + SUFFIXES[node.op_type]
            layers.append(Layer(name, node.op_type, output, feeds, precision, weights, node.name))
            names[output] = name
            feeds = (output,)
        origins.update(dict.fromkeys(node.output, feeds))
    return layers


def pair_layers(a: Iterable[Layer], b: Iterable[Layer]) -> list[tuple[Layer, Layer]]:
    """Return the layers that two graphs have in common, in the order of the first.

    The same are convolutions with weights of the same name, or other layers of the same operator,
    if they are fed by the same. The names of values say nothing: with a batch of any size the
    exporter counts them differently for every precision. Nor does the order, which quantization
    changes: several layers of one kind on the same feeds, as in a duplicate filter, are left out.
    """
    numbers: dict[object, int] = {}
    ours, theirs = _unique(a, numbers), _unique(b, numbers)
    return [(layer, theirs[key]) for key, layer in ours.items() if key in theirs]


def _unique(layers: Iterable[Layer], numbers: dict[object, int]) -> dict[int, Layer]:
    """Number every layer by what it is and what feeds it; return those that are alone in that."""
    own: dict[str, int] = {}
    found: dict[int, list[Layer]] = {}
    for layer in layers:
        what = (layer.op, layer.weights, *(own.get(feed, -1) for feed in layer.feeds))
        own[layer.output] = numbers.setdefault(what, len(numbers))
        found.setdefault(own[layer.output], []).append(layer)
    return {key: same[0] for key, same in found.items() if len(same) == 1}


EXACT = ".exact"  # ends the name of a value that is fed instead of computed

Values = dict[str, NDArray[Any]]
Run = Callable[[Mapping[str, NDArray[Any]]], Values]


class Graph:
    """A model that parts can be cut out of."""

    def __init__(self, model: ModelProto) -> None:
        self._model, self.batch = model, batch_of(model)
        graph = onnx.shape_inference.infer_shapes(model).graph
        values = {v.name: v for v in [*graph.value_info, *graph.input, *graph.output]}
        self.types = {name: v.type.tensor_type.elem_type for name, v in values.items()}
        self.sizes = {name: _bytes(value) for name, value in values.items()}  # of one picture

    def part(self, outputs: Iterable[str], cut: Collection[str] = ()) -> tuple[Run, list[str]]:
        """Return what computes these values, and which it must be given for that.

        Values to `cut` are not computed where a node reads them, but given, by name and `EXACT`.
        """
        outputs, graph = list(outputs), self._model.graph
        nodes, _ = made_of(graph.node, outputs, cut)
        given = list(dict.fromkeys(i for node in nodes for i in node.input if i in cut))
        nodes = [_rewired(node, given) for node in nodes]
        read = {name for node in nodes for name in node.input}
        inputs = [v for v in graph.input if v.name in read]
        inputs += [helper.make_tensor_value_info(g + EXACT, self.types[g], None) for g in given]
        part = helper.make_model(
            helper.make_graph(
                nodes,
                "part",
                inputs,
                [ValueInfoProto(name=name) for name in outputs],
                [tensor for tensor in graph.initializer if tensor.name in read],
            ),
            opset_imports=self._model.opset_import,
            ir_version=self._model.ir_version,
        )
        session = make_session(part.SerializeToString(), optimize=False)
        names = [value.name for value in inputs]

        def run(values: Mapping[str, NDArray[Any]]) -> Values:
            found = session.run(outputs, {name: values[name] for name in names})
            return dict(zip(outputs, found, strict=True))

        return run, given

    def as_given(self, name: str, value: NDArray[Any]) -> NDArray[Any]:
        """Round a value to the type it has in this graph, and repeat it to fill the batch."""
        kind = helper.tensor_dtype_to_np_dtype(self.types[name])
        with np.errstate(over="ignore"):  # beyond a half's range is what shall be seen
            return np.repeat(value[:1].astype(kind), self.batch, axis=0)


def _rewired(node: NodeProto, given: Collection[str]) -> NodeProto:
    copied = NodeProto()
    copied.CopyFrom(node)
    copied.input[:] = [name + EXACT if name in given else name for name in node.input]
    return copied


def _bytes(value: ValueInfoProto) -> int:
    dims = value.type.tensor_type.shape.dim
    return 4 * int(np.prod([d.dim_value or 1 for d in dims], dtype=np.int64))
