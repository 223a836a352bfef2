"""FP32 graph → FP16 graph: products and their weights in half, with casts to float32 and back.

In half are matrix products and convolutions, whose sums a GPU's tensor cores keep in float32; and
what moves, adds, scales or bends their results, if all it reads is in half. In float32 stays:

- norms, also written out as ReduceMean, Pow, Sqrt and Div, and other sums over an axis: the square
  of 256 is beyond a half, whose 11 bits lose the small ones among thousands;
- Softmax, such a sum of exponentials;
- Exp, Log, Pow, Div and their like, so the inverse sigmoid of box refinement: they make a large
  error of a small one, and their epsilons are nothing in half;
- Sin and Cos of position embeddings, GridSample, and Floor, a part of it where it is written out:
  from 256 pixels on a half counts in quarters;
- comparisons, TopK: more scores would be equal;
- means of distributions, and what is added to them: boxes, from layer to layer of a decoder;
- sums and factors with constants beyond a half: masks of attention, anchors, layer scales;
- everything behind the last weights: boxes, sigmoid, the choice of the best rows, NMS.

What is in no list stays in float32.
"""

from collections.abc import Collection, Iterable

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from nmsfree_export.graph.layers import read_layers
from nmsfree_export.graph.values import PRODUCTS, find_places

MOVING = (
    "Concat DepthToSpace Expand Flatten Gather GatherElements GatherND Identity MaxPool Pad Reshape"
    " Resize Slice SpaceToDepth Split Squeeze Tile Transpose Unsqueeze Where"
)
BENDING = (
    "Abs Add Celu Clip Elu Erf Gelu HardSigmoid HardSwish LeakyRelu Max Min Mish Mul Neg PRelu Relu"
    " Selu Sigmoid Softplus Softsign Sub Tanh ThresholdedRelu"
)
FOLLOWERS = {*MOVING.split(), *BENDING.split()}
SHAPES = ("Shape", "Size")  # of a value of any type
LIMITS = np.finfo(np.float16)
FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def to_half(model: ModelProto, float_layers: Collection[str] = ()) -> ModelProto:
    """Return a half-precision version of a float32 graph, without a description.

    Layers named in `float_layers`, see `layers.py`, stay in float32. What they give stays so as far
    as the next product in half: no rounding is left between two of them.
    """
    return _Rounding(model, float_layers).model


class _Rounding:
    """The new graph, as it is written node by node."""

    def __init__(self, original: ModelProto, float_layers: Collection[str]) -> None:
        graph = onnx.shape_inference.infer_shapes(original).graph
        values = [*graph.value_info, *graph.input, *graph.output]
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        floats = [v.name for v in values if v.type.tensor_type.elem_type == FLOAT]
        floats += [name for name, t in self.tensors.items() if t.data_type == FLOAT]
        self.floats, self.half = set(floats), set[str]()  # values of these types, in the new graph
        self.places = find_places(original)
        spared = {layer.node for layer in read_layers(original) if layer.name in float_layers}
        self.model = ModelProto()
        self.model.CopyFrom(original)
        del self.model.graph.node[:], self.model.metadata_props[:]
        for place, node in enumerate(original.graph.node):
            fixed = place in self.places.tail | self.places.means or node.name in spared
            self._add(node, fixed)
        self._round_constants()
        for value in self.model.graph.value_info:
            if value.name in self.half:
                value.type.tensor_type.elem_type = HALF

    def _add(self, original: NodeProto, fixed: bool) -> None:
        node = NodeProto()
        node.CopyFrom(original)
        # The scales of a Resize are of one type whatever it resizes.
        read = node.input[:1] if node.op_type == "Resize" else node.input
        own = [name for name in read if name in self.floats]
        if not fixed and self._is_in_half(node, own):
            renamed = {n: self._as(n, HALF) for n in own if n not in self.half}
            self.half.update(name for name in node.output if name in self.floats)
        elif node.op_type not in SHAPES:
            renamed = {n: self._as(n, FLOAT) for n in own if n in self.half}
        else:
            renamed = {}
        node.input[:] = [renamed.get(name, name) for name in node.input]
        self.model.graph.node.append(node)

    def _is_in_half(self, node: NodeProto, floats: Iterable[str]) -> bool:
        constants = [name for name in floats if name in self.places.constants]
        values = [name for name in floats if name not in self.places.constants]
        if not values or node.op_type in PRODUCTS:
            return bool(values)
        return (
            node.op_type in FOLLOWERS
            and self.half.issuperset(values)
            and all(_fits(self.tensors.get(name)) for name in constants)
        )

    def _as(self, name: str, kind: int) -> str:
        """The name of a value in the other type; it is cast once, before it is first read so."""
        other = f"{name}.half" if kind == HALF else f"{name}.float"
        if name not in self.tensors and other not in self.half | self.floats:
            cast = helper.make_node("Cast", [name], [other], f"{other}.cast", to=kind)
            self.model.graph.node.append(cast)
        (self.half if kind == HALF else self.floats).add(other)
        return other

    def _round_constants(self) -> None:
        """Store what is read in half so: under its own name, if nothing else reads it."""
        graph = self.model.graph
        read = {name for node in graph.node for name in node.input}
        renamed, tensors = {}, []
        for name, tensor in self.tensors.items():
            other = f"{name}.half"
            if name in read:
                tensors.append(tensor)
            elif other in read:
                renamed[other] = name
            if other in read:
                with np.errstate(over="ignore"):  # parity, which can name the layer, judges
                    values = numpy_helper.to_array(tensor).astype(np.float16)
                tensors.append(numpy_helper.from_array(values, renamed.get(other, other)))
        del graph.initializer[:]
        graph.initializer.extend(tensors)
        for node in graph.node:
            node.input[:] = [renamed.get(name, name) for name in node.input]
        self.half.update(renamed.values())


def _fits(tensor: TensorProto | None) -> bool:
    """Whether a half can hold these numbers; what is computed of constants is taken for small."""
    if tensor is None:
        return True
    sizes = np.abs(numpy_helper.to_array(tensor))
    low, high = float(LIMITS.smallest_normal), float(LIMITS.max)
    return bool((sizes <= high).all() and (sizes[sizes > 0] >= low).all())
