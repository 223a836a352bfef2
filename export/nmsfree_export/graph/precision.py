"""Precision is in the graph: which parts of a deployed network compute in half, read back from it.

Half precision ("fp16") is for convolutions, whose products a GPU's tensor cores add in float32.
Kept in float32: the pixels' normalisation (values up to 255 and their differences), GroupNorm (its
variance sums thousands of squares, of which a half's 11 bits lose the small ones), the comparison
of boxes in a rival filter, and all after the network: decoding, where exp turns a rounding of the
logarithm into pixels, sigmoid and the choice of the best rows. INT8 is another graph, made from
the one in float32: see `quantise.py`.
"""

import copy
from collections import Counter
from collections.abc import Collection
from typing import Literal

from onnx import ModelProto, TensorProto
from torch import Tensor, nn

from nmsfree_export.graph.deploy import DeployNetwork

Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")

_NAMES: dict[int, str] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.INT8: "int8",
}


class FloatNorm(nn.Module):
    """A norm that computes in float32 between halves."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x.float())
        return out.half()


class MixedConv(nn.Conv2d):
    """A convolution among others of another precision: takes either, gives its own."""

    @classmethod
    def like(cls, conv: nn.Conv2d) -> "MixedConv":
        """Return a copy, with the same weights and their precision."""
        mixed: MixedConv = copy.deepcopy(conv)  # type: ignore[assignment]
        mixed.__class__ = cls
        return mixed

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


def to_half(network: DeployNetwork, kept: Collection[str] = ()) -> None:
    """Make the convolutions of a deployed network compute in half, in place; see above.

    Args:
        kept: names of those that stay in float32, as in `layers.py`. What they give stays in
            float32 as far as the next convolution in half, so that no rounding is left on the way
            from one that is kept to another.
    """
    wanted = {id(network.get_submodule(name)) for name in kept}
    for conv in network.modules():
        if isinstance(conv, nn.Conv2d) and id(conv) not in wanted:
            conv.half()
    # One object for all the places that share it, so that its weights are stored once.
    mixed: dict[int, MixedConv] = {}
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, FloatNorm(child))
            elif isinstance(child, nn.Conv2d) and wanted:
                if id(child) not in mixed:
                    mixed[id(child)] = MixedConv.like(child)
                setattr(module, name, mixed[id(child)])
    network.dtype = network.backbone.conv1.weight.dtype


def conv_precisions(model: ModelProto) -> Counter[str]:
    """Count the convolutions of a graph by the type of their weights: "fp32", "fp16", "int8"."""
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    stored = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    weights = (node.input[1] for node in model.graph.node if node.op_type == "Conv")
    return Counter(conv_precision(types.get(stored.get(w, w), 0)) for w in weights)


def conv_precision(kind: int) -> str:
    """Name the precision of a convolution by ONNX's number for the type of its weights."""
    return _NAMES.get(kind, "unknown")
