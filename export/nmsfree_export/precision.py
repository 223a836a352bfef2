"""Precision is in the graph: which parts of a deployed network compute in half, read back from it.

Half precision ("fp16") is for convolutions, whose products a GPU's tensor cores add in float32.
Kept in float32: the pixels' normalisation (values up to 255 and their differences), GroupNorm (its
variance sums thousands of squares, of which a half's 11 bits lose the small ones), the comparison
of boxes in a rival filter, and all after the network: decoding, where exp turns a rounding of the
logarithm into pixels, sigmoid and the choice of the best rows. INT8 is another graph, made from
the one in float32: see `quantise.py`.
"""

from collections import Counter
from typing import Literal

import torch
from onnx import ModelProto, TensorProto
from torch import Tensor, nn

from nmsfree_export.deploy import DeployNetwork

Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")

_NAMES = {
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


def to_half(network: DeployNetwork) -> None:
    """Make the convolutions of a deployed network compute in half, in place; see above."""
    for module in list(network.modules()):
        if isinstance(module, nn.Conv2d):
            module.half()
        for name, child in list(module.named_children()):
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, FloatNorm(child))
    network.dtype = torch.float16


def conv_precisions(model: ModelProto) -> Counter[str]:
    """Count the convolutions of a graph by the type of their weights: "fp32", "fp16", "int8"."""
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    stored = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    weights = (node.input[1] for node in model.graph.node if node.op_type == "Conv")
    return Counter(_NAMES.get(types.get(stored.get(w, w), 0), "unknown") for w in weights)
