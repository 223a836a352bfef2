"""The certificate: what an exported file is, and is not, read from the file itself."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, numpy_helper

from nmsfree.errors import GateError
from nmsfree.spec import ModelSpec
from nmsfree_export.certificate_precision import about_kept, check_precision

# Operators whose output has as many rows as the data decide, or that run as often as they decide.
FORBIDDEN = frozenset(
    {"NonMaxSuppression", "Loop", "If", "Scan", "NonZero", "Unique", "Compress", "SequenceAt"}
)
# Inputs (by position) that decide an output's shape; every input of Range does.
SHAPE_INPUTS: dict[str, tuple[int, ...]] = {
    "Reshape": (1,),
    "Expand": (1,),
    "ConstantOfShape": (0,),
    "Range": (0, 1, 2),
    "Slice": (1, 2, 3, 4),
    "TopK": (1,),
    "Tile": (1,),
    "Resize": (1, 2, 3),
    "Pad": (1,),
    "Split": (1,),
    "OneHot": (1,),
    "Squeeze": (1,),
    "Unsqueeze": (1,),
}
SMALL = 64  # elements; smaller initialisers are shapes, axes and scalars the exporter wrote


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
    check_nothing_hidden(model)
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
    lines = [_check_opset(model, opset), _check_interface(model, spec)]
    if spec.nms is None:
        lines += [_check_operators(model), _check_shapes(model)]
    return lines


def _check_opset(model: ModelProto, opset: int) -> tuple[str, str]:
    found = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    foreign = sorted({node.domain for node in model.graph.node if node.domain})
    if found != {"ai.onnx": opset} or foreign or model.functions:
        raise GateError(
            f"certificate: opsets {found}, node domains {foreign or 'standard'}, "
            f"{len(model.functions)} functions; expected ai.onnx {opset} and nothing else"
        )
    return "standard operators only", f"ai.onnx opset {opset}, {len(model.graph.node)} nodes"


def _check_interface(model: ModelProto, spec: ModelSpec) -> tuple[str, str]:
    n = spec.batch or "N"
    cells = next(o for o in model.graph.output if o.name == "detection_scores")
    k = cells.type.tensor_type.shape.dim[1].dim_value
    expected = {
        "images": (TensorProto.UINT8, (n, spec.height, spec.width, 3)),
        "num_detections": (TensorProto.INT32, (n, 1)),
        "detection_boxes": (TensorProto.FLOAT, (n, k, 4)),
        "detection_scores": (TensorProto.FLOAT, (n, k)),
        "detection_classes": (TensorProto.INT32, (n, k)),
    }
    found = {}
    for value in [*model.graph.input, *model.graph.output]:
        kind = value.type.tensor_type
        dims = tuple(d.dim_value if d.HasField("dim_value") else "N" for d in kind.shape.dim)
        found[value.name] = (kind.elem_type, dims)
    if found != expected or k != spec.top_k:
        raise GateError(f"certificate: inputs and outputs are {found}, expected {expected}")
    return "inputs and outputs of the contract", f"images uint8 [{n}, H, W, 3] → {k} rows"


def check_nothing_hidden(model: ModelProto) -> None:
    """Every value is an initialiser or computed on the way to an output, in one flat graph.

    Raises:
        GateError: names what is not.
    """
    graph = model.graph
    if graph.sparse_initializer:
        raise GateError("certificate: sparse initialisers are not looked into")
    needed = {value.name for value in graph.output}
    for node in reversed(graph.node):  # sorted topologically, by ONNX's rules
        for attribute in node.attribute:
            if attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
                raise GateError(f"certificate: {node.op_type} '{node.name}' holds a graph inside")
            if attribute.type == AttributeProto.TENSOR and np.prod(attribute.t.dims) >= SMALL:
                raise GateError(
                    f"certificate: {node.op_type} '{node.name}' holds weights that are no "
                    f"initialiser, {list(attribute.t.dims)}"
                )
        if not needed.intersection(node.output):
            raise GateError(f"certificate: no output needs {node.op_type} '{node.name}'")
        needed.update(node.input)
    unused = [t.name for t in graph.initializer if t.name not in needed]
    if unused:
        raise GateError(f"certificate: no output needs the initialiser '{unused[0]}'")


def _check_operators(model: ModelProto) -> tuple[str, str]:
    bad = [f"{n.op_type} '{n.name}'" for n in model.graph.node if n.op_type in FORBIDDEN]
    if bad:
        raise GateError(f"certificate: an NMS-free file may not contain {', '.join(bad)}")
    return "no NMS, loop or branch", "no " + ", ".join(sorted(FORBIDDEN))


def _check_shapes(model: ModelProto) -> tuple[str, str]:
    """Follow what depends on pixel values through the graph; it may not decide a shape."""
    from_data = {value.name for value in model.graph.input}
    for node in model.graph.node:
        if node.op_type in ("Shape", "Size"):
            continue  # depends on the input's shape, not on its values
        for position in _shape_positions(node):
            if position < len(node.input) and node.input[position] in from_data:
                raise GateError(
                    f"certificate: the shape of {node.op_type} '{node.name}' depends on data"
                )
        if any(name in from_data for name in node.input):
            from_data.update(node.output)
    return "no shape depends on data", "every shape is known before an image is seen"


def _shape_positions(node: NodeProto) -> tuple[int, ...]:
    if node.op_type.startswith("Reduce"):
        return (1,)
    return SHAPE_INPUTS.get(node.op_type, ())


def _inventory(model: ModelProto, deployed: Mapping[str, NDArray[np.floating]]) -> dict[str, int]:
    """Account for every initialiser by its bytes; returns bytes by part.

    Raises:
        GateError: a tensor that is none of the deploy module's, stored too often, or missing.
    """
    owner = {value.tobytes(): _part(key) for key, value in deployed.items()}
    copies = Counter(value.tobytes() for value in deployed.values())  # equal tensors are legal
    sizes = dict.fromkeys(("backbone", "fpn", "head", "tables", "constants"), 0)
    seen: Counter[bytes] = Counter()
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        content = value.tobytes()
        if content not in owner:
            if value.size >= SMALL and not _is_index_table(value):
                raise GateError(
                    f"certificate: initialiser '{tensor.name}' {list(value.shape)} belongs to "
                    "no part of the deployed network"
                )
            sizes["constants"] += len(content)
            continue
        seen[content] += 1
        if seen[content] > copies[content] and value.size >= SMALL:
            raise GateError(f"certificate: initialiser '{tensor.name}' is stored twice")
        sizes[owner[content]] += len(content)
    contents = {numpy_helper.to_array(t).tobytes() for t in model.graph.initializer}
    lost = [key for key, value in deployed.items() if not _is_stored(value, contents)]
    if lost:
        raise GateError(f"certificate: {len(lost)} tensors are missing, first '{lost[0]}'")
    return sizes


def _is_stored(value: NDArray[np.floating], contents: set[bytes]) -> bool:
    """Whole; or, where a short vector is used element by element, as scalars that are not zero.

    The exporter takes such vectors (a max filter's weights) apart. It leaves out a bias of zeros,
    rightly, and elements that nothing uses: they have no gradient, so they stay zero.
    """
    if not value.any() or value.tobytes() in contents:
        return True
    is_short_vector = value.ndim == 1 and value.size < SMALL
    return is_short_vector and all(v.tobytes() in contents for v in value[value != 0])


def _part(key: str) -> str:
    for prefix, part in (("network.backbone.", "backbone"), ("network.fpn.", "fpn")):
        if key.startswith(prefix):
            return part
    return "head" if key.startswith("network.heads.") else "tables"


def _is_index_table(value: NDArray[np.generic]) -> bool:
    """0, 1, 2, …: the class axis of the NMS baseline."""
    return value.dtype == np.int64 and np.array_equal(value.ravel(), np.arange(value.size))
