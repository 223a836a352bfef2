"""The certificate: what an exported file is, and is not, read from the file itself."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, ValueInfoProto, numpy_helper

from nmsfree.backends.contract import one_line
from nmsfree.errors import GateError
from nmsfree.spec import ModelSpec
from nmsfree_export.graph.layers import read_layers
from nmsfree_export.graph.precision import conv_precisions
from nmsfree_export.verify.allowed import FEW, check_parts, operators_of


def check_precision(
    model: ModelProto, precision: str, in_float: Collection[str] = ()
) -> tuple[str, str]:
    """All convolutions compute in one precision, but for those that are named.

    Args:
        precision: "fp32", "fp16" or "int8".
        in_float: names of the convolutions in float32, see `layers.py`: exactly these.

    Returns:
        (check, what was found).

    Raises:
        GateError: another precision, or others in float; says which.
    """
    found = conv_precisions(model)
    expected = {precision, "fp32"} if in_float else {precision}
    if not found.keys() <= expected or not found[precision]:
        raise GateError(
            f"certificate: convolutions in {', '.join(f'{k} ({n})' for k, n in found.items())}, "
            f"expected all in {precision}"
            + (f" but {', '.join(sorted(in_float))}" if in_float else "")
        )
    if not in_float:
        return "precision", f"{found[precision]} convolutions in {precision}"
    _check_names(model, in_float)
    return "precision", f"{found[precision]} convolutions in {precision}, {found['fp32']} in fp32"


def _check_names(model: ModelProto, expected: Collection[str]) -> None:
    found = {layer.name for layer in read_layers(model) if layer.precision == "fp32"}
    if found != set(expected):
        raise GateError(
            f"certificate: convolutions in fp32 are {', '.join(sorted(found)) or 'none'}, expected"
            f" {', '.join(sorted(expected))}"
        )


def about_kept(kept: Collection[str]) -> tuple[str, str]:
    """The line that names what --auto-mixed kept in float."""
    return "kept in float by --auto-mixed", ", ".join(kept)


# Numbers that a file may hold beside the weights: shapes, axes, thresholds.
MOST_OTHERS = {"integers": 1024, "floats": 64}


@dataclass(frozen=True)
class Certificate:
    """What was checked and found; every line passed.

    Attributes:
        lines: (check, what was found) for the reader.
        weight_bytes: bytes of the initialisers by part: backbone, fpn, head, tables, constants.
    """

    lines: tuple[tuple[str, str], ...]
    weight_bytes: Mapping[str, int]

    def to_json(self) -> dict[str, object]:
        return {"checks": dict(self.lines), "weight_bytes": dict(self.weight_bytes)}


def certify(
    model: ModelProto,
    spec: ModelSpec,
    deployed: Mapping[str, NDArray[np.floating]],
    opset: int,
    kept: Collection[str] = (),
) -> Certificate:
    """Check a file against the contract, and, for the o2o head, that no NMS hides in it.

    Args:
        deployed: every tensor of the deploy module by its key, batch norm folded, each once
            however many levels share it: what the file may hold, and all it must hold.
        opset: what was asked for.
        kept: names of the convolutions that a file in half keeps in float, see `to_half`.

    Raises:
        GateError: a check failed; says which node or tensor.
    """
    lines = check_graph(model, spec, opset)
    weights = _inventory(model, deployed)
    text = ", ".join(f"{part} {size:,} B" for part, size in weights.items())
    lines.append(check_precision(model, spec.precision, kept))
    if kept:
        lines.append(about_kept(kept))
    lines.append((f"weights are backbone, FPN and the {spec.head} head only", text))
    return Certificate(tuple(lines), weights)


def check_graph(model: ModelProto, spec: ModelSpec, opset: int) -> list[tuple[str, str]]:
    """Check what a graph is made of, whatever its weights; returns (check, what was found).

    Raises:
        GateError: a check failed.
    """
    check_parts(model, spec)
    _check_rules(model)
    lines = [_check_opset(model, opset), _check_interface(model, spec)]
    _check_nothing_hidden(model)
    if spec.nms is None:
        used = {node.op_type for node in model.graph.node}
        lines.append(("no NMS, loop or branch", f"only {', '.join(sorted(used))}"))
        lines.append(_check_shapes(model, spec))
    return lines


def _check_rules(model: ModelProto) -> None:
    """ONNX's own rules: names, order, numbers of inputs, types and shapes of all values."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise GateError(f"certificate: against the rules of ONNX: {one_line(error)}") from None


def _check_opset(model: ModelProto, opset: int) -> tuple[str, str]:
    found = [(entry.domain or "ai.onnx", entry.version) for entry in model.opset_import]
    if found != [("ai.onnx", opset)]:
        raise GateError(f"certificate: opsets {found}, expected ai.onnx {opset} and nothing else")
    return "standard operators only", f"ai.onnx opset {opset}, {len(model.graph.node)} nodes"


def _check_interface(model: ModelProto, spec: ModelSpec) -> tuple[str, str]:
    n, k = spec.batch or "batch", spec.top_k
    expected = [
        ("images", TensorProto.UINT8, [n, spec.height, spec.width, 3]),
        ("num_detections", TensorProto.INT32, [n, 1]),
        ("detection_boxes", TensorProto.FLOAT, [n, k, 4]),
        ("detection_scores", TensorProto.FLOAT, [n, k]),
        ("detection_classes", TensorProto.INT32, [n, k]),
    ]
    found = [_port(value) for value in [*model.graph.input, *model.graph.output]]
    if found != expected or len(model.graph.input) != 1:
        raise GateError(f"certificate: inputs and outputs are {found}, expected {expected}")
    return "inputs and outputs of the contract", f"images uint8 [{n}, H, W, 3] → {k} rows"


def _port(value: ValueInfoProto) -> tuple[str, int, list[int | str]]:
    kind = value.type.tensor_type
    return value.name, kind.elem_type, [d.dim_param or d.dim_value for d in kind.shape.dim]


def _check_nothing_hidden(model: ModelProto) -> None:
    """Every value is an initialiser or computed on the way to an output."""
    graph = model.graph
    needed = {value.name for value in graph.output}
    values = {tensor.name for tensor in graph.initializer}
    for node in reversed(graph.node):  # sorted topologically, by ONNX's rules
        if not needed.intersection(node.output):
            raise GateError(f"certificate: no output needs {node.op_type} '{node.name}'")
        needed.update(node.input)
        values.update(node.output)
    unused = [t.name for t in graph.initializer if t.name not in needed]
    if unused:
        raise GateError(f"certificate: no output needs the initialiser '{unused[0]}'")
    for value in graph.value_info:
        if value.name not in values:
            raise GateError(f"certificate: the type of '{value.name}' is given, no such value")
        values.remove(value.name)


def _check_shapes(model: ModelProto, spec: ModelSpec) -> tuple[str, str]:
    """Follow what depends on pixel values through the graph; it may not decide a shape."""
    operators = operators_of(spec)
    from_data = {value.name for value in model.graph.input}
    for node in model.graph.node:
        if node.op_type == "Shape":
            continue  # depends on the input's shape, not on its values
        if from_data.intersection(node.input[operators[node.op_type].data :]):
            raise GateError(
                f"certificate: the shape of {node.op_type} '{node.name}' depends on data"
            )
        if from_data.intersection(node.input):
            from_data.update(node.output)
    return "no shape depends on data", "every shape is known before an image is seen"


def _inventory(model: ModelProto, deployed: Mapping[str, NDArray[np.floating]]) -> dict[str, int]:
    """Account for every initialiser by its bytes; returns bytes by part.

    Raises:
        GateError: a tensor that is none of the deploy module's, stored too often, or missing.
    """
    owner = {value.tobytes(): _part(key) for key, value in deployed.items()}
    copies = Counter(value.tobytes() for value in deployed.values())  # equal tensors are legal
    sizes = dict.fromkeys(("backbone", "fpn", "head", "tables", "constants"), 0)
    seen: Counter[bytes] = Counter()
    others: Counter[str] = Counter()
    for tensor in model.graph.initializer:
        value = array_of(tensor)
        content = value.tobytes()
        if content not in owner:
            kind = "floats" if value.dtype.kind == "f" else "integers"
            others[kind] += _size_of_constant(tensor.name, value)
            sizes["constants"] += len(content)
            continue
        # A half may overflow: parity, which can name the layer, judges what rounding does.
        if value.dtype != np.float16 and not np.isfinite(value).all():
            raise GateError(f"certificate: '{tensor.name}' holds numbers that are not finite")
        seen[content] += 1
        if seen[content] > copies[content] and value.size > FEW:
            raise GateError(f"certificate: initialiser '{tensor.name}' is stored twice")
        sizes[owner[content]] += len(content)
    for kind, most in MOST_OTHERS.items():
        if others[kind] > most:
            raise GateError(
                f"certificate: {others[kind]} {kind} beside the weights, expected at most {most}"
            )
    contents = {array_of(t).tobytes() for t in model.graph.initializer}
    lost = [key for key, value in deployed.items() if not _is_stored(value, contents)]
    if lost:
        raise GateError(f"certificate: {len(lost)} tensors are missing, first '{lost[0]}'")
    return sizes


def array_of(tensor: TensorProto) -> NDArray[Any]:
    """Return the values of an initialiser.

    Raises:
        GateError: their number is not that of its shape.
    """
    try:
        return numpy_helper.to_array(tensor)
    except ValueError:
        raise GateError(
            f"certificate: initialiser '{tensor.name}' has {len(tensor.raw_data)} bytes, which"
            f" are no values of shape {list(tensor.dims)}"
        ) from None


def _size_of_constant(name: str, value: NDArray[Any]) -> int:
    """How many values a constant holds that is no weight.

    Raises:
        GateError: more than a few, other than one repeated, or 0, 1, 2, … (the NMS's class axis).
    """
    counted = value.dtype == np.int64 and np.array_equal(value.ravel(), np.arange(value.size))
    distinct = 1 if counted else len(np.unique(value))
    if distinct > 1 and value.size > FEW:
        raise GateError(
            f"certificate: initialiser '{name}' {list(value.shape)} belongs to no part of the"
            " deployed network"
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
