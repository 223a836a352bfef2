"""ONNX graph → the vendor's network, and what can be read from that network."""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from nmsfree.backends.base import RawDetections
from nmsfree.backends.tensorrt.log import reason, shorten
from nmsfree.backends.tensorrt.vendor import VendorApi
from nmsfree.errors import ModelError
from nmsfree.spec import ModelSpec
from nmsfree_export.graph.nms import CANDIDATES
from nmsfree_export.tensorrt.source import Source

# The vendor's names of types → ours, as numpy spells them.
TYPE_NAMES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}
# Layers with weights: their types are the arithmetic of the model.
WEIGHTED = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY")
_LABELS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Tensor:
    """An input or output: its type as numpy spells it, −1 for sizes left open."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        sizes = ", ".join("N" if size < 0 else str(size) for size in self.shape)
        return f"{self.name} {self.dtype} [{sizes}]"


@dataclass(frozen=True)
class Layer:
    """One layer of a network: what it is, what it computes in, and its first output's shape."""

    name: str
    kind: str
    precision: str
    shape: tuple[int, ...]

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def parse(vendor: VendorApi, builder: Any, source: Source) -> Any:
    """Return the vendor's network of a model.

    Raises:
        ModelError: the parser does not take the graph; says which node.
    """
    network = vendor.create_network(builder)
    parser = vendor.create_parser(network)
    with vendor.log.collect() as messages:
        read = parser.parse(source.graph)
    if not read:
        why = _node_error(parser.get_error(0)) if parser.num_errors else reason(messages)
        raise ModelError(
            f"{source.path}: {vendor} cannot read the graph ({why}): "
            "export the model again, or run the ONNX file itself"
        )
    return network


def _node_error(error: Any) -> str:
    node = f"{error.node_operator()} '{error.node_name()}': " if error.node_operator() else ""
    return node + shorten(error.desc())


def inputs_and_outputs(network: Any) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Describe a network's inputs and outputs."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    return tuple(map(_describe, inputs)), tuple(map(_describe, outputs))


def check_interface(network: Any, source: Source) -> None:
    """Hold the network's inputs and outputs against the contract.

    Raises:
        ModelError: another name, type or size than the description says.
    """
    inputs, outputs = inputs_and_outputs(network)
    expected = _contract(source.spec, source.nms_on_host)
    found = {t.name: (t.dtype, t.shape) for t in [*inputs, *outputs]}
    for name, (dtype, shape) in expected.items():
        sizes = found.get(name, ("", ()))[1]
        wanted = tuple(f if w is None else w for w, f in zip(shape, sizes, strict=False))
        if found.get(name) != (dtype, wanted) or len(sizes) != len(shape):
            shown = "; ".join(map(str, [*inputs, *outputs]))
            raise ModelError(
                f"{source.path}: found {shown}; its description says "
                f"{Tensor(name, dtype, tuple(s or -1 for s in shape))}: export the model again"
            )


def _contract(spec: ModelSpec, nms_on_host: bool) -> dict[str, tuple[str, tuple[int | None, ...]]]:
    """Name → type and sizes; None for the number of candidates, which no description holds."""
    n = spec.batch or -1
    images = {"images": ("uint8", (n, spec.height, spec.width, 3))}
    if nms_on_host:
        sizes: tuple[tuple[int | None, ...], ...] = ((n, None, 4), (n, None), (n, None))
        return images | dict(
            zip(CANDIDATES, zip(("float32", "float32", "int32"), sizes, strict=True), strict=True)
        )
    k = spec.top_k
    types, rows = ("int32", "float32", "float32", "int32"), ((n, 1), (n, k, 4), (n, k), (n, k))
    return images | dict(zip(RawDetections._fields, zip(types, rows, strict=True), strict=True))


def _describe(tensor: Any) -> Tensor:
    return Tensor(tensor.name, type_name(tensor.dtype), tuple(tensor.shape))


def type_name(dtype: Any) -> str:
    """trt.DataType.HALF → "float16"."""
    name: str = dtype.name
    return TYPE_NAMES.get(name, name.lower())


def layers_of(network: Any) -> tuple[Layer, ...]:
    """Describe the layers as the parser read them, in order."""
    quantised = _dequantised(network)
    return tuple(_layer(network.get_layer(i), quantised) for i in range(network.num_layers))


def _layer(layer: Any, quantised: dict[str, str]) -> Layer:
    kind = layer.type.name
    first = layer.get_output(0)
    if kind in WEIGHTED:  # what it computes in, not what it gives
        value = layer.get_input(0)
        precision = quantised.get(value.name) or type_name(value.dtype)
    else:
        precision = type_name(first.dtype)
    return Layer(layer.name, kind.lower(), precision, tuple(first.shape))


def _dequantised(network: Any) -> dict[str, str]:
    """Values that come out of a DequantizeLinear → the type that they had before it."""
    layers = (network.get_layer(index) for index in range(network.num_layers))
    return {
        layer.get_output(0).name: type_name(layer.get_input(0).dtype)
        for layer in layers
        if layer.type.name == "DEQUANTIZE"
    }


def precision_of(layers: tuple[Layer, ...]) -> str:
    """Name what the weighted layers compute in: "fp32", "fp16", "mixed fp16", "int8", …

    "mixed" means that some of them are left in float32. What has no weights (decoding, top-k) is
    not asked: it is in float32 in every file.
    """
    kinds = Counter(layer.precision for layer in layers if layer.kind.upper() in WEIGHTED)
    names = {_LABELS.get(kind, kind) for kind in kinds}
    if not names:
        return "fp32"
    for whole in ("int8", "fp8", "int4"):  # a quantised model leaves its last layers in float
        if whole in names:
            return whole
    low = sorted(names - {"fp32"})
    if not low:
        return "fp32"
    return ("mixed " if "fp32" in names else "") + " and ".join(low)


@dataclass(frozen=True)
class LayerTable:
    """Layers, and whose they are.

    Attributes:
        layers: in order.
        source: "engine", fused as they run, or "network", as the parser read them.
        note: why they are not the engine's; "" where they are.
    """

    layers: tuple[Layer, ...]
    source: str
    note: str = ""

    def to_json(self) -> dict[str, object]:
        rows = [layer.to_json() for layer in self.layers]
        return {"source": self.source, "note": self.note, "layers": rows}


def read_layers(vendor: VendorApi, plan: bytes, network: tuple[Layer, ...]) -> LayerTable:
    """Ask the engine for its layers, which takes a GPU that it was built for.

    Args:
        plan: just built, in detail.
        network: the layers that the parser read, for want of a GPU.
    """
    runtime = vendor.create_runtime()
    with vendor.log.collect() as messages:
        engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        note = f"the engine's own layers show on a GPU it was built for ({reason(messages)})"
        return LayerTable(network, "network", note)
    inspector = engine.create_engine_inspector()
    form = vendor.module.LayerInformationFormat.JSON
    try:
        found = parse_inspection(inspector.get_engine_information(form))
    except (TypeError, ValueError, AttributeError) as error:
        # No reason to throw away what was built.
        return LayerTable(network, "network", f"the engine's own cannot be read ({error})")
    return LayerTable(found, "engine")


def parse_inspection(text: str) -> tuple[Layer, ...]:
    """Read the JSON of the vendor's engine inspector."""
    return tuple(map(_engine_layer, json.loads(text).get("Layers", [])))


def _engine_layer(entry: Any) -> Layer:
    if isinstance(entry, str):  # an engine that was not built in detail knows names only
        return Layer(entry, "", "", ())
    outputs = entry.get("Outputs") or [{}]
    return Layer(
        str(entry.get("Name", "")),
        str(entry.get("LayerType", "")).lower(),
        str(outputs[0].get("Format/Datatype", "")),
        tuple(outputs[0].get("Dimensions", ())),
    )
