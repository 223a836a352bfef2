"""The layers of a graph: what they are called, what feeds them, and which are the same in another.

A layer is a convolution, a norm, a sum or a pooling that the picture reaches before the best rows
are chosen; after that the values of two files belong to different cells. A convolution is called
by its weights, "backbone.layer1.0.conv2", any other by the layer before it, "….conv2.add". So the
levels that share weights share a name, and the layers of a name have one precision.

Between two layers lie activations, shapes, and what makes a precision: Cast, QuantizeLinear and
DequantizeLinear. All of that belongs to the layer that reads it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from onnx import ModelProto, NodeProto

from nmsfree_export.precision import conv_precision

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
