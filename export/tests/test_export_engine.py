"""Engines are built for real, with no GPU: the published network and the bundled detectors."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from nmsfree import ModelError, RawDetections
from nmsfree.backends.onnxruntime.session import make_session
from nmsfree.backends.tensorrt.sidecar import read_sidecar, this_platform
from nmsfree_export.candidate import Builder
from nmsfree_export.export import ExportOptions, make_export_spec
from nmsfree_export.graph.contract import CANDIDATES
from nmsfree_export.graph.write import content_of
from nmsfree_export.options import BuildOptions
from nmsfree_export.quantize import load_calibration
from nmsfree_export.tensorrt.build import BuildReport, build_engine
from nmsfree_export.tensorrt.network import cut_nms
from nmsfree_training.weights.checkpoint import Checkpoint, load_checkpoint

trt: Any = pytest.importorskip("tensorrt_rtx")

VERSION: str = trt.__version__
Trace = Callable[..., ModelProto]


@pytest.fixture(scope="module")
def r18(published: Checkpoint, trace: Trace) -> ModelProto:
    return trace(published)


@pytest.fixture(scope="module")
def graphs(weights: Path, trace: Trace) -> dict[str, ModelProto]:
    """The bundled detectors; the NMS baseline takes batches of any size."""
    found = {}
    for name in ("fcos_o2o_nano", "fcos_e2e_nano", "fcos_rt_nano"):
        checkpoint = load_checkpoint(weights / f"{name}.safetensors")
        found[name] = trace(checkpoint, batch=None if name == "fcos_rt_nano" else 1)
    return found


def build(model: ModelProto, folder: Path, **options: Any) -> BuildReport:
    source = folder / "model.onnx"
    source.write_bytes(model.SerializeToString())
    return build_engine(source, folder / "model.engine", BuildOptions(**options))


def halve(model: ModelProto, keep: int = 0) -> ModelProto:
    """Compute the convolutions in half, but for the last `keep` of them."""
    copy = ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    halved = convolutions[: len(convolutions) - keep]
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes, added = [], {}
    for node in graph.node:
        if not any(node is conv for conv in halved):
            nodes.append(node)
            continue
        own = f"{node.name}/half"
        for index, name in enumerate(node.input[1:], 1):
            added[f"{name}/half"] = weights[name].astype(np.float16)
            node.input[index] = f"{name}/half"
        out = node.output[0]
        nodes.append(helper.make_node("Cast", [node.input[0]], [own], to=TensorProto.FLOAT16))
        node.input[0], node.output[0] = own, f"{own}/out"
        nodes += [node, helper.make_node("Cast", [f"{own}/out"], [out], to=TensorProto.FLOAT)]
    nodes = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(numpy_helper.from_array(v, name) for name, v in added.items())
    for value in [v for v in graph.value_info if v.name.endswith("/half")]:
        graph.value_info.remove(value)
    used = {name for node in graph.node for name in node.input}
    for tensor in [t for t in graph.initializer if t.name not in used]:
        graph.initializer.remove(tensor)
    onnx.checker.check_model(copy)
    return copy


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_published_network_builds_without_a_gpu(
    r18: ModelProto, tmp_path: Path, precision: str
) -> None:
    """For SM 8.9; the network that was built has the contract's inputs and outputs."""
    report = build(r18 if precision == "fp32" else halve(r18), tmp_path)
    source, engine = tmp_path / "model.onnx", tmp_path / "model.engine"
    sidecar = read_sidecar(engine)
    assert sidecar == report.sidecar
    assert sidecar.precision == precision
    assert (sidecar.onnx, sidecar.onnx_sha256) == ("model.onnx", digest(source))
    assert sidecar.engine_sha256 == digest(engine)
    assert (sidecar.builder, sidecar.builder_version) == ("tensorrt-rtx", VERSION)
    assert (sidecar.targets, sidecar.platform) == ((89,), this_platform())
    assert (sidecar.tf32, sidecar.batch, sidecar.nms_on_host) == (False, (1, 1, 1), False)
    assert (sidecar.spec.height, sidecar.spec.width) == (512, 736)
    assert sidecar.spec.class_names[0] == "person"
    assert [str(tensor) for tensor in report.inputs] == ["images uint8 [1, 512, 736, 3]"]
    assert [str(tensor) for tensor in report.outputs] == [
        "num_detections int32 [1, 1]",
        "detection_boxes float32 [1, 100, 4]",
        "detection_scores float32 [1, 100]",
        "detection_classes int32 [1, 100]",
    ]
    size = 74e6 if precision == "fp32" else 38e6
    assert report.size == engine.stat().st_size == pytest.approx(size, rel=0.1)
    assert 0 < sidecar.build_seconds < 60  # about one on an idle machine


@pytest.mark.parametrize("name", ["fcos_o2o_nano", "fcos_e2e_nano"])
def test_the_bundled_detectors_build_in_every_precision(
    graphs: dict[str, ModelProto], tmp_path: Path, name: str
) -> None:
    """The precision is that of the graph, and named after it."""
    full = graphs[name]
    sizes = []
    for precision, graph in (("fp32", full), ("mixed fp16", halve(full, 3)), ("fp16", halve(full))):
        report = build(graph, tmp_path)
        assert report.sidecar.precision == precision
        assert report.sidecar.spec.name == name
        assert str(report.inputs[0]) == "images uint8 [1, 256, 256, 3]"
        assert tuple(tensor.name for tensor in report.outputs) == RawDetections._fields
        sizes.append(report.size)
    # What the builder adds for the filter's conversions outweighs three halved weights.
    assert sizes[0] > sizes[1] and sizes[2] < 1.01 * sizes[1]


def test_a_quantized_graph_is_called_int8(
    graphs: dict[str, ModelProto],
    copied: Callable[[ModelProto], ModelProto],
    first: Callable[..., NodeProto],
    tmp_path: Path,
) -> None:
    """One convolution with a symmetric scale before it is enough."""
    model = copied(graphs["fcos_e2e_nano"])
    graph, conv = model.graph, first(graphs["fcos_e2e_nano"], op_type="Conv")
    at = list(graph.node).index(conv)
    steps = {"scale": np.float32(0.02), "zero": np.int8(0)}
    graph.initializer.extend(numpy_helper.from_array(v, name) for name, v in steps.items())
    quantize = helper.make_node("QuantizeLinear", [conv.input[0], *steps], ["q"])
    graph.node[at].input[0] = "dq"
    graph.node.insert(at, helper.make_node("DequantizeLinear", ["q", *steps], ["dq"]))
    graph.node.insert(at, quantize)
    assert build(model, tmp_path).sidecar.precision == "int8"


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("name", ["nano", "published"])
def test_files_of_the_exporter(
    request: pytest.FixtureRequest, digits: Path, tmp_path: Path, name: str, precision: str
) -> None:
    """Batch norm and a duplicate filter; and the published network with random weights."""
    checkpoint: Checkpoint = request.getfixturevalue(name)
    int8: Any = {"target": "tensorrt", "calibrate": digits} if precision == "int8" else {}
    spec = make_export_spec(checkpoint, ExportOptions(precision=precision, **int8))
    calibration = load_calibration(digits, "train", 2, spec) if int8 else None
    made = Builder(checkpoint.build(), spec, calibration, tmp_path).build()
    report = build(ModelProto.FromString(content_of(made.model, made.spec)), tmp_path)
    height, width = checkpoint.input_size
    assert report.sidecar.targets == (89,) and not report.sidecar.tf32
    assert [str(t) for t in report.inputs] == [f"images uint8 [1, {height}, {width}, 3]"]
    assert tuple(t.name for t in report.outputs) == RawDetections._fields
    assert {t.dtype for t in report.outputs} == {"int32", "float32"}
    assert report.sidecar.precision == report.sidecar.spec.precision == precision
    assert report.sidecar.spec.made_for == int8.get("target")
    if (name, precision) == ("published", "fp16"):
        assert report.size == pytest.approx(38e6, rel=0.1)  # half of FP32's 74 MB


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_nms_baseline_ends_before_its_nms(
    graphs: dict[str, ModelProto], tmp_path: Path, precision: str
) -> None:
    graph = graphs["fcos_rt_nano"]
    report = build(graph if precision == "fp32" else halve(graph), tmp_path, batch=(1, 2, 2))
    assert report.sidecar.precision == precision
    assert report.sidecar.nms_on_host
    assert report.sidecar.spec.nms is not None
    cells = 1000 + 16 * 16 + 8 * 8  # of 32 × 32 the best thousand
    assert [str(tensor) for tensor in report.outputs] == [
        f"candidate_boxes float32 [N, {cells}, 4]",
        f"candidate_scores float32 [N, {cells}]",
        f"candidate_classes int32 [N, {cells}]",
    ]


def test_nms_that_is_not_cut_off_does_not_build(
    graphs: dict[str, ModelProto], copied: Callable[[ModelProto], ModelProto], tmp_path: Path
) -> None:
    """A description that hides the NMS: the builder's own words in one line."""
    model = copied(graphs["fcos_rt_nano"])
    spec = json.loads(model.metadata_props[0].value) | {"head": "o2o", "nms": None}
    model.metadata_props[0].value = json.dumps(spec)
    with pytest.raises(ModelError) as error:
        build(model, tmp_path, batch=(1, 1, 1))
    message = str(error.value)
    assert message.startswith(f"{tmp_path}/model.onnx: tensorrt-rtx {VERSION} cannot build it (")
    assert message.endswith("): export the model again, or run the ONNX file itself")
    assert "nms/nms_selected" in message
    assert "has no runners that implement it" in message
    assert "/_src" not in message
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_the_cut_graph_gives_the_candidates_of_the_whole(
    graphs: dict[str, ModelProto], copied: Callable[[ModelProto], ModelProto]
) -> None:
    whole, part = (copied(graphs["fcos_rt_nano"]) for _ in range(2))
    for name, kind in zip(CANDIDATES, (1, 1, 7), strict=True):
        whole.graph.output.append(helper.make_tensor_value_info(name, kind, None))
    cut_nms(part)
    onnx.checker.check_model(part)
    assert not any(tensor.name.startswith("nms_") for tensor in part.graph.initializer)
    image = np.random.default_rng(3).integers(0, 256, (2, 256, 256, 3), dtype=np.uint8)
    expected, found = (
        make_session(model.SerializeToString()).run(CANDIDATES, {"images": image})
        for model in (whole, part)
    )
    for want, value in zip(expected, found, strict=True):
        np.testing.assert_array_equal(value, want)
    assert [value.dtype for value in found] == [np.float32, np.float32, np.int32]
