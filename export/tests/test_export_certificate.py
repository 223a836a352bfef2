"""The certificate passes what is exported, and refuses whatever else a file could hold."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, TypeProto, helper, numpy_helper

from nmsfree.errors import GateError
from nmsfree.spec import ModelSpec
from nmsfree_export.graph.write import OPSET, build_onnx, deploy_module, deployed_tensors
from nmsfree_export.verify.certificate import Certificate, certify
from nmsfree_training.weights.checkpoint import Checkpoint
from nmsfree_training.weights.predict import make_spec

Built = tuple[ModelProto, ModelSpec, dict[str, np.ndarray]]
Spoil = Callable[[ModelProto], object]

WEIGHTS = numpy_helper.from_array(np.random.default_rng(1).random((64, 64), np.float32), "hidden")
LONG = "weights" * 100


@pytest.fixture(scope="module")
def built(checkpoint: Checkpoint) -> Built:
    spec = make_spec(checkpoint, "o2o", batch=1)
    module = deploy_module(checkpoint.build(), spec)
    return build_onnx(module, spec), spec, deployed_tensors(module)


def check(model: ModelProto, built: Built) -> Certificate:
    return certify(model, built[1], built[2], OPSET)


def test_certificate_of_a_good_file(built: Built) -> None:
    certificate = check(built[0], built)
    head = sum(
        {v.tobytes(): v.nbytes for k, v in built[2].items() if ".heads." in k and v.any()}.values()
    )
    assert certificate.weight_bytes["head"] == head
    assert certificate.weight_bytes["constants"] < 1024
    assert sum(certificate.weight_bytes.values()) == sum(
        numpy_helper.to_array(t).nbytes for t in built[0].graph.initializer
    )


def of(model: ModelProto, kind: str) -> NodeProto:
    return next(n for n in model.graph.node if n.op_type == kind)


def biggest(model: ModelProto) -> TensorProto:
    return max(model.graph.initializer, key=lambda t: t.ByteSize())


def first_size(model: ModelProto) -> Any:
    return model.graph.input[0].type.tensor_type.shape.dim[0]


def adds(kind: str, inputs: str = "", at: int = 0, **attributes: Any) -> Spoil:
    """Return what puts a node before all others; nothing needs it."""
    made = helper.make_node(kind, inputs.split(), ["new"], "it", **attributes)
    return lambda model: model.graph.node.insert(at, made)


def gives(kind: str, **attributes: Any) -> Spoil:
    """Return what gives the first node of a kind more attributes."""
    made = [helper.make_attribute(key, value) for key, value in attributes.items()]
    return lambda model: of(model, kind).attribute.extend(made)


def merges(
    field: Mapping[str, Any], at: Callable[[ModelProto], Any] = lambda model: model
) -> Spoil:
    """Return what merges fields into a message of the file."""
    return lambda model: at(model).MergeFrom(type(at(model))(**field))


def unknown_field(at: Callable[[ModelProto], Any]) -> Spoil:
    """Field 1000 of 4 bytes."""
    return lambda model: at(model).MergeFromString(b"\xc2\x3e\x04\x01\x02\x03\x04")


def types(kind: TypeProto, name: str | None = None) -> Spoil:
    """Return what notes this type for a value, the first node's output."""

    def spoil(model: ModelProto) -> None:
        del model.graph.value_info[:]
        model.graph.value_info.add(name=name or model.graph.node[0].output[0], type=kind)

    return spoil


def sparse_weights(model: ModelProto) -> None:
    indices = numpy_helper.from_array(np.array([3], np.int64))
    values = numpy_helper.from_array(np.ones(1, np.float32), "sparse")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [9]))


def outside_weights(model: ModelProto) -> None:
    tensor = biggest(model)
    tensor.ClearField("raw_data")
    tensor.external_data.add(key="location", value="weights.bin")
    tensor.data_location = TensorProto.EXTERNAL


def other_encoding(model: ModelProto) -> None:
    tensor = biggest(model)
    values = numpy_helper.to_array(tensor).ravel()
    tensor.CopyFrom(helper.make_tensor(tensor.name, TensorProto.FLOAT, tensor.dims, values))


def not_finite(model: ModelProto) -> None:
    tensor = biggest(model)
    values = numpy_helper.to_array(tensor).copy()
    values.flat[5] = np.nan
    tensor.raw_data = values.tobytes()


def store_twice(model: ModelProto) -> None:
    again = model.graph.initializer.add()
    again.CopyFrom(biggest(model))
    again.name = "new"
    _add_to_scores(
        model, [0, 1, 2, 3], helper.make_node("ReduceMax", ["new", "axes"], ["max"], keepdims=0)
    )


def more_weights(model: ModelProto) -> None:
    model.graph.initializer.append(WEIGHTS)
    _add_to_scores(
        model, [0, 1], helper.make_node("ReduceMax", ["hidden", "axes"], ["max"], keepdims=0)
    )


def many_small_constants(model: ModelProto) -> None:
    rows = np.random.default_rng(0).random((9, 8)).astype(np.float32)
    names = [f"small{i}" for i in range(len(rows))]
    tensors = [numpy_helper.from_array(row, name) for row, name in zip(rows, names, strict=True)]
    model.graph.initializer.extend(tensors)
    _add_to_scores(
        model,
        [0],
        helper.make_node("Concat", names, ["joined"], axis=0),
        helper.make_node("ReduceMax", ["joined", "axes"], ["max"], keepdims=0),
    )


def shape_from_data(model: ModelProto) -> None:
    _add_to_scores(
        model,
        [1],
        helper.make_node("ReduceMax", ["plain", "axes"], ["highest"], keepdims=0),
        helper.make_node("Cast", ["highest"], ["count"], to=TensorProto.INT64),
        helper.make_node("Expand", ["plain", "count"], ["grown"], name="grows"),
        helper.make_node("ReduceMax", ["grown", "axes"], ["max"], keepdims=1),
    )


def _add_to_scores(model: ModelProto, axes: list[int], *nodes: NodeProto) -> None:
    """Compute "max" by these nodes over these axes, and add it to the scores."""
    model.graph.initializer.append(numpy_helper.from_array(np.array(axes, np.int64), "axes"))
    sigmoid = of(model, "Sigmoid")
    position = list(model.graph.node).index(sigmoid)
    sigmoid.output[0] = "plain"
    added = helper.make_node("Add", ["plain", "max"], ["detection_scores"], name="added")
    for extra in (added, *reversed(nodes)):
        model.graph.node.insert(position + 1, extra)


BODY = helper.make_graph([], "body", [], [])
FLOAT = helper.make_tensor_type_proto(TensorProto.FLOAT, [64, 64])

CASES: dict[str, tuple[Spoil, str]] = {
    # Operators.
    "Constant": (adds("Constant", value=WEIGHTS), "may not contain Constant 'it'"),
    "NMS": (adds("NonMaxSuppression", "a b"), "may not contain NonMaxSuppression 'it'"),
    "rows by data": (adds("NonZero", "detection_scores"), "may not contain NonZero 'it'"),
    "random": (adds("RandomUniformLike", "images"), "may not contain RandomUniformLike"),
    "branch": (adds("If", "a", then_branch=BODY, else_branch=BODY), "may not contain If 'it'"),
    "rounding": (adds("QuantizeLinear", "a b"), "may not contain QuantizeLinear"),
    "plugin": (adds("Relu", "a", domain="trt.plugins"), "Relu 'it' has a domain"),
    "dead node": (adds("Relu", "detection_scores", 9999), "no output needs Relu 'it'"),
    # Attributes.
    "unknown attribute": (gives("Relu", alpha=0.5), "has the attribute AttributeProto 'alpha'"),
    "attribute of floats": (gives("Relu", hidden=[0.5] * 99), "'hidden', expected none"),
    "attribute tensor": (gives("Conv", value=WEIGHTS), "'value', expected none of this name"),
    "attribute graph": (gives("Conv", body=BODY), "'body', expected none of this name"),
    "attribute twice": (gives("Conv", group=1), "'group', expected it once"),
    "two values": (
        merges({"floats": [0.5] * 99}, lambda m: of(m, "Conv").attribute[0]),
        "Conv '.*' has the attribute",
    ),
    "too many": (
        merges({"ints": [1] * 99}, lambda m: of(m, "Transpose").attribute[0]),
        "'perm', expected it once, a few integers",
    ),
    "another mode": (
        merges(
            {"s": b"cubic"},
            lambda m: next(a for a in of(m, "Resize").attribute if a.name == "mode"),
        ),
        "Resize .* 'mode', expected it once, b'nearest'",
    ),
    "of a function": (
        merges({"ref_attr_name": "x"}, lambda m: of(m, "Conv").attribute[0]),
        "Conv '.*' has the attribute",
    ),
    # Fields.
    "doc of the model": (merges({"doc_string": "w"}), "ModelProto has a doc_string"),
    "doc of the graph": (merges({"graph": {"doc_string": "w"}}), "'main_graph' has a doc_string"),
    "doc of a node": (merges({"doc_string": "w"}, lambda m: m.graph.node[3]), "has a doc_string"),
    "doc of a tensor": (merges({"doc_string": "w"}, biggest), "has a doc_string"),
    "doc of an input": (
        merges({"doc_string": "w"}, lambda m: m.graph.input[0]),
        "ValueInfoProto 'images' has a doc_string",
    ),
    "metadata": (
        merges({"metadata_props": [{"key": "w", "value": "1"}]}),
        "metadata under nmsfree, w, expected the description",
    ),
    "description": (
        merges({"value": "{}"}, lambda m: m.metadata_props[0]),
        "metadata under nmsfree, expected",
    ),
    "metadata of the graph": (
        merges({"graph": {"metadata_props": [{"key": "w", "value": "1"}]}}),
        "has a metadata_props",
    ),
    "metadata of a node": (
        merges({"metadata_props": [{"key": "w", "value": "1"}]}, lambda m: m.graph.node[0]),
        "has a metadata_props",
    ),
    "training": (
        merges({"training_info": [{"initialization": {"initializer": [WEIGHTS]}}]}),
        "ModelProto has a training_info",
    ),
    "function": (merges({"functions": [{"name": "f"}]}), "ModelProto has a functions"),
    "producer": (merges({"producer_version": "w"}), "ModelProto has a producer_version"),
    "annotation": (
        merges({"graph": {"quantization_annotation": [{"tensor_name": "w"}]}}),
        "has a quantization_annotation",
    ),
    "sparse": (sparse_weights, "has a sparse_initializer"),
    "outside": (outside_weights, "has a (external_data|data_location)"),
    "other encoding": (other_encoding, "has a float_data"),
    "several devices": (
        merges({"device_configurations": [{"configuration_id": "w"}]}, lambda m: m.graph.node[0]),
        "has a device_configurations",
    ),
    "unknown field": (unknown_field(lambda model: model), "has the unknown field 1000"),
    "unknown in a tensor": (unknown_field(biggest), "has the unknown field 1000"),
    "unknown in a shape": (unknown_field(first_size), "Dimension has the unknown field 1000"),
    "long name": (merges({"name": LONG}, lambda m: of(m, "Conv")), "has a name of 700 letters"),
    "long dimension": (merges({"dim_param": LONG}, first_size), "has a dim_param of 700 letters"),
    # Types.
    "sequence type": (types(helper.make_sequence_type_proto(FLOAT)), "has a sequence_type"),
    "optional type": (types(helper.make_optional_type_proto(FLOAT)), "has a optional_type"),
    "sparse type": (
        types(helper.make_sparse_tensor_type_proto(TensorProto.FLOAT, [9])),
        "has a sparse_tensor_type",
    ),
    "denotation": (types(TypeProto(tensor_type=FLOAT.tensor_type, denotation="w")), "a denotation"),
    "double": (
        types(helper.make_tensor_type_proto(TensorProto.DOUBLE, [1])),
        "has elements of type 11, expected one of",
    ),
    "string": (types(helper.make_tensor_type_proto(TensorProto.STRING, [1])), "of type 8"),
    "type of nothing": (types(FLOAT, "hidden"), "'hidden' is given, no such value"),
    "wrong type": (
        types(helper.make_tensor_type_proto(TensorProto.INT64, [1])),
        "against the rules of ONNX",
    ),
    "other output": (
        lambda m: setattr(m.graph.output[3].type.tensor_type, "elem_type", TensorProto.INT64),
        "rules of ONNX",
    ),
    # Opsets.
    "second import": (
        lambda m: m.opset_import.add(domain="", version=OPSET),
        "opsets .*, expected ai.onnx 18 and nothing else",
    ),
    "other opset": (lambda m: setattr(m.opset_import[0], "version", 20), "rules of ONNX|20"),
    # Weights.
    "more weights": (more_weights, "'hidden' .* belongs to no part"),
    "small constants": (many_small_constants, "7[0-9] floats beside the weights, expected at most"),
    "missing": (lambda model: model.graph.initializer.remove(biggest(model)), "rules of ONNX"),
    "stored twice": (store_twice, "'new' is stored twice"),
    "unused": (lambda model: model.graph.initializer.append(WEIGHTS), "needs the initialiser"),
    "more bytes": (
        lambda m: setattr(biggest(m), "raw_data", biggest(m).raw_data + bytes(1000)),
        "rules of ONNX|bytes, which are no values of shape",
    ),
    "not finite": (not_finite, "belongs to no part|not finite"),
    "shape from data": (shape_from_data, "shape of Expand 'grows' depends on data"),
}


@pytest.mark.parametrize("case", CASES)
def test_certificate_refuses(built: Built, case: str) -> None:
    spoil, words = CASES[case]
    model = ModelProto.FromString(built[0].SerializeToString())
    spoil(model)
    with pytest.raises(GateError, match=words):
        check(model, built)


def test_certificate_refuses_the_other_head(checkpoint: Checkpoint, built: Built) -> None:
    """A file of the o2o head's weights is not certified as one of the o2m head's."""
    model, spec, _ = built
    network = checkpoint.build()
    network.heads["o2o"].load_state_dict(network.heads["o2m"].state_dict())
    with pytest.raises(GateError, match="belongs to no part"):
        certify(model, spec, deployed_tensors(deploy_module(network, spec)), OPSET)


def test_certificate_refuses_weights_that_are_not_finite(built: Built) -> None:
    """Though they are the network's own."""
    model, (_, spec, deployed) = ModelProto.FromString(built[0].SerializeToString()), built
    not_finite(model)
    tensor = biggest(model)
    broken = deployed | {tensor.name: numpy_helper.to_array(tensor)}
    with pytest.raises(GateError, match=rf"{tensor.name}' holds numbers that are not finite"):
        certify(model, spec, broken, OPSET)
