"""What every file has in common: its inputs and outputs, its description, and walks through it."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, ValueInfoProto, helper

from nmsfree.backends.contract import image_port, output_shapes
from nmsfree.errors import ModelError
from nmsfree.spec import METADATA_KEY, ModelSpec

CANDIDATES = ("candidate_boxes", "candidate_scores", "candidate_classes")  # what enters NMS
Ports = dict[str, tuple[str, tuple[Any, ...]]]  # name → type as numpy spells it, sizes


def images_of(spec: ModelSpec, n: Any) -> Ports:
    """The input of a file, for `n` images."""
    kind, (_, *size) = image_port(spec)
    names = ("height", "width", "colour")
    return {"images": (kind, (n, *(s or name for s, name in zip(size, names, strict=True))))}


def outputs_of(spec: ModelSpec, n: Any) -> Ports:
    """The outputs of a file, for `n` images."""
    return {name: (kind, (n, *size)) for name, (kind, size) in output_shapes(spec.top_k).items()}


def set_inputs(model: ModelProto, ports: Ports) -> None:
    """Make these the inputs of a graph, in place."""
    del model.graph.input[:]
    model.graph.input.extend(_values(ports))


def set_outputs(model: ModelProto, ports: Ports) -> None:
    """Make these the outputs of a graph, in place."""
    del model.graph.output[:]
    model.graph.output.extend(_values(ports))


def _values(ports: Ports) -> Iterator[ValueInfoProto]:
    for name, (kind, shape) in ports.items():
        element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
        yield helper.make_tensor_value_info(name, element, shape)


def port_of(value: ValueInfoProto) -> tuple[str, str, tuple[Any, ...]]:
    """Return the name, the type as numpy spells it and the sizes of an input or output."""
    kind = value.type.tensor_type
    sizes = tuple(d.dim_param or d.dim_value for d in kind.shape.dim)
    return value.name, str(helper.tensor_dtype_to_np_dtype(kind.elem_type)), sizes


def batch_of(model: ModelProto) -> int:
    """The fixed batch size of a graph, or 1."""
    return model.graph.input[0].type.tensor_type.shape.dim[0].dim_value or 1


def pinned(model: ModelProto, spec: ModelSpec) -> ModelSpec:
    """Give a graph of dynamic size its usual one, in place; returns what describes it then."""
    sides = model.graph.input[0].type.tensor_type.shape.dim[1:3]
    for side, pixels in zip(sides, (spec.height, spec.width), strict=True):
        side.dim_value = pixels
    return replace(spec, size_step=None)


def describe(model: ModelProto, spec: ModelSpec) -> None:
    """Let a model carry this description and no other, in place."""
    del model.metadata_props[:]
    model.metadata_props.add(key=METADATA_KEY, value=spec.to_json())


def full_spec(spec: ModelSpec) -> ModelSpec:
    """Describe the FP32 version of a file."""
    return replace(spec, precision="fp32", int8_target=None)


def content_of(model: ModelProto, spec: ModelSpec) -> bytes:
    """The bytes of a model with this description."""
    described = ModelProto()
    described.CopyFrom(model)
    describe(described, spec)
    content: bytes = described.SerializeToString()
    return content


def read_description(path: object, model: ModelProto) -> ModelSpec:
    """Return the description that a model carries; ModelError: there is none, or it is faulty."""
    texts = [entry.value for entry in model.metadata_props if entry.key == METADATA_KEY]
    if not texts:
        raise ModelError(
            f"{path}: no '{METADATA_KEY}' metadata, so this is not a model exported by nmsfree: "
            "export the checkpoint with `nmsfree export`, or let `nmsfree adopt` make a model of"
            " another project's file"
        )
    return ModelSpec.from_json(texts[0], f"{path}: model description")


def made_of(
    nodes: Iterable[NodeProto], values: Iterable[str], given: Collection[str] = ()
) -> tuple[list[NodeProto], set[str]]:
    """Return the nodes that make these values, in order, and the names of all that these read.

    Nodes are sorted topologically, by ONNX's rules; values `given` are not made where one reads
    them.
    """
    needed = set(values)
    found = []
    for node in reversed(list(nodes)):
        if needed.intersection(node.output):
            needed.update(name for name in node.input if name not in given)
            found.append(node)
    return found[::-1], needed
