"""What an exported file may be made of: fields, element types, operators, attributes.

A list of what is allowed, not of what is forbidden: whatever the exporters here do not write is
refused, also what later versions of ONNX will add.
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from google.protobuf.message import Message  # type: ignore[import-untyped]
from google.protobuf.unknown_fields import UnknownFieldSet  # type: ignore[import-untyped]
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper

from nmsfree.errors import GateError
from nmsfree.spec import METADATA_KEY, ModelSpec
from nmsfree.text import shown

FEW = 8  # values: a padding has eight, four axes at two ends
LONGEST_NAME = 100  # characters

# Fields that may be set, by the kind of message.
FIELDS = {
    "ModelProto": "ir_version producer_name opset_import graph metadata_props",
    "OperatorSetIdProto": "domain version",
    "StringStringEntryProto": "key value",
    "GraphProto": "name node initializer input output value_info",
    "NodeProto": "name op_type input output attribute",
    "AttributeProto": "name type i f s ints",
    "TensorProto": "name dims data_type raw_data",
    "ValueInfoProto": "name type",
    "TypeProto": "tensor_type",
    "Tensor": "elem_type shape",
    "TensorShapeProto": "dim",
    "Dimension": "dim_value dim_param",
}
ELEMENTS = {
    TensorProto.UINT8,
    TensorProto.INT32,
    TensorProto.INT64,
    TensorProto.BOOL,
    TensorProto.FLOAT,
}
ELEMENTS_OF = {"fp16": {TensorProto.FLOAT16}, "int8": {TensorProto.INT8}}  # and these

INT, INTS = "any integer", "a few integers"
_WINDOW = {"auto_pad": b"NOTSET", "dilations": INTS, "pads": INTS, "strides": INTS}


class Operator(NamedTuple):
    """How an operator may be used.

    The first `data` inputs may depend on the picture; the shape of an output depends on the others,
    so they may not.
    """

    data: int
    attributes: Mapping[str, Any] = MappingProxyType({})  # all it may have: a value, INT or INTS


_ONE = "Exp Expand Floor Neg Relu Sigmoid Slice Tanh Unsqueeze"
_TWO = "Add Div Greater Mul Sub"
OPERATORS = {
    **{name: Operator(1) for name in _ONE.split()},
    **{name: Operator(2) for name in _TWO.split()},
    "Cast": Operator(1, {"to": frozenset(ELEMENTS | {TensorProto.FLOAT16})}),
    "Clip": Operator(3),
    "Concat": Operator(9, {"axis": INT}),
    "Conv": Operator(3, _WINDOW | {"group": INT, "kernel_shape": INTS}),
    "DepthToSpace": Operator(1, {"blocksize": INT, "mode": b"CRD"}),
    "Gather": Operator(2, {"axis": INT}),
    "GatherElements": Operator(2, {"axis": INT}),
    "InstanceNormalization": Operator(3, {"epsilon": helper.make_attribute("epsilon", 1e-5).f}),
    "Max": Operator(9),
    "MaxPool": Operator(1, _WINDOW | {"ceil_mode": INT, "kernel_shape": INTS, "storage_order": 0}),
    "Min": Operator(9),
    "Pad": Operator(1, {"mode": b"constant"}),
    "ReduceMax": Operator(1, {"keepdims": INT, "noop_with_empty_axes": 0}),
    "ReduceSum": Operator(1, {"keepdims": INT, "noop_with_empty_axes": 0}),
    "Reshape": Operator(1, {"allowzero": INT}),
    "Resize": Operator(
        1,
        {
            "antialias": 0,
            "coordinate_transformation_mode": b"asymmetric",
            "cubic_coeff_a": -0.75,
            "exclude_outside": 0,
            "extrapolation_value": 0.0,
            "keep_aspect_ratio_policy": b"stretch",
            "mode": b"nearest",
            "nearest_mode": b"floor",
        },
    ),
    "Shape": Operator(1, {"start": INT, "end": INT}),
    "Split": Operator(1, {"axis": INT, "num_outputs": INT}),
    "TopK": Operator(1, {"axis": INT, "largest": 1, "sorted": 1}),
    "Transpose": Operator(1, {"perm": INTS}),
}
# The NMS baseline has these, too: its rows are as many as the data decide, until its last TopK.
NMS_OPERATORS = {
    "Equal": Operator(2),
    "NonMaxSuppression": Operator(2),
    "ScatterND": Operator(3),
    "Where": Operator(3),
}
PLAIN_NMS_OPERATORS = {
    "And": Operator(2),
    "Equal": Operator(2),
    "Less": Operator(2),
    "MatMul": Operator(2),
    "Squeeze": Operator(1),
}
# What makes the input of a picture of any size.
ANY_OPERATORS = {
    **{name: Operator(2) for name in ["And", "GreaterOrEqual", "Less", "MatMul"]},
    **{name: Operator(1) for name in ["Abs", "Identity", "Round", "Squeeze"]},
    "Range": Operator(0),
    "Where": Operator(3),
}
ADOPTED = "adopted"  # entry of the provenance of another project's file: its family
# Nodes of adopted files whose outputs are as many as the data decide, or that hide a graph.
FORBIDDEN = {"NonMaxSuppression", "NonZero", "Compress", "Unique", "Loop", "If", "Scan"}
INT8_OPERATORS = {"QuantizeLinear": Operator(1), "DequantizeLinear": Operator(1, {"axis": INT})}
_VALUE_FIELDS = {
    AttributeProto.INT: "i",
    AttributeProto.FLOAT: "f",
    AttributeProto.STRING: "s",
    AttributeProto.INTS: "ints",
}


def refused(why: str) -> GateError:
    return GateError(f"certificate: {why}")


def operators_of(spec: ModelSpec) -> dict[str, Operator]:
    nms: dict[str, Operator] = {}
    if spec.nms is not None:
        nms = NMS_OPERATORS if spec.nms.steps is None else PLAIN_NMS_OPERATORS
    whole = ANY_OPERATORS if spec.input == "any" else {}
    return OPERATORS | nms | whole | (INT8_OPERATORS if spec.precision == "int8" else {})


def check_parts(model: ModelProto, spec: ModelSpec) -> None:
    """Refuse whatever is not on the lists above, wherever it is in a file."""
    operators = operators_of(spec)
    elements = ELEMENTS | ELEMENTS_OF.get(spec.precision, set())
    for message in _messages(model):
        kind = message.DESCRIPTOR.name
        if kind == "NodeProto":
            _check_node(message, operators)
        if kind in ("Tensor", "TensorProto"):
            found = message.elem_type if kind == "Tensor" else message.data_type
            if found not in elements:
                raise refused(
                    f"{_name(message)} has elements of type {found}, expected one of"
                    f" {sorted(elements)}"
                )
    entries = [(entry.key, entry.value) for entry in model.metadata_props]
    if entries not in ([], [(METADATA_KEY, spec.to_json())]):
        raise refused(
            f"metadata under {shown(', '.join(k for k, _ in entries))}, expected the"
            f" description under {METADATA_KEY} and nothing else"
        )


def check_adopted_parts(model: ModelProto, spec: ModelSpec) -> None:
    """Refuse what hides an NMS in another project's graph, or a size that the data decide."""
    by_operator = spec.nms is not None and spec.nms.steps is None
    allowed = {"NonMaxSuppression", "NonZero"} if by_operator else set()  # NonZero: masks before it
    found = sorted({node.op_type for node in model.graph.node} & (FORBIDDEN - allowed))
    if found:
        raise refused(f"the file holds {', '.join(found)}: it is not NMS-free")


def _messages(message: Message) -> Iterator[Message]:
    """Every message of a file, if only fields of the list are set; the outermost first."""
    kind = message.DESCRIPTOR.name
    for unknown in UnknownFieldSet(message):
        number = unknown.field_number
        raise refused(f"{_name(message)} has the unknown field {number}")
    parts = []
    for field, value in message.ListFields():
        own = [value] if isinstance(value, str | bytes | int | float | Message) else value
        parts += [(field.name, part) for part in own]
    for name, part in parts:
        if name not in FIELDS[kind].split():
            raise refused(f"{_name(message)} has a {name}, expected none")
        if not isinstance(part, str) or kind == "StringStringEntryProto":
            continue
        if len(part) > LONGEST_NAME or not part.isascii() or not part.isprintable():
            raise refused(
                f"{_name(message)} has a {name} of {len(part)} letters, expected at"
                f" most {LONGEST_NAME}, of ASCII"
            )
    yield message
    for _, part in parts:
        if isinstance(part, Message):
            yield from _messages(part)


def _name(message: Message) -> str:
    """What a message is called in a sentence."""
    own = shown(getattr(message, "name", ""), 40)
    kind = shown(getattr(message, "op_type", message.DESCRIPTOR.name), 40)
    return f"{kind} '{own}'" if own else kind


def _check_node(node: NodeProto, operators: Mapping[str, Operator]) -> None:
    operator = operators.get(node.op_type)
    if operator is None:
        raise refused(f"the file may not contain {_name(node)}")
    names = [attribute.name for attribute in node.attribute]
    for attribute in node.attribute:
        wanted = operator.attributes.get(attribute.name)
        if wanted is None or names.count(attribute.name) > 1 or not _fits(attribute, wanted):
            raise refused(
                f"{_name(node)} has the attribute {_name(attribute)}, expected"
                f" {'none of this name' if wanted is None else f'it once, {wanted}'}"
            )


def _fits(attribute: AttributeProto, wanted: Any) -> bool:
    """Whether an attribute holds what is wanted, and nothing beside it."""
    field = _VALUE_FIELDS.get(attribute.type, "")
    if {f.name for f, _ in attribute.ListFields()} != {"name", "type", field}:
        return False
    value = getattr(attribute, field)
    if wanted is INTS:
        return field == "ints" and len(value) <= FEW
    if wanted is INT:
        return field == "i"
    return value in wanted if isinstance(wanted, frozenset) else value == wanted
