"""The certificate of a lowered file: it is the certified FP32 graph, with rounding added.

Nothing is trusted of what lowered it. The file is read node by node beside the graph it was made
from: take QuantizeLinear and DequantizeLinear out, or what casts to half and back, and the same
graph must be left, with weights within half a step of the certified ones, or rounded to halves.
"""

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto

from nmsfree.spec import ModelSpec
from nmsfree_export.graph.layers import read_layers
from nmsfree_export.graph.values import find_places
from nmsfree_export.quantize import INTEGER_PRODUCTS
from nmsfree_export.verify.allowed import refused
from nmsfree_export.verify.certificate import (
    Certificate,
    Line,
    array_of,
    check_graph,
    check_precision,
)

WEIGHT_LIMIT = 64  # 7 bits
ROUNDING = ("QuantizeLinear", "DequantizeLinear")
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
HALF_STEP = 0.5 * (1 + 1e-4)  # of a weight's scale; the excess is float32's rounding of the scale
EPSILON = float(np.finfo(np.float32).eps)  # a bias may be many steps, each as wrong as the scale


def certify_lowered(
    model: ModelProto,
    original: ModelProto,
    before: Certificate,
    spec: ModelSpec,
    opset: int | None,
    float_layers: Collection[str] = (),
) -> Certificate:
    """Check a file in FP16 or INT8 against the FP32 graph it was made from.

    Args:
        model: of `to_half` or `quantize`, of `original`; `spec` is its own.
        before: certificate of `original`.
        opset: see `check_graph`.
        float_layers: names of the layers that --auto-mixed left in float.

    GateError: a check failed; says which node or tensor.
    """
    lines = check_graph(model, spec, opset)
    file = _File(model, original)
    layers = [layer for layer in read_layers(original) if layer.weights]
    in_float = {layer.name for layer in layers if layer.is_mean or layer.name in float_layers}
    if spec.precision == "int8":
        places, nodes = find_places(original), original.graph.node
        last = [nodes[place] for place in sorted(places.last)]
        points = _check_zero_points(file, spec)
        _check_pairs(file)
        lines += [_check_same_graph(file), _check_last_in_float(file, last), points]
        if spec.int8_target == "cpu":
            _check_processor(file)
        spared = {node.name for node in last}
        in_float |= {x.name for x in layers if x.node in spared or x.op not in INTEGER_PRODUCTS}
    else:
        lines.append(_check_same_graph(file))
    lines.append(check_precision(model, spec.precision, in_float))
    if float_layers:
        lines.append(("float layers of --auto-mixed", ", ".join(float_layers)))
    word = "quantization" if spec.precision == "int8" else "rounding"
    check, found = before.lines[-1]
    lines.append((f"before {word}, {check}", found))
    return Certificate(tuple(lines), before.weight_bytes)


class _File:
    """A graph by its names; of a lowered one, what its original has and what is rounding."""

    def __init__(self, model: ModelProto, original: ModelProto | None = None) -> None:
        self.original = None if original is None else _File(original)
        self.nodes = list(model.graph.node)
        self.makers = {name: node for node in self.nodes for name in node.output}  # by output
        self.tensors = {t.name: t for t in model.graph.initializer}

    def value(self, name: str) -> NDArray[Any]:
        return array_of(self.tensors[name])

    def is_half(self, name: str) -> bool:
        return name in self.tensors and self.tensors[name].data_type == TensorProto.FLOAT16

    def maker(self, name: str, kind: str) -> NodeProto | None:
        """The node that makes a value, if it is of this kind."""
        node = self.makers.get(name)
        return node if node is not None and node.op_type == kind else None

    def source(self, name: str) -> str:
        """Go back over rounding: the value before it, or the initialiser in integers."""
        while (node := self.makers.get(name)) is not None and self.is_rounding(node):
            name = node.input[0]
        return name

    def is_rounding(self, node: NodeProto) -> bool:
        """Whether a node does nothing else, and is none of the original's."""
        if self.original is None or node.output[0] in self.original.makers:
            return False
        kinds = [attribute.i for attribute in node.attribute if attribute.name == "to"]
        return node.op_type in ROUNDING or (node.op_type == "Cast" and kinds[0] in FLOATS)


def _check_pairs(file: _File) -> None:
    """Rounding changes a value by half a step at most: what one node divides by, one multiplies."""
    for node in file.nodes:
        makers = [file.maker(name, "QuantizeLinear") for name in node.input]
        if node.op_type != "DequantizeLinear":
            if any(makers):
                raise refused(f"{node.op_type} '{node.name}' is fed with integers")
            continue
        scale = file.value(node.input[1]) if node.input[1] in file.tensors else np.zeros(1)
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            raise refused(f"'{node.name}' has a scale that is no positive constant")
        rounding = makers[0]
        if rounding is None:
            continue
        if list(rounding.input[1:]) != list(node.input[1:]):
            raise refused(f"'{rounding.name}' and '{node.name}' round in different steps")
        if scale.size > 1 or file.maker(rounding.input[0], "DequantizeLinear"):
            raise refused(
                f"'{rounding.name}' rounds in {scale.size} different steps or again,"
                " expected one step, once"
            )


def _check_same_graph(file: _File) -> Line:
    own = {node.output[0]: node for node in file.nodes if not file.is_rounding(node)}
    original = file.original
    assert original is not None
    wanted = {node.output[0]: node for node in original.nodes}
    if len(own) != len(wanted):
        raise refused(
            f"{len(own)} nodes beside the rounding, expected the {len(wanted)} of the FP32 graph"
        )
    weights: set[str] = set()
    for name, want in wanted.items():
        node = own.get(name)
        if node is None or _plain(node) != _plain(want) or len(node.input) != len(want.input):
            raise refused(f"{want.op_type} '{want.name}' is not what it was")
        for ours, theirs in zip(node.input, want.input, strict=True):
            weights |= _check_input(file, original, ours, theirs, want)
    added = len(file.nodes) - len(own)
    halves = any(file.is_half(name) for name in weights)
    form, close = ("halves", "rounded to halves") if halves else ("integers", "within half a step")
    text = f"{len(own)} nodes as they were, {added} of rounding, {len(weights)} tensors in {form}"
    return f"the FP32 graph with rounding added, weights {close}", text


def _plain(node: NodeProto) -> tuple[str, str, list[str], list[bytes]]:
    """What a node does, without what it is fed."""
    attributes = sorted(a.SerializeToString(deterministic=True) for a in node.attribute)
    return node.domain, node.op_type, list(node.output), attributes


def _check_input(file: _File, original: _File, own: str, theirs: str, node: NodeProto) -> set[str]:
    """Compare one input of a node; returns the initialiser that it has in integers, if any."""
    source = file.source(own)
    if theirs not in original.tensors:
        if source != theirs:
            raise refused(f"{node.op_type} '{node.name}' takes '{source}', expected '{theirs}'")
        return set()
    if file.is_half(own):
        with np.errstate(over="ignore"):
            want = original.value(theirs).astype(np.float16)
        if file.value(own).tobytes() != want.tobytes():
            raise refused(f"{node.op_type} '{node.name}' takes '{own}', which is not '{theirs}'")
        return {own}
    if not _is_close(file, own, original.value(theirs)):
        raise refused(
            f"{node.op_type} '{node.name}' takes '{source}', which is not within half"
            f" a step of '{theirs}'"
        )
    return {source} if source != own else set()


def _is_close(file: _File, name: str, want: NDArray[Any]) -> bool:
    """Whether a tensor is the one that is wanted, to the byte; or, in integers, to half a step."""
    if name in file.tensors:
        own = file.value(name)
        return (own.dtype, own.shape, own.tobytes()) == (want.dtype, want.shape, want.tobytes())
    node = file.maker(name, "DequantizeLinear")
    if node is None or want.dtype != np.float32 or any(n not in file.tensors for n in node.input):
        return False
    value, step, zero = (file.value(name).astype(np.float64) for name in node.input)
    if step.ndim == 1:
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        shape = [-1 if i == axis % value.ndim else 1 for i in range(value.ndim)]
        step, zero = step.reshape(shape), zero.reshape(shape)
    allowed = HALF_STEP * step + EPSILON * np.abs(want.astype(np.float64))
    apart = np.abs((value - zero) * step - want) if value.shape == want.shape else np.inf
    return bool((apart <= allowed).all())


def _check_last_in_float(file: _File, last: list[NodeProto]) -> Line:
    """Weights of the last convolutions are float, and nothing after them is rounded."""
    after = {name for node in last for name in node.output}
    for conv in last:
        node = file.makers[conv.output[0]]
        if any(file.maker(name, "DequantizeLinear") for name in node.input):
            raise refused(f"the last convolution '{node.name}' is not in float")
    for node in file.nodes:  # sorted topologically, by ONNX's rules
        if after.intersection(node.input):
            if node.op_type in ROUNDING:
                raise refused(
                    f"'{node.input[0]}' is rounded, though it comes after the last convolutions"
                )
            after.update(node.output)
    kind = "convolutions" if {node.op_type for node in last} == {"Conv"} else "products"
    return f"last {kind} and all after them in float", f"{len(last)} {kind} in fp32"


def _check_zero_points(file: _File, spec: ModelSpec) -> Line:
    """For TensorRT, signed with zero points 0; for processors, activations unsigned."""
    expected = "int8" if spec.int8_target == "tensorrt" else "uint8"
    rounded = 0
    for node in file.nodes:
        if node.op_type not in ROUNDING:
            continue
        if len(node.input) < 3 or node.input[2] not in file.tensors:
            raise refused(f"{node.op_type} '{node.name}' has no constant zero point")
        zero = file.value(node.input[2])
        if node.op_type == "QuantizeLinear":
            rounded += 1
            if zero.dtype != expected:
                raise refused(
                    f"QuantizeLinear '{node.name}' makes {zero.dtype}, expected"
                    f" {expected} for {spec.int8_target}"
                )
        if spec.int8_target == "tensorrt" and zero.any():
            raise refused(
                f"{node.op_type} '{node.name}' has a zero point that is not 0, which"
                " TensorRT does not take"
            )
    points = ", zero points all 0" if spec.int8_target == "tensorrt" else ""
    return f"activations for {spec.int8_target}", f"{rounded} in {expected}{points}"


def _check_processor(file: _File) -> None:
    """What a processor's integer kernels take for granted, without looking.

    The bias is added in the unit of input × weight. Two products are added in 16 bits where the
    processor has no VNNI: 2 · 255 · 64 fits, with weights of 8 bits it would saturate.
    """
    for node in file.nodes:
        if node.op_type != "Conv":
            continue
        parts = [file.maker(name, "DequantizeLinear") for name in node.input]
        image, weight = parts[:2]
        if image is None or weight is None:
            continue
        if np.abs(file.value(weight.input[0]).astype(int)).max() > WEIGHT_LIMIT:
            raise refused(
                f"'{node.name}' has weights beyond ±{WEIGHT_LIMIT}, whose products"
                " saturate on processors without VNNI"
            )
        bias = parts[2] if len(parts) > 2 else None
        unit = file.value(image.input[1]).astype(np.float64) * file.value(weight.input[1])
        if bias is not None and not np.allclose(file.value(bias.input[1]), unit, rtol=1e-5, atol=0):
            raise refused(f"the bias of '{node.name}' is not in the unit of its input × weights")
