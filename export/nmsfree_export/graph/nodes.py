"""Writing nodes of a graph one below the other, as the calls of a program."""

from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from nmsfree.spec import ModelSpec


class Nodes:
    """Nodes as they are written down: a call adds one and returns the name of its output."""

    def __init__(self, prefix: str, opset: int) -> None:
        self.prefix, self.opset = prefix, opset
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def __call__(self, op: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        output = name or f"{self.prefix}{op}_{len(self.nodes)}"
        self._add(op, inputs, [output], attributes)
        return output

    def top(self, scores: str, k: int, name: str = "") -> tuple[str, str]:
        """The best k [N, k] along the second axis of scores [N, M], and their places."""
        best = name or f"{self.prefix}best_{len(self.nodes)}"
        places = f"{best}_places"
        self._add("TopK", [scores, self.of([k])], [best, places], {"axis": 1})
        return best, places

    def rows(self, values: str, places: str, columns: int) -> str:
        """Rows [N, k, columns] of values [N, M, columns] at places [N, k]."""
        wide = [self("Unsqueeze", places, self.of([2]))] * columns
        index = wide[0] if columns == 1 else self("Concat", *wide, axis=2)
        return self("GatherElements", values, index, axis=1)

    def best(
        self, boxes: str, scores: str, classes: str, k: int, name: str = ""
    ) -> tuple[str, str, str]:
        """Boxes [N, k, 4], scores [N, k] and classes [N, k] of the best k of [N, M] rows."""
        best, places = self.top(scores, k, name)
        label = self("GatherElements", classes, places, axis=1)
        return self.rows(boxes, places, 4), best, label

    def results(self, boxes: str, classes: str, floor: str, spec: ModelSpec) -> None:
        """The outputs of the contract beside `detection_scores`, which are there."""
        above = self("Max", boxes, self.of(0, np.float32))
        self("Min", above, self.limit(spec), name="detection_boxes")
        self("Cast", classes, name="detection_classes", to=TensorProto.INT32)
        counted = self("Greater", "detection_scores", floor)
        counted = self("Cast", counted, to=TensorProto.INT32)
        self("ReduceSum", counted, self.of([1]), name="num_detections", keepdims=1)

    def maximum(self, values: str) -> str:
        """[N, M, C] → [N, M]; the axis became an input with opset 18."""
        if self.opset < 18:
            return self("ReduceMax", values, axes=[2], keepdims=0)
        return self("ReduceMax", values, self.of([2]), keepdims=0)

    def limit(self, spec: ModelSpec) -> str:
        """Width, height, width, height of the input, float32 [4]."""
        if spec.size_step is None:
            return self.of([spec.width, spec.height] * 2, np.float32)
        sides = self("Shape", "images", start=1, end=3)
        sides = self("Cast", sides, to=TensorProto.FLOAT)
        return self("Gather", sides, self.of([1, 0, 1, 0]), axis=0)

    def of(self, value: Any, kind: Any = np.int64, name: str = "") -> str:
        """A constant."""
        name = name or f"{self.prefix}constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, kind), name))
        return name

    def _add(self, op: str, inputs: Any, outputs: list[str], attributes: dict[str, Any]) -> None:
        name = f"{self.prefix}{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, outputs, name, **attributes))
