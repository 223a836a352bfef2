"""The layers of a graph: what they are called, what feeds them, and which are the same in another.

A layer is a convolution, a matrix product, a norm, a sum or a pooling that the picture reaches
before the best rows of the result are chosen; after that the values of two files belong to
different cells. What has weights is called by them, "backbone.layer1.0.conv2", any other by the
layer before it, "….conv2.add". So the levels that share weights share a name, and the layers of a
name have one precision.

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
from nmsfree_export.graph.values import PRODUCTS, find_places

SUFFIXES = {
    **dict.fromkeys(PRODUCTS, ".product"),  # of two values, as in attention
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


def count_precisions(model: ModelProto) -> Counter[str]:
    """Count the layers with weights by their precision."""
    return Counter(layer.precision for layer in read_layers(model) if layer.precision)


@dataclass(frozen=True)
class Layer:
    """One node that computes, and its place."""

    name: str  # "backbone.layer1.0.conv2"; several layers may share it
    op: str  # operator of ONNX
    output: str  # its value in the graph
    feeds: tuple[str, ...]  # values of the layers it is computed from, in order; "images" first
    precision: str  # of its weights, "fp32", "fp16" or "int8"; "" where it has none
    weights: str  # their name before quantization, or ""
    node: str  # name of the node
    is_mean: bool = False  # of a distribution, see `values.py`


def read_layers(model: ModelProto) -> list[Layer]:
    """Return the layers of a graph, each after those that feed it."""
    places = find_places(model)
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    stored = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    origins: dict[str, tuple[str, ...]] = {v.name: (v.name,) for v in model.graph.input}
    chosen: set[str] = set()
    names: dict[str, str] = {}
    layers: list[Layer] = []
    for place, node in enumerate(model.graph.node):  # sorted topologically, by ONNX's rules
        read = [] if node.op_type in SHAPES else node.input
        feeds = tuple(dict.fromkeys(feed for name in read for feed in origins.get(name, ())))
        is_choice = node.op_type in CHOICES and place in places.tail  # not that of queries
        if is_choice or chosen.intersection(node.input):
            chosen.update(node.output)
        elif node.op_type in SUFFIXES and feeds:
            output, weights, precision = node.output[0], "", ""
            if place in places.weighted:
                weights = next(w for w in node.input[1::-1] if w in places.constants)
                weights = stored.get(weights, weights)
                precision = _NAMES.get(kinds.get(weights, 0), "unknown")
                weights = weights.removesuffix("_quantized").removesuffix(".half")
            name = _layer_name(weights, node)
            name = name or names.get(feeds[0], feeds[0]) + SUFFIXES[node.op_type]
            is_mean = place in places.means
            layers.append(
                Layer(name, node.op_type, output, feeds, precision, weights, node.name, is_mean)
            )
            names[output] = name
            feeds = (output,)
        origins.update(dict.fromkeys(node.output, feeds))
    return layers


def _layer_name(weights: str, node: NodeProto) -> str:
    """What a layer with weights is called: by them, or by its node where they have but a number."""
    if "onnx::" in weights or "/" in weights.removeprefix("net/"):
        weights = node.name
    return weights.removeprefix("net/").removesuffix(".weight").removeprefix("network.")


def pair_layers(a: Iterable[Layer], b: Iterable[Layer]) -> list[tuple[Layer, Layer]]:
    """Return the layers that two graphs have in common, in the order of the first.

    The same are layers with weights of the same name, or others of the same operator, if they are
    fed by the same. The names of values say nothing: with a batch of any size the
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

    def as_given(self, name: str, value: NDArray[Any], batch: int) -> NDArray[Any]:
        """Round a value to the type it has in this graph; of another batch, let it fill this one.

        The batch of its own is the first axis, but for some values of other projects' networks.
        """
        kind = helper.tensor_dtype_to_np_dtype(self.types[name])
        with np.errstate(over="ignore"):  # beyond a half's range is what shall be seen
            value = value.astype(kind)
        return value if batch == self.batch else np.repeat(value[:1], self.batch, axis=0)


def _rewired(node: NodeProto, given: Collection[str]) -> NodeProto:
    copied = NodeProto()
    copied.CopyFrom(node)
    copied.input[:] = [name + EXACT if name in given else name for name in node.input]
    return copied


def _bytes(value: ValueInfoProto) -> int:
    dims = value.type.tensor_type.shape.dim
    return 4 * int(np.prod([d.dim_value or 1 for d in dims], dtype=np.int64))
