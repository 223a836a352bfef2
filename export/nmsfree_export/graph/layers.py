"""The layers of a graph: what they are called, what feeds them, and which are the same in another.

A layer is a convolution, a norm, a sum or a pooling that the picture reaches before the best rows
are chosen; after that the values of two files belong to different cells. A convolution is called
by its weights, "backbone.layer1.0.conv2", any other by the layer before it, "….conv2.add". So the
levels that share weights share a name, and the layers of a name have one precision.

Between two layers lie activations, shapes, and what makes a precision: Cast, QuantizeLinear and
DequantizeLinear. All of that belongs to the layer that reads it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, ValueInfoProto, helper

from nmsfree.backends.onnxruntime.session import make_session
from nmsfree_export.graph.precision import conv_precision

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


@dataclass(frozen=True)
class Layer:
    """One node that computes, and its place.

    Attributes:
        name: "backbone.layer1.0.conv2"; several layers may share it.
        op: operator of ONNX.
        output: its value in the graph.
        feeds: values of the layers that it is computed from, in order; "images" for the first.
        precision: of a convolution's weights, "fp32", "fp16" or "int8"; "" for others.
        weights: name of a convolution's weights before quantisation; "" for others.
        node: name of the node.
    """

    name: str
    op: str
    output: str
    feeds: tuple[str, ...]
    precision: str
    weights: str
    node: str


def read_layers(model: ModelProto) -> list[Layer]:
    """Return the layers of a graph, each after those that feed it."""
    stored = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    types = {t.name: t.data_type for t in model.graph.initializer}
    origins: dict[str, tuple[str, ...]] = {v.name: (v.name,) for v in model.graph.input}
    chosen: set[str] = set()
    names: dict[str, str] = {}
    layers: list[Layer] = []
    for node in model.graph.node:  # sorted topologically, by ONNX's rules
        feeds = _feeds(node, origins)
        if node.op_type in CHOICES or chosen.intersection(node.input):
            chosen.update(node.output)
        elif node.op_type in SUFFIXES and feeds:
            weights = node.input[1] if node.op_type == "Conv" else ""
            source = stored.get(weights, weights)
            name = _name(node, source, names.get(feeds[0], feeds[0]))
            kind = conv_precision(types.get(source, 0)) if weights else ""
            plain = source.removesuffix("_quantized") if source != weights else source
            layers.append(Layer(name, node.op_type, node.output[0], feeds, kind, plain, node.name))
            names[node.output[0]] = name
            feeds = (node.output[0],)
        origins.update(dict.fromkeys(node.output, feeds))
    return layers


def _feeds(node: NodeProto, origins: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    if node.op_type in SHAPES:
        return ()
    found = (feed for name in node.input for feed in origins.get(name, ()))
    return tuple(dict.fromkeys(found))


def _name(node: NodeProto, weights: str, before: str) -> str:
    if node.op_type != "Conv":
        return before + SUFFIXES[node.op_type]
    plain = weights.removesuffix("_quantized").removesuffix(".weight")
    return plain.removeprefix("network.")


def pair_layers(a: Iterable[Layer], b: Iterable[Layer]) -> list[tuple[Layer, Layer]]:
    """Return the layers that two graphs have in common, in the order of the first.

    The same are convolutions with weights of the same name, or other layers of the same operator,
    if they are fed by the same. The names of values say nothing: with a batch of any size the
    exporter counts them differently for every precision. Nor does the order, which quantisation
    changes: several layers of one kind on the same feeds, as in a rival filter, are left out.
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
    """A model that parts can be cut out of.

    Attributes:
        model: the whole.
        types: element type of every value, as far as it can be inferred.
        sizes: float32 bytes of every value for one picture, as far as known.
    """

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self._makers = {name: node for node in model.graph.node for name in node.output}
        self._tensors = {t.name: t for t in model.graph.initializer}
        self._order = {name: i for i, node in enumerate(model.graph.node) for name in node.output}
        graph = onnx.shape_inference.infer_shapes(model).graph
        values = {v.name: v for v in [*graph.value_info, *graph.input, *graph.output]}
        self.types = {name: v.type.tensor_type.elem_type for name, v in values.items()}
        self.sizes = {name: _bytes(value) for name, value in values.items()}

    @property
    def batch(self) -> int:
        """The fixed batch size, or 1."""
        return self.model.graph.input[0].type.tensor_type.shape.dim[0].dim_value or 1

    def whole(self, outputs: Iterable[str]) -> Run:
        """Return what runs the graph up to these values."""
        return self._part(list(outputs), frozenset())

    def alone(self, outputs: Iterable[str], cut: frozenset[str]) -> tuple[Run, list[str]]:
        """Return what computes these values from given ones, and which it must be given.

        Args:
            cut: values that are not computed where a node reads them, but given.
        """
        outputs = list(outputs)
        _, given = self._reach(outputs, cut)
        return self._part(outputs, cut), given

    def _reach(self, outputs: list[str], cut: frozenset[str]) -> tuple[list[NodeProto], list[str]]:
        """Nodes that the outputs need, in order, and the values that are given."""
        found: dict[int, NodeProto] = {}
        given: dict[str, None] = {}
        open_values = [(name, True) for name in outputs]
        while open_values:
            name, is_output = open_values.pop()
            node = self._makers.get(name)
            if name in cut and not is_output:
                given[name] = None
            elif node is not None and self._order[name] not in found:
                found[self._order[name]] = node
                open_values += [(i, False) for i in node.input]
        return [found[i] for i in sorted(found)], list(given)

    def _part(self, outputs: list[str], cut: frozenset[str]) -> Run:
        nodes, given = self._reach(outputs, cut)
        renamed = {name: name + EXACT for name in given}
        nodes = [_rewired(node, renamed) for node in nodes]
        read = {name for node in nodes for name in node.input}
        inputs = [v for v in self.model.graph.input if v.name in read]
        inputs += [
            helper.make_tensor_value_info(new, self.types[old], None)
            for old, new in renamed.items()
        ]
        part = helper.make_model(
            helper.make_graph(
                nodes,
                "part",
                inputs,
                [ValueInfoProto(name=name) for name in outputs],
                [tensor for name, tensor in self._tensors.items() if name in read],
            ),
            opset_imports=self.model.opset_import,
            ir_version=self.model.ir_version,
        )
        return _session(part, outputs, [value.name for value in inputs])

    def as_given(self, name: str, value: NDArray[Any]) -> NDArray[Any]:
        """Round a value to the type it has in this graph, and repeat it to fill the batch."""
        kind = helper.tensor_dtype_to_np_dtype(self.types[name])
        with np.errstate(over="ignore"):  # beyond a half's range is what shall be seen
            return np.repeat(value[:1].astype(kind), self.batch, axis=0)


def _rewired(node: NodeProto, renamed: Mapping[str, str]) -> NodeProto:
    if not renamed.keys() & set(node.input):
        return node
    copied = NodeProto()
    copied.CopyFrom(node)
    copied.input[:] = [renamed.get(name, name) for name in node.input]
    return copied


def _session(part: ModelProto, outputs: list[str], inputs: list[str]) -> Run:
    session = make_session(part.SerializeToString(), optimize=False)  # reports no overflow: we do

    def run(values: Mapping[str, NDArray[Any]]) -> Values:
        found = session.run(outputs, {name: values[name] for name in inputs})
        return dict(zip(outputs, found, strict=True))

    return run


def _bytes(value: ValueInfoProto) -> int:
    dims = value.type.tensor_type.shape.dim
    return 4 * int(np.prod([d.dim_value or 1 for d in dims], dtype=np.int64))
