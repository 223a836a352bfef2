"""The certificate of lowered files notices where one is not the FP32 graph with rounding added."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, helper, numpy_helper

from nmsfree.errors import GateError
from nmsfree.spec import ModelSpec, Target
from nmsfree_export.export import ExportOptions, make_export_spec
from nmsfree_export.graph import write
from nmsfree_export.graph.write import OPSET, build_onnx, deploy_module, deployed_tensors
from nmsfree_export.quantize import Calibration, load_calibration, quantize, quantized_nodes
from nmsfree_export.verify.certificate import Certificate, certify
from nmsfree_export.verify.lowered import certify_lowered
from nmsfree_training.config import preset
from nmsfree_training.weights.checkpoint import Checkpoint

Make = Callable[..., Checkpoint]


class Built(NamedTuple):
    model: ModelProto
    original: ModelProto
    spec: ModelSpec
    deployed: dict[str, np.ndarray]

    def certify(self, model: ModelProto) -> Certificate:
        full = dataclasses.replace(self.spec, precision="fp32", int8_target=None)
        before = certify(self.original, full, self.deployed, OPSET)
        return certify_lowered(model, self.original, before, self.spec, OPSET)


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
    original.ClearField("metadata_props")
    model = quantize(original, target, load_calibration(digits, "train", 4, spec))
    return Built(
        model, original, dataclasses.replace(spec, precision="int8", int8_target=target), deployed
    )


def node(model: ModelProto, name: str) -> NodeProto:
    return next(n for n in model.graph.node if n.name == name)


def maker(model: ModelProto, value: str) -> NodeProto:
    return next(n for n in model.graph.node if value in n.output)


def reader(model: ModelProto, value: str) -> NodeProto:
    return next(n for n in model.graph.node if value in n.input)


def insert(model: ModelProto, before: NodeProto, *nodes: NodeProto) -> None:
    for new in nodes:
        model.graph.node.insert(list(model.graph.node).index(before), new)


def rounding_of(model: ModelProto) -> tuple[NodeProto, NodeProto]:
    """The first value that is rounded: its QuantizeLinear and DequantizeLinear."""
    found = next(n for n in model.graph.node if n.op_type == "QuantizeLinear")
    return found, reader(model, found.output[0])


def pair(value: str, steps: Sequence[str]) -> list[NodeProto]:
    """Nodes that round a value to "dq"."""
    return [
        helper.make_node("QuantizeLinear", [value, *steps], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", *steps], ["dq"], name="dq"),
    ]


def change(model: ModelProto, name: str, edit: Callable[[np.ndarray], np.ndarray]) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(edit(numpy_helper.to_array(tensor).copy()), name))


def requantize(built: Built, model: ModelProto, name: str, finer: float) -> None:
    """Round a tensor of the FP32 graph anew, in steps that are `finer` times as small."""
    want = next(t for t in built.original.graph.initializer if t.name == name)
    values = numpy_helper.to_array(want)
    back = next(n for n in model.graph.node if n.input and n.input[0] == f"{name}_quantized")
    change(model, back.input[1], lambda scale: (scale / finer).astype(np.float32))
    scale = next(t for t in model.graph.initializer if t.name == back.input[1])
    steps = numpy_helper.to_array(scale).reshape(-1, *[1] * (values.ndim - 1))
    change(model, back.input[0], lambda old: np.rint(values / steps).astype(old.dtype))


def test_what_it_says(cpu: Built, tensorrt: Built) -> None:
    lines = dict(cpu.certify(cpu.model).lines)
    assert lines["activations for cpu"] == "74 in uint8"
    assert lines["precision"] == "38 convolutions in int8, 6 in fp32"
    assert lines["last convolutions and all after them in float"] == "6 convolutions in fp32"
    lines = dict(tensorrt.certify(tensorrt.model).lines)
    assert lines["activations for tensorrt"] == "30 in int8, zero points all 0"
    graph = lines["the FP32 graph with rounding added, weights within half a step"]
    assert graph == "138 nodes as they were, 98 of rounding, 38 tensors in integers"
    assert any(check.startswith("before quantization, weights are") for check in lines)


def test_quantizing_leaves_the_original_and_is_repeatable(
    checkpoint: Checkpoint, digits: Path, cpu: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "traced", write.traced.__wrapped__)  # type: ignore[attr-defined]
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
    make_checkpoint: Make, grouped: Checkpoint, digits: Path, name: str
) -> None:
    """Sums after the pyramid belong to norms and filters; pooling of integers rounds nothing."""
    model = dataclasses.replace(
        preset("fcos_e2e_nano", 7).model, dedup_iou=0.8, max_filter="features"
    )
    made = grouped if name == "head_norm" else make_checkpoint(model, (96, 128))
    built = build(made, digits, "cpu")
    built.certify(built.model)
    names = quantized_nodes(built.original, "cpu")
    kinds = [n.op_type for n in built.original.graph.node if n.name in names]
    counts = {kind: kinds.count(kind) for kind in ("Add", "MaxPool", "Mul", "Concat")}
    pools = 1 if name == "head_norm" else 6
    assert counts == {"Add": 10, "MaxPool": pools, "Mul": 0, "Concat": 0}
    for kind in ("InstanceNormalization", "Tanh", "Div", "Exp", "Sigmoid"):
        for other in (n for n in built.model.graph.node if n.op_type == kind):
            assert maker_kinds(built.model, other) <= {"", *FLOAT_MAKERS}, kind


FLOAT_MAKERS = ("Add", "Sub", "Mul", "Div", "Min", "Max", "Exp", "Slice", "Split", "Concat", "Relu")


def maker_kinds(model: ModelProto, of: NodeProto) -> set[str]:
    made = {o: n.op_type for n in model.graph.node for o in n.output}
    found = {made.get(name, "") for name in of.input}
    return found - {"DequantizeLinear", "Reshape", "TopK", "Transpose", "Cast", "Clip", "Gather"}


def test_a_bias_that_levels_share_has_a_unit_per_level(make_checkpoint: Make, digits: Path) -> None:
    config = dataclasses.replace(preset("fcos_e2e_nano", 7).model, head_norm="batch", dedup_iou=0.0)
    built = build(make_checkpoint(config, (96, 128)), digits, "cpu")
    built.certify(built.model)
    convs = [n for n in built.original.graph.node if n.op_type == "Conv" and len(n.input) == 3]
    shared = [n for n in convs if n.input[2].endswith(".cls_heads.0.conv.bias")]
    assert len(shared) == 3 and len({n.input[2] for n in shared}) == 1
    own = {maker(built.model, node(built.model, n.name).input[2]).input[0] for n in shared}
    assert len(own) == 3


CONV = "network.backbone.layer2.0.conv1"


def changed_weight(built: Built, model: ModelProto) -> str:
    def one_step(value: np.ndarray) -> np.ndarray:
        value.flat[7] += 1 if value.flat[7] < 100 else -1
        return value

    change(model, maker(model, node(model, "node_conv2d_5").input[1]).input[0], one_step)
    return (
        f"Conv 'node_conv2d_5' takes '{CONV}.weight_quantized', which is not within half a step of"
        f" '{CONV}.weight'"
    )


def changed_float(built: Built, model: ModelProto) -> str:
    change(model, "network.scale", lambda value: np.nextafter(value, np.float32(1)))
    return (
        "Mul 'node_mul' takes 'network.scale', which is not within half a step of 'network.scale'"
    )


def other_input(built: Built, model: ModelProto) -> str:
    add = node(model, "node_add")
    add.input[0], add.input[1] = add.input[1], add.input[0]
    return "Add 'node_add' takes 'max_pool2d', expected 'conv2d_2'"


def node_too_many(built: Built, model: ModelProto) -> str:
    add = node(model, "node_add")
    insert(model, add, helper.make_node("Relu", [add.input[0]], ["x"], name="x"))
    node(model, "node_add").input[0] = "x"
    return "139 nodes beside the rounding, expected the 138 of the FP32 graph"


def other_operator(built: Built, model: ModelProto) -> str:
    node(model, "node_relu").op_type = "Tanh"
    return "Relu 'node_relu' is not what it was"


def other_attribute(built: Built, model: ModelProto) -> str:
    pads = next(a for a in node(model, "node_conv2d_4").attribute if a.name == "pads")
    pads.ints[:] = [0, 1, 2, 1]  # the same shape comes out
    return "Conv 'node_conv2d_4' is not what it was"


def zero_point(built: Built, model: ModelProto) -> str:
    rounding, _ = rounding_of(model)
    change(model, rounding.input[2], lambda value: value + np.int8(1))
    return (
        f"QuantizeLinear '{rounding.name}' has a zero point that is not 0, which TensorRT does not"
        " take"
    )


def no_zero_point(built: Built, model: ModelProto) -> str:
    nodes = rounding_of(model)
    zero = nodes[0].input[2]
    for found in nodes:
        del found.input[2]
    if not any(zero in found.input for found in model.graph.node):
        model.graph.initializer.remove(next(t for t in model.graph.initializer if t.name == zero))
    return f"QuantizeLinear '{nodes[0].name}' has no constant zero point"


def different_steps(built: Built, model: ModelProto) -> str:
    rounding, back = rounding_of(model)
    scale = next(t for t in model.graph.initializer if t.name == rounding.input[1])
    model.graph.initializer.append(scale)
    model.graph.initializer[-1].name = back.input[1] = "own_scale"
    return f"'{rounding.name}' and '{back.name}' round in different steps"


def rounding_twice(built: Built, model: ModelProto) -> str:
    rounding, _ = rounding_of(model)
    name, (source, *steps) = rounding.name, rounding.input
    insert(model, rounding, *pair(source, steps))
    node(model, name).input[0] = "dq"
    return f"'{name}' rounds in 1 different steps or again, expected one step, once"


def scale_of_zero(built: Built, model: ModelProto) -> str:
    back = next(n for n in model.graph.node if n.op_type == "DequantizeLinear")
    change(model, back.input[1], lambda value: value * np.float32(0))
    return f"'{back.name}' has a scale that is no positive constant"


def integers_in_an_operator(built: Built, model: ModelProto) -> str:
    rounding, back = rounding_of(model)
    user = reader(model, back.output[0])
    user.input[0] = rounding.output[0]
    if not any(back.output[0] in n.input for n in model.graph.node):
        model.graph.node.remove(back)
    return f"against the rules of ONNX: .*node name: {user.name}"


def last_convolution(built: Built, model: ModelProto) -> str:
    conv = node(model, "node_conv2d_38")
    steps = maker(model, node(model, "node_conv2d_27").input[0]).input[1:3]
    insert(model, conv, *pair("relu_18", steps))
    node(model, "node_conv2d_38").input[0] = "dq"
    return "the last convolution 'node_conv2d_38' is not in float"


def after_the_last(built: Built, model: ModelProto) -> str:
    user = node(model, "node_view")
    steps = maker(model, node(model, "node_conv2d_27").input[0]).input[1:3]
    source = user.input[0]
    insert(model, user, *pair(source, steps))
    node(model, "node_view").input[0] = "dq"
    return f"'{source}' is rounded, though it comes after the last convolutions"


def bias_in_another_unit(built: Built, model: ModelProto) -> str:
    """Its values are right, but a processor would not look at its scale."""
    requantize(built, model, f"{CONV}.bias", 2)
    return "the bias of 'node_conv2d_5' is not in the unit of its input × weights"


def weights_that_saturate(built: Built, model: ModelProto) -> str:
    requantize(built, model, f"{CONV}.weight", 126 / 64)
    return (
        "'node_conv2d_5' has weights beyond ±64, whose products saturate on processors without VNNI"
    )


def custom_operator(built: Built, model: ModelProto) -> str:
    rounding, _ = rounding_of(model)
    rounding.domain = "com.microsoft"
    return f"QuantizeLinear '{rounding.name}' has a domain, expected none"


def nothing_quantized(built: Built, model: ModelProto) -> str:
    model.CopyFrom(built.original)
    model.ClearField("metadata_props")
    return "convolutions in fp32 (44), expected all in int8 but heads.2.cls_pred, heads.2.reg_pred"


FOR_TENSORRT = [changed_weight, changed_float, other_input, node_too_many, other_operator]
FOR_TENSORRT += [other_attribute, zero_point, different_steps, rounding_twice, scale_of_zero]
FOR_TENSORRT += [integers_in_an_operator, last_convolution, after_the_last]
FOR_CPU = [no_zero_point, bias_in_another_unit, weights_that_saturate, custom_operator]
FOR_CPU += [nothing_quantized]


@pytest.mark.parametrize(
    ("target", "spoil"),
    [*(("tensorrt", spoil) for spoil in FOR_TENSORRT), *(("cpu", spoil) for spoil in FOR_CPU)],
)
def test_it_refuses(
    request: pytest.FixtureRequest, target: str, spoil: Callable[[Built, ModelProto], str]
) -> None:
    built = request.getfixturevalue(target)
    model = ModelProto.FromString(built.model.SerializeToString())
    words = spoil(built, model)
    with pytest.raises(GateError) as caught:
        built.certify(model)
    if spoil is not integers_in_an_operator:
        words = re.escape(words)
    assert re.fullmatch(f"certificate: {words}.*", str(caught.value)), str(caught.value)


def test_activations_of_the_other_kind(cpu: Built, tensorrt: Built) -> None:
    for ours, other, made, wanted in (
        (cpu, tensorrt, "uint8", "int8 for tensorrt"),
        (tensorrt, cpu, "int8", "uint8 for cpu"),
    ):
        name = rounding_of(ours.model)[0].name
        words = f"QuantizeLinear '{name}' makes {made}, expected {wanted}$"
        with pytest.raises(GateError, match=words):
            other._replace(model=ours.model, original=ours.original).certify(ours.model)


def test_pictures_come_one_by_one(checkpoint: Checkpoint, digits: Path) -> None:
    """A fixed batch is filled with copies; progress counts pictures."""
    spec = make_export_spec(checkpoint, ExportOptions(batch=2))
    module = deploy_module(checkpoint.build(), spec)
    original = build_onnx(module, spec)
    seen: list[tuple[int, int]] = []
    calibration: Calibration = load_calibration(digits, "train", 2, spec)
    model = quantize(original, "cpu", calibration, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2
