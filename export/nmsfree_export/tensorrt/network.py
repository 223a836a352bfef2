"""ONNX file → the vendor's network, and what can be read from that network."""

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto

from nmsfree.backends.contract import MAX_ONNX
from nmsfree.backends.tensorrt.log import reason, shorten
from nmsfree.backends.tensorrt.vendor import VendorApi
from nmsfree.errors import ModelError
from nmsfree.parsing import read_bytes
from nmsfree.spec import ModelSpec
from nmsfree_export.graph.contract import images_of, outputs_of, pinned, read_description

# The vendor's names of types → ours, as numpy spells them.
TYPE_NAMES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}
# Layers with weights: their types are the arithmetic of the model.
WEIGHTED = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY")
_LABELS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Source:
    """A model, ready for the vendor's parser."""

    path: Path
    sha256: str  # of the file
    spec: ModelSpec
    content: bytes


def read_source(path: Path) -> Source:
    """Read an ONNX file of this project.

    ModelError: missing, not ONNX, not written by this project, or its weights lie elsewhere.
    """
    content = read_bytes(path, MAX_ONNX, ModelError)
    try:
        model = onnx.load_from_string(content)
    except DecodeError:
        raise ModelError(
            f"{path}: not an ONNX file: export the checkpoint with `nmsfree export`"
        ) from None
    spec = read_description(path, model)
    if any(t.data_location == TensorProto.EXTERNAL for t in model.graph.initializer):
        raise ModelError(
            f"{path}: its weights lie in another file, expected one file: export the model again"
        )
    digest = hashlib.sha256(content).hexdigest()
    if spec.size_step is not None:  # an engine is of one size
        spec = pinned(model, spec)
        content = model.SerializeToString()
    return Source(path, digest, spec, content)


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


def parse(vendor: VendorApi, builder: Any, source: Source) -> Any:
    """Return the vendor's network of a model; ModelError names the node that it does not take."""
    network = vendor.create_network(builder)
    parser = vendor.module.OnnxParser(network, vendor.logger)
    with vendor.log.collect() as messages:
        read = parser.parse(source.content)
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


def check_interface(network: Any, source: Source) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return a network's inputs and outputs, held against the contract."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    tensors = [Tensor(t.name, type_name(t.dtype), tuple(t.shape)) for t in (*inputs, *outputs)]
    found = {tensor.name: tensor for tensor in tensors}
    spec, n = source.spec, source.spec.batch or -1
    for name, port in (images_of(spec, n) | outputs_of(spec, n)).items():
        expected = Tensor(name, *port)
        if found.get(name) != expected:
            raise ModelError(
                f"{source.path}: found {'; '.join(map(str, tensors))}; its description says "
                f"{expected}: export the model again"
            )
    return tuple(tensors[: len(inputs)]), tuple(tensors[len(inputs) :])


def type_name(dtype: Any) -> str:
    """trt.DataType.HALF → "float16"."""
    return TYPE_NAMES.get(dtype.name) or str(dtype.name).lower()


def layers_of(network: Any) -> tuple[Layer, ...]:
    """Describe the layers as the parser read them, in order."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    dequantized = {  # value → the type that it had before
        layer.get_output(0).name: type_name(layer.get_input(0).dtype)
        for layer in layers
        if layer.type.name == "DEQUANTIZE"
    }
    found = []
    for layer in layers:
        kind, value = layer.type.name, layer.get_output(0)
        shape = tuple(value.shape)
        if kind in WEIGHTED:  # what it computes in, not what it gives
            value = layer.get_input(0)
        precision = type_name(value.dtype)
        if kind in WEIGHTED:
            precision = dequantized.get(value.name, precision)
        found.append(Layer(layer.name, kind.lower(), precision, shape))
    return tuple(found)


def precision_of(layers: tuple[Layer, ...]) -> str:
    """Name what the weighted layers compute in: "fp32", "fp16", "mixed fp16", "int8", …

    "mixed" means that some of them are left in float32. What has no weights (decoding, top-k) is
    not asked: it is in float32 in every file.
    """
    kinds = Counter(layer.precision for layer in layers if layer.kind.upper() in WEIGHTED)
    names = {_LABELS.get(kind, kind) for kind in kinds}
    if not names:
        return "fp32"
    for whole in ("int8", "fp8", "int4"):  # a quantized model leaves its last layers in float
        if whole in names:
            return whole
    low = sorted(names - {"fp32"})
    if not low:
        return "fp32"
    return ("mixed " if "fp32" in names else "") + " and ".join(low)


@dataclass(frozen=True)
class LayerTable:
    """Layers in order, and whose they are."""

    layers: tuple[Layer, ...]
    source: str  # "engine", fused as they run, or "network", as the parser read them
    note: str = ""  # why they are not the engine's

    def to_json(self) -> dict[str, object]:
        rows = [asdict(layer) for layer in self.layers]
        return {"source": self.source, "note": self.note, "layers": rows}


def read_layers(vendor: VendorApi, plan: bytes, network: tuple[Layer, ...]) -> LayerTable:
    """Ask an engine for its layers; without a GPU that it was built for, those of the network."""
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
    found = []
    for entry in json.loads(text).get("Layers", []):
        if isinstance(entry, str):  # an engine that was not built in detail knows names only
            found.append(Layer(entry, "", "", ()))
            continue
        first = (entry.get("Outputs") or [{}])[0]
        kind, shape = str(entry.get("LayerType", "")), tuple(first.get("Dimensions", ()))
        precision = str(first.get("Format/Datatype", ""))
        found.append(Layer(str(entry.get("Name", "")), kind.lower(), precision, shape))
    return tuple(found)
