"""Layers of a graph: their names, their partners, and the error that each of them makes."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from nmsfree_export.export import ExportOptions, make_export_spec
from nmsfree_export.graph.layers import pair_layers, read_layers
from nmsfree_export.verify.layer_errors import measure_layers, prepare
from nmsfree_export.verify.parity import load_images
from nmsfree_training.weights.checkpoint import Checkpoint

Trace = Callable[..., ModelProto]
IMAGE = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)


def chain(
    *weights: float,
    lower: int | None = None,
    kind: int = TensorProto.FLOAT,
    prefix: str = "",
    again: bool = False,
) -> ModelProto:
    """Images → a 1×1 convolution by each of these weights, with ReLU between → sum with the first.

    Args:
        lower: the number of a convolution that rounds what it reads to whole numbers.
        kind: type of weights and values.
        prefix: of the names of all values.
        again: after the sum, the best row is chosen and a convolution follows.
    """
    nodes = [
        helper.make_node("Cast", ["images"], [f"{prefix}cast"], to=kind),
        helper.make_node("Transpose", [f"{prefix}cast"], [f"{prefix}x"], perm=[0, 3, 1, 2]),
    ]
    tensors, value = [], f"{prefix}x"
    for i, weight in enumerate(weights):
        name = f"network.part.{i}.weight"
        content = np.full((3, 3, 1, 1), weight, helper.tensor_dtype_to_np_dtype(kind))
        tensors.append(numpy_helper.from_array(content, name))
        if i == lower:
            nodes.append(helper.make_node("Floor", [value], [f"{prefix}floor"]))
            value = f"{prefix}floor"
        nodes.append(helper.make_node("Conv", [value, name], [f"{prefix}c{i}"], name=f"conv{i}"))
        nodes.append(helper.make_node("Relu", [f"{prefix}c{i}"], [f"{prefix}r{i}"]))
        value = f"{prefix}r{i}"
    nodes.append(helper.make_node("Add", [value, f"{prefix}r0"], [f"{prefix}sum"], name="add"))
    if again:
        nodes += _choice(prefix, tensors)
    return _model(nodes, tensors, kind, "late" if again else f"{prefix}sum")


def _choice(prefix: str, tensors: list[TensorProto]) -> list[NodeProto]:
    tensors.append(numpy_helper.from_array(np.array([1]), "one"))
    return [
        helper.make_node("TopK", [f"{prefix}sum", "one"], ["best", "index"]),
        helper.make_node("Add", ["best", "best"], ["late"], name="late"),
    ]


def _model(
    nodes: list[NodeProto], tensors: list[TensorProto], kind: int, output: str
) -> ModelProto:
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, [1, 8, 8, 3])
    out = helper.make_tensor_value_info(output, kind, None)
    graph = helper.make_graph(nodes, "chain", [images], [out], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_names_and_feeds() -> None:
    layers = read_layers(chain(0.5, 2.0, again=True))
    found = [(layer.name, layer.op, layer.precision, layer.feeds) for layer in layers]
    assert found == [
        ("part.0", "Conv", "fp32", ("images",)),
        ("part.1", "Conv", "fp32", ("c0",)),
        ("part.1.add", "Add", "", ("c1", "c0")),
    ], "nothing after the choice of rows"


@pytest.fixture(scope="module")
def full(checkpoint: Checkpoint, trace: Trace) -> ModelProto:
    return trace(checkpoint)


def test_layers_of_a_network(full: ModelProto) -> None:
    layers = read_layers(full)
    convs = [layer for layer in layers if layer.op == "Conv"]
    assert len(convs) == 44 and len({layer.name for layer in convs}) == 40, "levels share the last"
    names = [layer.name for layer in layers]
    assert names[:5] == [
        "backbone.conv1",
        "backbone.conv1.maxpool",
        "backbone.layer1.0.conv1",
        "backbone.layer1.0.conv2",
        "backbone.layer1.0.conv2.add",
    ]
    assert names.count("fpn.input_projs.1.add") == 1
    assert not [layer for layer in layers if "detection" in layer.output]


def test_partners_do_not_depend_on_the_names_of_values() -> None:
    a, b = chain(0.5, 2.0), chain(0.5, 2.0, prefix="other_", kind=TensorProto.FLOAT16)
    pairs = [(x.output, y.output) for x, y in pair_layers(read_layers(a), read_layers(b))]
    assert pairs == [("c0", "other_c0"), ("c1", "other_c1"), ("sum", "other_sum")]


@pytest.mark.slow
def test_partners_with_group_norm_and_a_batch_of_any_size(
    grouped: Checkpoint, trace: Trace
) -> None:
    """Levels share the heads; three layers of the filter cannot be told apart."""
    full, half = (trace(grouped, precision=p, batch=None) for p in ("fp32", "fp16"))
    a, b = read_layers(full), read_layers(half)
    pairs = pair_layers(a, b)
    assert len(pairs) + 3 == len(a) == len(b) > 80
    assert all(x.name == y.name and x.op == y.op for x, y in pairs)
    assert {x.op for x, _ in pairs} == {"Conv", "Add", "MaxPool", "InstanceNormalization"}
    spec = make_export_spec(grouped, ExportOptions())
    errors = {e.name: e for e in measure_layers(full, half, prepare(load_images(None)[:1], spec))}
    assert len(errors) == len({x.name for x, _ in pairs}) < len(pairs), "levels are one entry"
    assert errors["heads.2.cls_heads.0.conv"].precision == "fp16"
    assert all(1e-5 < e.added < 2e-3 for e in errors.values() if e.op == "Conv")


def test_layers_that_cannot_be_told_apart_have_no_partners() -> None:
    """Two sums of the same: quantization may change their order."""
    model = chain(0.5, 2.0)
    swapped = chain(0.5, 2.0)
    for m, names in ((model, "pq"), (swapped, "qp")):
        twins = [helper.make_node("Add", ["r1", "r0"], [name]) for name in names]
        m.graph.node.extend([*twins, helper.make_node("Sub", ["p", "q"], ["difference"])])
    pairs = pair_layers(read_layers(model), read_layers(swapped))
    assert [a.name for a, _ in pairs] == ["part.0", "part.1"]
    assert all(e.added == 0 for e in measure_layers(model, swapped, [IMAGE]))


def test_other_layers_have_no_partners() -> None:
    wider = chain(0.5, 2.0, 3.0)
    pairs = pair_layers(read_layers(chain(0.5, 2.0)), read_layers(wider))
    assert [x.name for x, _ in pairs] == ["part.0", "part.1"], "the sum is fed by another"


def test_error_is_blamed_on_the_layer_that_makes_it() -> None:
    """The second layer rounds what it reads; the third inherits that, and adds nothing."""
    exact, rounded = chain(0.01, 3.0, 0.7), chain(0.01, 3.0, 0.7, lower=1)
    errors = {e.name: e for e in measure_layers(exact, rounded, [IMAGE])}
    assert next(iter(errors)) == "part.1", "worst first"
    x = IMAGE.astype(np.float32).sum(axis=-1) * np.float32(0.01)  # every channel is the same
    wrong = float(np.sqrt(np.square(x - np.floor(x)).sum() / np.square(x).sum()))
    assert errors["part.1"].added == pytest.approx(wrong, rel=1e-4)
    assert errors["part.1"].largest == pytest.approx(9 * np.max(x - np.floor(x)), rel=1e-4)
    assert errors["part.2"].total == pytest.approx(wrong, rel=1e-4)
    for name in ("part.0", "part.2", "part.2.add"):
        assert errors[name].added == 0, name
    assert errors["part.0"].total == 0


def test_overflow_is_infinite_and_no_fault_of_those_after_it() -> None:
    """In half 255 · 3 · 100 · … passes 65504 in the second layer; the third reads exact values."""
    weights = (1.0, 100.0, 1e-6)
    errors = {
        e.name: e
        for e in measure_layers(chain(*weights), chain(*weights, kind=TensorProto.FLOAT16), [IMAGE])
    }
    assert math.isinf(errors["part.1"].added) and math.isinf(errors["part.1"].largest)
    assert errors["part.0"].added < 1e-3
    assert errors["part.1"].to_json()["added"] is None, "JSON knows no infinity"
    assert next(iter(errors)) == "part.1"


@pytest.mark.slow
def test_little_memory_gives_the_same_errors(
    checkpoint: Checkpoint, trace: Trace, full: ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = trace(checkpoint, precision="fp16")
    spec = make_export_spec(checkpoint, ExportOptions())
    images = prepare(load_images(None)[:1], spec)
    at_once: list[tuple[int, int]] = []
    whole = measure_layers(full, half, images, lambda *step: at_once.append(step))
    monkeypatch.setattr("nmsfree_export.verify.layer_errors.BUDGET", 200_000)
    steps: list[tuple[int, int]] = []
    parts = measure_layers(full, half, images, lambda *step: steps.append(step))
    assert parts == whole
    assert at_once == [(55, 55)] and len(steps) > 5 and steps[-1] == (55, 55)
    assert all(1e-5 < e.added < 2e-3 for e in whole if e.op == "Conv"), "it is half, and healthy"


@pytest.mark.slow
def test_the_same_network_with_another_batch_has_no_error(
    checkpoint: Checkpoint, trace: Trace, full: ModelProto
) -> None:
    spec = make_export_spec(checkpoint, ExportOptions())
    before = full.SerializeToString()
    errors = measure_layers(full, trace(checkpoint, batch=2), prepare(load_images(None)[:1], spec))
    assert len(errors) == 51 and all(e.added < 1e-5 for e in errors)
    assert full.SerializeToString() == before, "it is left as it was"
