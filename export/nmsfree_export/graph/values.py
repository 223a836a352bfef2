"""What the nodes of a graph are to each other: which apply weights, and which come behind the last.

A product is one with weights if what it multiplies depends on the picture on one side only. Two
kinds of nodes are no part of the network in this sense: the tail, behind the last weights
(decoding, sigmoid, the choice of the best rows, NMS), and means of distributions: a Softmax over
offsets of a box side, multiplied with these offsets, as heads with distributions have.
"""

from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from nmsfree_export.graph.contract import made_of

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
MOVES = ("Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


@dataclass(frozen=True)
class Places:
    """Where things are in a graph; nodes by their place in the list."""

    constants: frozenset[str]  # values that no picture changes
    weighted: frozenset[int]  # products with weights
    means: frozenset[int]  # those of them that are means of distributions
    last: frozenset[int]  # those of the others that feed no other
    tail: frozenset[int]  # nodes that feed no product with weights but means, and are none


def find_places(model: ModelProto) -> Places:
    """Look through a graph, whose nodes are sorted by ONNX's rules."""
    nodes = model.graph.node
    constants = {tensor.name for tensor in model.graph.initializer}
    weighted, means, shares = set(), set(), set()
    for place, node in enumerate(nodes):
        if constants.issuperset(name for name in node.input if name):
            constants.update(node.output)
            continue
        if node.op_type == "Softmax" or (node.op_type in MOVES and node.input[0] in shares):
            shares.update(node.output)
        if node.op_type in PRODUCTS and not constants.isdisjoint(node.input[:2]):
            weighted.add(place)
            if not shares.isdisjoint(node.input[:2]):
                means.add(place)
    feeding: set[str] = set()  # values that weights are applied to
    last, tail = set(), set()
    for place in reversed(range(len(nodes))):
        feeds = not feeding.isdisjoint(nodes[place].output)
        own = place in weighted - means
        if own and not feeds:
            last.add(place)
        if own or feeds:
            feeding.update(nodes[place].input)
        else:
            tail.add(place)
    return Places(*map(frozenset, (constants, weighted, means, last, tail)))


def simplified(model: ModelProto) -> ModelProto:
    """Return the same graph with constants as initialisers, a name for each node, nothing idle.

    Other projects' files have nodes Constant, weights that go through Identity, and values that
    nobody reads. The model's description goes, too.
    """
    result = ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    outputs = [value.name for value in graph.output]
    same: dict[str, str] = {}
    kept = []
    for node in graph.node:
        node.input[:] = [same.get(name, name) for name in node.input]
        if node.op_type == "Constant":
            graph.initializer.append(_as_tensor(node))
        elif node.op_type == "Identity" and node.output[0] not in outputs:
            same[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    nodes, needed = made_of(kept, outputs)
    names = [node.name for node in nodes]
    for place, node in enumerate(nodes):
        if not node.name or names.count(node.name) > 1:
            node.name = f"{node.op_type}.{place}"
    tensors = [tensor for tensor in graph.initializer if tensor.name in needed]
    made = {name for node in nodes for name in node.output}
    types = [value for value in graph.value_info if value.name in needed | made]
    fields = graph.node, graph.initializer, graph.value_info
    for field, values in zip(fields, (nodes, tensors, types), strict=True):
        copies = [type(value).FromString(value.SerializeToString()) for value in values]
        del field[:]
        field.extend(copies)
    del result.metadata_props[:]
    return result


def _as_tensor(node: NodeProto) -> TensorProto:
    """What a node Constant holds."""
    attribute = node.attribute[0]
    if attribute.name == "value":
        tensor = TensorProto()
        tensor.CopyFrom(attribute.t)
        tensor.name = node.output[0]
        return tensor
    kind = np.int64 if "int" in attribute.name else np.float32
    values = np.array(helper.get_attribute_value(attribute), kind)
    return numpy_helper.from_array(values, node.output[0])
