"""Parts of a graph that can be run by themselves, in ONNX Runtime on the processor.

Nothing is fused or optimised: every node computes what the file says, so a rounding that is
written there happens, and values between the nodes can be read.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, ValueInfoProto, helper

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
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4  # overflow is reported by ourselves
    session = ort.InferenceSession(
        part.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )

    def run(values: Mapping[str, NDArray[Any]]) -> Values:
        found = session.run(outputs, {name: values[name] for name in inputs})
        return dict(zip(outputs, found, strict=True))

    return run


def _bytes(value: ValueInfoProto) -> int:
    dims = value.type.tensor_type.shape.dim
    return 4 * int(np.prod([d.dim_value or 1 for d in dims], dtype=np.int64))
