"""The certificate: what an exported file is, and is not, read from the file itself."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper

from nmsfree.backends.contract import one_line
from nmsfree.spec import ModelSpec
from nmsfree_export.graph.contract import images_of, made_of, outputs_of, port_of
from nmsfree_export.graph.layers import read_layers
from nmsfree_export.verify.allowed import (
    ADOPTED,
    FEW,
    check_adopted_parts,
    check_parts,
    operators_of,
    refused,
)

# Numbers that a file may hold beside the weights: shapes, axes, thresholds.
MOST_OTHERS = {"integers": 1024, "floats": 64}

Line = tuple[str, str]  # (check, what was found)
Tensors = Mapping[str, NDArray[np.floating]]  # of a deploy module by their keys


@dataclass(frozen=True)
class Certificate:
    """What was checked and found; every line passed."""

    lines: tuple[Line, ...]
    weight_bytes: Mapping[str, int]  # of initialisers: backbone, fpn, head, tables, constants

    def to_json(self) -> dict[str, object]:
        return {"checks": dict(self.lines), "weight_bytes": dict(self.weight_bytes)}


def check_precision(model: ModelProto, precision: str, float_layers: Collection[str] = ()) -> Line:
    """All layers with weights are in one precision, but exactly those that are named in float32."""
    layers = [layer for layer in read_layers(model) if layer.weights]
    found = Counter(layer.precision for layer in layers)
    what = "convolutions" if {layer.op for layer in layers} == {"Conv"} else "layers with weights"
    wanted = ", ".join(sorted(float_layers))
    expected = {precision, "fp32"} if float_layers else {precision}
    if not found.keys() <= expected or not found[precision]:
        raise refused(
            f"{what} in {', '.join(f'{k} ({n})' for k, n in found.items())}, "
            f"expected all in {precision}" + (f" but {wanted}" if float_layers else "")
        )
    text = f"{found[precision]} {what} in {precision}"
    if not float_layers:
        return "precision", text
    names = {layer.name for layer in layers if layer.precision == "fp32"}
    if names != set(float_layers):
        raise refused(f"{what} in fp32 are {', '.join(sorted(names)) or 'none'}, expected {wanted}")
    return "precision", f"{text}, {found['fp32']} in fp32"


def certify(model: ModelProto, spec: ModelSpec, deployed: Tensors, opset: int) -> Certificate:
    """Check an FP32 file against the contract, and, for the o2o head, that no NMS hides in it.

    Args:
        deployed: every tensor of the deploy module by its key, batch norm folded, each once
            however many levels share it: what the file may hold, and all it must hold.
        opset: what was asked for.

    GateError: a check failed; says which node or tensor.
    """
    lines = check_graph(model, spec, opset)
    weights = _inventory(model, deployed)
    text = ", ".join(f"{part} {size:,} B" for part, size in weights.items())
    lines.append(check_precision(model, spec.precision))
    lines.append((f"weights are backbone, FPN and the {spec.head} head only", text))
    return Certificate(tuple(lines), weights)


def certify_graph(model: ModelProto, spec: ModelSpec) -> Certificate:
    """Check an FP32 file whose weights nobody knows against the contract.

    GateError: a check failed; says which node or tensor.
    """
    lines = [*check_graph(model, spec), check_precision(model, spec.precision)]
    sizes = [len(tensor.SerializeToString()) for tensor in model.graph.initializer]
    lines.append(("weights are the given file's", f"{sum(sizes):,} B"))
    return Certificate(tuple(lines), {"all": sum(sizes)})


def check_graph(model: ModelProto, spec: ModelSpec, opset: int | None = None) -> list[Line]:
    """Check what a graph is made of, whatever its weights.

    Args:
        opset: what was asked for; None takes what the file has.
    """
    adopted = ADOPTED in spec.provenance
    if adopted:
        check_adopted_parts(model, spec)
    else:
        check_parts(model, spec)
    try:  # ONNX's own rules: names, order, numbers of inputs, types and shapes of all values
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise refused(f"against the rules of ONNX: {one_line(error)}") from None
    found = [(entry.domain or "ai.onnx", entry.version) for entry in model.opset_import]
    wanted = found[0][1] if opset is None else opset
    if found != [("ai.onnx", wanted)]:
        raise refused(f"opsets {found}, expected ai.onnx {wanted} and nothing else")
    nodes = f"ai.onnx opset {wanted}, {len(model.graph.node)} nodes"
    lines = [("standard operators only", nodes), _check_interface(model, spec)]
    _check_nothing_hidden(model)
    if spec.nms is None:
        used = {node.op_type for node in model.graph.node}
        lines.append(("no NMS, loop or branch", f"only {', '.join(sorted(used))}"))
    if not adopted and (spec.nms is None or spec.nms.steps is not None):
        lines.append(_check_shapes(model, spec))
    return lines


def _check_interface(model: ModelProto, spec: ModelSpec) -> Line:
    n = spec.batch or "batch"
    ports = images_of(spec, n) | outputs_of(spec, n)
    expected = [(name, *port) for name, port in ports.items()]
    found = [port_of(value) for value in [*model.graph.input, *model.graph.output]]
    if found != expected or len(model.graph.input) != 1:
        raise refused(f"inputs and outputs are {found}, expected {expected}")
    kind, _ = ports["images"]
    size = {"any": "h, w, 3", "nchw-float": "3, H, W"}.get(spec.input, "H, W, 3")
    return "inputs and outputs of the contract", f"images {kind} [{n}, {size}] → {spec.top_k} rows"


def _check_nothing_hidden(model: ModelProto) -> None:
    """Every value is an initialiser or computed on the way to an output."""
    graph = model.graph
    nodes, needed = made_of(graph.node, (value.name for value in graph.output))
    if len(nodes) < len(graph.node):
        idle = next(n for n in graph.node if not needed.intersection(n.output))
        raise refused(f"no output needs {idle.op_type} '{idle.name}'")
    names = [tensor.name for tensor in graph.initializer]
    for name in names:
        if name not in needed:
            raise refused(f"no output needs the initialiser '{name}'")
    values = {*names, *(name for node in nodes for name in node.output)}
    for value in graph.value_info:
        if value.name not in values:
            raise refused(f"the type of '{value.name}' is given, no such value")
        values.remove(value.name)


def _check_shapes(model: ModelProto, spec: ModelSpec) -> Line:
    """Follow what depends on pixel values through the graph; it may not decide a shape."""
    operators = operators_of(spec)
    from_data = {value.name for value in model.graph.input}
    for node in model.graph.node:
        if node.op_type == "Shape":
            continue  # depends on the input's shape, not on its values
        if from_data.intersection(node.input[operators[node.op_type].data :]):
            raise refused(f"the shape of {node.op_type} '{node.name}' depends on data")
        if from_data.intersection(node.input):
            from_data.update(node.output)
    return "no shape depends on data", "every shape is known before an image is seen"


def _inventory(model: ModelProto, deployed: Tensors) -> dict[str, int]:
    """Bytes by part. No tensor may be foreign to the deploy module, stored twice, or missing."""
    owner = {value.tobytes(): _part(key) for key, value in deployed.items()}
    copies = Counter(value.tobytes() for value in deployed.values())  # equal tensors are legal
    sizes = dict.fromkeys(("backbone", "fpn", "head", "tables", "constants"), 0)
    seen: Counter[bytes] = Counter()
    others: Counter[str] = Counter()
    contents: set[bytes] = set()
    for tensor in model.graph.initializer:
        value = array_of(tensor)
        content = value.tobytes()
        contents.add(content)
        if content not in owner:
            kind = "floats" if value.dtype.kind == "f" else "integers"
            others[kind] += _size_of_constant(tensor.name, value)
            sizes["constants"] += len(content)
            continue
        # A half may overflow: parity, which can name the layer, judges what rounding does.
        if value.dtype != np.float16 and not np.isfinite(value).all():
            raise refused(f"'{tensor.name}' holds numbers that are not finite")
        seen[content] += 1
        if seen[content] > copies[content] and value.size > FEW:
            raise refused(f"initialiser '{tensor.name}' is stored twice")
        sizes[owner[content]] += len(content)
    for kind, most in MOST_OTHERS.items():
        if others[kind] > most:
            raise refused(f"{others[kind]} {kind} beside the weights, expected at most {most}")
    lost = [key for key, value in deployed.items() if not _is_stored(value, contents)]
    if lost:
        raise refused(f"{len(lost)} tensors are missing, first '{lost[0]}'")
    return sizes


def array_of(tensor: TensorProto) -> NDArray[Any]:
    """The values of an initialiser; GateError where their number is not that of its shape."""
    try:
        return numpy_helper.to_array(tensor)
    except ValueError:
        raise refused(
            f"initialiser '{tensor.name}' has {len(tensor.raw_data)} bytes, which"
            f" are no values of shape {list(tensor.dims)}"
        ) from None


def _size_of_constant(name: str, value: NDArray[Any]) -> int:
    """How many values a constant holds that is no weight.

    More than a few are refused, but one repeated, and 0, 1, 2, … (the NMS's class axis).
    """
    counted = value.dtype == np.int64 and np.array_equal(value.ravel(), np.arange(value.size))
    distinct = 1 if counted else len(np.unique(value))
    if distinct > 1 and value.size > FEW:
        raise refused(
            f"initialiser '{name}' {list(value.shape)} belongs to no part of the deployed network"
        )
    return min(value.size, distinct)


def _is_stored(value: NDArray[np.floating], contents: set[bytes]) -> bool:
    """Whole; or, where a short vector is used element by element, as scalars that are not zero.

    The exporter takes such vectors (a max filter's weights) apart, and rounds a scalar that meets
    halves. It leaves out a bias of zeros, rightly, and elements that nothing uses: they have no
    gradient, so they stay zero.
    """
    if not value.any() or value.tobytes() in contents:
        return True
    is_short_vector = value.ndim == 1 and value.size <= FEW
    return is_short_vector and all(
        contents.intersection((v.tobytes(), v.astype(np.float16).tobytes()))
        for v in value[value != 0]
    )


def _part(key: str) -> str:
    for prefix, part in (("network.backbone.", "backbone"), ("network.fpn.", "fpn")):
        if key.startswith(prefix):
            return part
    return "head" if key.startswith("network.heads.") else "tables"
