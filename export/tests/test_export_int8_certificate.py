"""The certificate of INT8 files notices every way in which one is not the FP32 graph, rounded."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, helper, numpy_helper

from nmsfree.datasets.digits.scenes import write_digits
from nmsfree.errors import GateError
from nmsfree.spec import ModelSpec, Target
from nmsfree_export.export import ExportOptions, make_export_spec
from nmsfree_export.graph.write import OPSET, build_onnx, deploy_module, deployed_tensors
from nmsfree_export.quantize import Calibration, load_calibration, quantise, quantised_nodes
from nmsfree_export.verify.certificate import Certificate
from nmsfree_export.verify.int8_certificate import certify_int8
from nmsfree_training.config import fcos_e2e_nano
from nmsfree_training.weights.checkpoint import Checkpoint

Make = Callable[..., Checkpoint]


class Built(NamedTuple):
    model: ModelProto
    original: ModelProto
    spec: ModelSpec
    deployed: dict[str, np.ndarray]

    def certify(self, model: ModelProto) -> Certificate:
        return certify_int8(model, self.original, self.spec, self.deployed, OPSET)

    def copy(self) -> ModelProto:
        copied = ModelProto()
        copied.CopyFrom(self.model)
        return copied


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "digits"
    write_digits(folder, train=4, val=0, crowd=0)
    return folder


@pytest.fixture(scope="module")
def cpu(checkpoint: Checkpoint, digits: Path) -> Built:
    return build(checkpoint, digits, "cpu")


@pytest.fixture(scope="module")
def tensorrt(checkpoint: Checkpoint, digits: Path) -> Built:
    return build(checkpoint, digits, "tensorrt")


def build(checkpoint: Checkpoint, digits: Path, target: Target) -> Built:
    spec = make_export_spec(checkpoint, ExportOptions())
    module = deploy_module(checkpoint.build(), spec)
    original, deployed = build_onnx(module, spec), deployed_tensors(module)
    model = quantise(original, deployed, target, load_calibration(digits, "train", 4, spec))
    return Built(
        model, original, dataclasses.replace(spec, precision="int8", made_for=target), deployed
    )


def refused(built: Built, model: ModelProto) -> str:
    with pytest.raises(GateError) as caught:
        built.certify(model)
    return str(caught.value)


def node(model: ModelProto, name: str) -> NodeProto:
    return next(n for n in model.graph.node if n.name == name)


def first(model: ModelProto, kind: str) -> NodeProto:
    return next(n for n in model.graph.node if n.op_type == kind)


def maker(model: ModelProto, value: str) -> NodeProto:
    return next(n for n in model.graph.node if value in n.output)


def change(model: ModelProto, name: str, edit: Callable[[np.ndarray], np.ndarray]) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(edit(numpy_helper.to_array(tensor).copy()), name))


def test_what_it_says(cpu: Built, tensorrt: Built) -> None:
    lines = dict(cpu.certify(cpu.model).lines)
    assert lines["activations for cpu"] == "74 in uint8"
    assert lines["precision"] == "38 convolutions in int8, 6 in fp32"
    assert lines["last convolutions and all after them in float"] == "6 convolutions in fp32"
    lines = dict(tensorrt.certify(tensorrt.model).lines)
    assert lines["activations for tensorrt"] == "30 in int8, zero points all 0"
    graph = lines["the FP32 graph with rounding added, weights within half a step"]
    assert graph == "138 nodes as they were, 98 of rounding, 38 tensors in integers"
    assert any(check.startswith("before quantisation, weights are") for check in lines)


def test_quantising_leaves_the_original_and_is_repeatable(
    checkpoint: Checkpoint, digits: Path, cpu: Built
) -> None:
    again = build(checkpoint, digits, "cpu")
    assert again.original == cpu.original
    assert again.model.SerializeToString() == cpu.model.SerializeToString()


def test_activations_lie_within_what_was_seen(cpu: Built) -> None:
    """The pixels' scale comes from the pictures: it covers 0 … 255, normalised."""
    conv = node(cpu.model, "node_conv2d")
    rounding = maker(cpu.model, conv.input[0])
    tensors = {t.name: numpy_helper.to_array(t) for t in cpu.model.graph.initializer}
    scale, zero = (tensors[name] for name in rounding.input[1:])
    low, high = -zero.astype(float) * scale, (255 - zero.astype(float)) * scale
    assert -2.2 < low < -1 and 1 < high < 2.7


@pytest.mark.parametrize("name", ["head_norm", "filters"])
def test_group_norm_and_filters_stay_in_float(
    make_checkpoint: Make, digits: Path, name: str
) -> None:
    """Sums and pooling after the pyramid belong to norms and filters."""
    changed = {"head_norm": "group"} if name == "head_norm" else {"max_filter": "features"}
    config = dataclasses.replace(fcos_e2e_nano(7).model, rival_iou=0.8, **changed)  # type: ignore[arg-type]
    built = build(make_checkpoint(config, (96, 128)), digits, "cpu")
    built.certify(built.model)
    names = quantised_nodes(built.original, built.deployed, "cpu")
    kinds = [n.op_type for n in built.original.graph.node if n.name in names]
    trunk = ("Add", 10), ("MaxPool", 1)
    assert all(kinds.count(kind) == count for kind, count in trunk)
    for kind in ("InstanceNormalization", "Tanh", "Div", "Exp", "Sigmoid"):
        for other in (n for n in built.model.graph.node if n.op_type == kind):
            assert maker_kinds(built.model, other) <= {"", *FLOAT_MAKERS}, kind


FLOAT_MAKERS = ("Add", "Sub", "Mul", "Div", "Min", "Max", "Exp", "Slice", "Split", "Concat", "Relu")


def maker_kinds(model: ModelProto, of: NodeProto) -> set[str]:
    made = {o: n.op_type for n in model.graph.node for o in n.output}
    found = {made.get(name, "") for name in of.input}
    return found - {"DequantizeLinear", "Reshape", "TopK", "Transpose", "Cast", "Clip", "Gather"}


def test_a_bias_that_levels_share_has_a_unit_per_level(make_checkpoint: Make, digits: Path) -> None:
    config = dataclasses.replace(fcos_e2e_nano(7).model, head_norm="batch", rival_iou=0.0)
    built = build(make_checkpoint(config, (96, 128)), digits, "cpu")
    built.certify(built.model)
    convs = [n for n in built.original.graph.node if n.op_type == "Conv" and len(n.input) == 3]
    shared = [n for n in convs if n.input[2].endswith(".cls_heads.0.conv.bias")]
    assert len(shared) == 3 and len({n.input[2] for n in shared}) == 1
    own = {maker(built.model, node(built.model, n.name).input[2]).input[0] for n in shared}
    assert len(own) == 3


def test_a_changed_weight(tensorrt: Built) -> None:
    model = tensorrt.copy()
    weight = maker(model, node(model, "node_conv2d_5").input[1]).input[0]

    def one_step(value: np.ndarray) -> np.ndarray:
        value.flat[7] += 1 if value.flat[7] < 100 else -1
        return value

    change(model, weight, one_step)
    assert refused(tensorrt, model) == (
        "certificate: Conv 'node_conv2d_5' takes 'network.backbone.layer2.0.conv1.weight_quantized'"
        ", which is not within half a step of 'network.backbone.layer2.0.conv1.weight'"
    )


def test_a_changed_float(tensorrt: Built) -> None:
    model = tensorrt.copy()
    change(model, "network.scale", lambda value: np.nextafter(value, np.float32(1)))
    assert refused(tensorrt, model) == (
        "certificate: Mul 'node_mul' takes 'network.scale', which is not within half a step of "
        "'network.scale'"
    )


def test_another_input(tensorrt: Built) -> None:
    model = tensorrt.copy()
    add = node(model, "node_add")
    add.input[0], add.input[1] = add.input[1], add.input[0]
    assert refused(tensorrt, model) == (
        "certificate: Add 'node_add' takes 'max_pool2d', expected 'conv2d_2'"
    )


def test_a_node_too_many(tensorrt: Built) -> None:
    model = tensorrt.copy()
    add = node(model, "node_add")
    position = list(model.graph.node).index(add)
    model.graph.node.insert(position, helper.make_node("Relu", [add.input[0]], ["x"], name="x"))
    node(model, "node_add").input[0] = "x"
    assert refused(tensorrt, model) == (
        "certificate: 139 nodes beside the rounding, expected the 138 of the FP32 graph"
    )


def cleaned(model: ModelProto) -> ModelProto:
    """Without nodes and initialisers that nothing needs."""
    needed = {value.name for value in model.graph.output}
    kept = []
    for found in reversed(list(model.graph.node)):
        if needed.intersection(found.output):
            needed.update(found.input)
            kept.append(found)
    nodes = [NodeProto.FromString(n.SerializeToString()) for n in reversed(kept)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    tensors = [t for t in model.graph.initializer if t.name in needed]
    copies = [type(t).FromString(t.SerializeToString()) for t in tensors]
    del model.graph.initializer[:]
    model.graph.initializer.extend(copies)
    return model


def test_a_changed_operator(tensorrt: Built) -> None:
    model = tensorrt.copy()
    node(model, "node_relu").op_type = "Tanh"
    assert refused(tensorrt, model) == "certificate: Relu 'node_relu' is not what it was"
    model = tensorrt.copy()
    pads = next(a for a in node(model, "node_conv2d_4").attribute if a.name == "pads")
    pads.ints[:] = [0, 1, 2, 1]  # the same shape comes out
    assert refused(tensorrt, model) == "certificate: Conv 'node_conv2d_4' is not what it was"


def test_a_zero_point_for_tensorrt(tensorrt: Built) -> None:
    model = tensorrt.copy()
    rounding = first(model, "QuantizeLinear")
    change(model, rounding.input[2], lambda value: value + np.int8(1))
    assert refused(tensorrt, model) == (
        f"certificate: QuantizeLinear '{rounding.name}' has a zero point that is not 0, which "
        "TensorRT does not take"
    )


def test_activations_of_the_other_kind(cpu: Built, tensorrt: Built) -> None:
    name = first(cpu.model, "QuantizeLinear").name
    other = cpu._replace(spec=tensorrt.spec)
    assert refused(other, cpu.model) == (
        f"certificate: QuantizeLinear '{name}' makes uint8, expected int8 for tensorrt"
    )
    other = tensorrt._replace(spec=cpu.spec)
    name = first(tensorrt.model, "QuantizeLinear").name
    assert refused(other, tensorrt.model) == (
        f"certificate: QuantizeLinear '{name}' makes int8, expected uint8 for cpu"
    )


def test_no_zero_point(cpu: Built) -> None:
    model = cpu.copy()
    rounding = first(model, "QuantizeLinear")
    back = next(n for n in model.graph.node if rounding.output[0] in n.input)
    zero = rounding.input[2]
    for found in (rounding, back):
        del found.input[2]
    drop_unused(model, zero)
    assert refused(cpu, model) == (
        f"certificate: QuantizeLinear '{rounding.name}' has no constant zero point"
    )


def drop_unused(model: ModelProto, name: str) -> None:
    if not any(name in found.input for found in model.graph.node):
        model.graph.initializer.remove(next(t for t in model.graph.initializer if t.name == name))


def test_rounding_in_different_steps(tensorrt: Built) -> None:
    model = tensorrt.copy()
    rounding = first(model, "QuantizeLinear")
    back = next(n for n in model.graph.node if rounding.output[0] in n.input)
    scale = next(t for t in model.graph.initializer if t.name == rounding.input[1])
    own = type(scale).FromString(scale.SerializeToString())
    own.name = back.input[1] = "own_scale"
    model.graph.initializer.append(own)
    assert refused(tensorrt, model) == (
        f"certificate: '{rounding.name}' and '{back.name}' round in different steps"
    )


def test_rounding_twice(tensorrt: Built) -> None:
    model = tensorrt.copy()
    rounding = first(model, "QuantizeLinear")
    position = list(model.graph.node).index(rounding)
    source, *steps = rounding.input
    model.graph.node.insert(
        position, helper.make_node("DequantizeLinear", ["q", *steps], ["dq"], name="dq")
    )
    model.graph.node.insert(
        position, helper.make_node("QuantizeLinear", [source, *steps], ["q"], name="q")
    )
    next(n for n in model.graph.node if n.name == rounding.name).input[0] = "dq"
    assert refused(tensorrt, model) == (
        f"certificate: '{rounding.name}' rounds in 1 different steps or again, expected one step,"
        " once"
    )


def test_a_scale_of_zero(tensorrt: Built) -> None:
    model = tensorrt.copy()
    back = first(model, "DequantizeLinear")
    change(model, back.input[1], lambda value: value * np.float32(0))
    assert refused(tensorrt, model) == (
        f"certificate: '{back.name}' has a scale that is no positive constant"
    )


def test_integers_that_reach_an_operator(tensorrt: Built) -> None:
    model = tensorrt.copy()
    rounding = first(model, "QuantizeLinear")
    back = next(n for n in model.graph.node if rounding.output[0] in n.input)
    user = next(n for n in model.graph.node if back.output[0] in n.input)
    user.input[0] = rounding.output[0]
    message = refused(tensorrt, cleaned(model))
    assert message.startswith("certificate: against the rules of ONNX: ")
    assert f"node name: {user.name}" in message


def test_the_last_convolutions_in_integers(tensorrt: Built) -> None:
    model = tensorrt.copy()
    conv = node(model, "node_conv2d_38")
    quantised = maker(model, node(model, "node_conv2d_27").input[0])
    scale, zero = quantised.input[1:3]
    position = list(model.graph.node).index(conv)
    pair = [
        helper.make_node("QuantizeLinear", ["relu_18", scale, zero], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", scale, zero], ["dq"], name="dq"),
    ]
    conv.input[0] = "dq"
    for offset, extra in enumerate(pair):
        model.graph.node.insert(position + offset, extra)
    assert refused(tensorrt, model) == (
        "certificate: the last convolution 'node_conv2d_38' is not in float"
    )


def test_rounding_after_the_last_convolutions(tensorrt: Built) -> None:
    model = tensorrt.copy()
    user = node(model, "node_view")
    quantised = maker(model, node(model, "node_conv2d_27").input[0])
    scale, zero = quantised.input[1:3]
    position = list(model.graph.node).index(user)
    source = user.input[0]
    pair = [
        helper.make_node("QuantizeLinear", [source, scale, zero], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", scale, zero], ["dq"], name="dq"),
    ]
    user.input[0] = "dq"
    for offset, extra in enumerate(pair):
        model.graph.node.insert(position + offset, extra)
    assert refused(tensorrt, model) == (
        f"certificate: '{source}' is rounded, though it comes after the last convolutions"
    )


def requantise(built: Built, model: ModelProto, name: str, finer: float) -> None:
    """Round a tensor of the FP32 graph anew, in steps that are `finer` times as small."""
    want = next(t for t in built.original.graph.initializer if t.name == name)
    values = numpy_helper.to_array(want)
    back = next(n for n in model.graph.node if n.input and n.input[0] == f"{name}_quantized")
    change(model, back.input[1], lambda scale: (scale / finer).astype(np.float32))
    scale = next(t for t in model.graph.initializer if t.name == back.input[1])
    steps = numpy_helper.to_array(scale).reshape(-1, *[1] * (values.ndim - 1))
    change(model, back.input[0], lambda old: np.rint(values / steps).astype(old.dtype))


def test_a_bias_in_another_unit(cpu: Built) -> None:
    """Its values are right, but a processor would not look at its scale."""
    model = cpu.copy()
    requantise(cpu, model, "network.backbone.layer2.0.conv1.bias", 2)
    assert refused(cpu, model) == (
        "certificate: the bias of 'node_conv2d_5' is not in the unit of its input × weights"
    )


def test_weights_that_saturate(cpu: Built) -> None:
    model = cpu.copy()
    requantise(cpu, model, "network.backbone.layer2.0.conv1.weight", 126 / 64)
    assert refused(cpu, model) == (
        "certificate: 'node_conv2d_5' has weights beyond ±64, whose products saturate on "
        "processors without VNNI"
    )


def test_a_custom_operator(cpu: Built) -> None:
    model = cpu.copy()
    first(model, "QuantizeLinear").domain = "com.microsoft"
    name = first(model, "QuantizeLinear").name
    assert (
        refused(cpu, model) == f"certificate: QuantizeLinear '{name}' has a domain, expected none"
    )


def test_nothing_quantised(cpu: Built) -> None:
    model = ModelProto()
    model.CopyFrom(cpu.original)
    model.ClearField("metadata_props")
    assert refused(cpu, model) == (
        "certificate: convolutions in fp32 (44), expected all in int8 but heads.2.cls_pred, "
        "heads.2.reg_pred"
    )


def test_pictures_come_one_by_one(checkpoint: Checkpoint, digits: Path) -> None:
    """A fixed batch is filled with copies; progress counts pictures."""
    spec = make_export_spec(checkpoint, ExportOptions(batch=3))
    module = deploy_module(checkpoint.build(), spec)
    original, deployed = build_onnx(module, spec), deployed_tensors(module)
    seen: list[tuple[int, int]] = []
    calibration: Calibration = load_calibration(digits, "train", 2, spec)
    model = quantise(
        original, deployed, "cpu", calibration, lambda done, total: seen.append((done, total))
    )
    assert seen == [(1, 2), (2, 2)]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 3
