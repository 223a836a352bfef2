"""Engines are built for real, with no GPU: the published network and the bundled detectors."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

from nmsfree import ModelError, RawDetections
from nmsfree.backends.tensorrt.sidecar import read_sidecar, this_platform
from nmsfree_export.export import ExportOptions, make_export_spec
from nmsfree_export.graph.nms import CANDIDATES
from nmsfree_export.graph.write import build_onnx, deploy_module
from nmsfree_export.tensorrt.build import BuildOptions, build_engine
from nmsfree_export.tensorrt.source import cut_nms
from nmsfree_training.config import fcos_e2e_r18_3x
from nmsfree_training.model.detector import Fcos
from nmsfree_training.weights.checkpoint import Checkpoint, load_checkpoint
from nmsfree_training.weights.published import standin_state_dict

trt: Any = pytest.importorskip("tensorrt_rtx")

VERSION: str = trt.__version__
WEIGHTS = Path(__file__).parents[2] / "weights"


def trace(checkpoint: Checkpoint, options: ExportOptions) -> ModelProto:
    """Export without the gates, which other tests try."""
    spec = make_export_spec(checkpoint, options)
    return build_onnx(deploy_module(checkpoint.build(), spec), spec)


@pytest.fixture(scope="session")
def r18(tmp_path_factory: pytest.TempPathFactory) -> ModelProto:
    """The published network with stand-in weights, 512 × 736."""
    path = tmp_path_factory.mktemp("published") / "fcos_e2e_r18_3x_coco.pth"
    torch.save({"model": standin_state_dict(Fcos(fcos_e2e_r18_3x().model), seed=11)}, path)
    return trace(load_checkpoint(path), ExportOptions())


@pytest.fixture(scope="session")
def nano() -> Callable[[str], ModelProto]:
    """Return a function giving a copy of a bundled detector's graph, each traced once.

    The NMS baseline takes batches of any size.
    """
    traced: dict[str, ModelProto] = {}

    def make(name: str) -> ModelProto:
        if name not in traced:
            batch = None if name == "fcos_rt_nano" else 1
            checkpoint = load_checkpoint(WEIGHTS / f"{name}.safetensors")
            traced[name] = trace(checkpoint, ExportOptions(batch=batch))
        copy = ModelProto()
        copy.CopyFrom(traced[name])
        return copy

    return make


def save(model: ModelProto, folder: Path, name: str = "model") -> Path:
    path = folder / f"{name}.onnx"
    path.write_bytes(model.SerializeToString())
    return path


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
    source = save(r18 if precision == "fp32" else halve(r18), tmp_path)
    engine = tmp_path / "model.engine"
    report = build_engine(source, engine)
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
    nano: Callable[[str], ModelProto], tmp_path: Path, name: str
) -> None:
    """The precision is that of the graph, and named after it."""
    graphs = {
        "fp32": nano(name),
        "mixed fp16": halve(nano(name), keep=3),
        "fp16": halve(nano(name)),
    }
    sizes = []
    for precision, graph in graphs.items():
        report = build_engine(save(graph, tmp_path), tmp_path / f"{precision}.engine")
        assert report.sidecar.precision == precision
        assert report.sidecar.spec.name == name
        assert str(report.inputs[0]) == "images uint8 [1, 256, 256, 3]"
        assert tuple(tensor.name for tensor in report.outputs) == RawDetections._fields
        sizes.append(report.size)
    full, mixed, half = sizes
    assert full > mixed
    # What the builder adds for the filter's conversions outweighs three halved weights.
    assert half < 1.01 * mixed


def test_a_quantised_graph_is_called_int8(
    nano: Callable[[str], ModelProto], tmp_path: Path
) -> None:
    """One convolution with a symmetric scale before it is enough."""
    model = nano("fcos_e2e_nano")
    graph = model.graph
    first = next(node for node in graph.node if node.op_type == "Conv")
    at = next(index for index, node in enumerate(graph.node) if node is first)
    value = first.input[0]
    scale = numpy_helper.from_array(np.float32(0.02), "scale")
    zero = numpy_helper.from_array(np.int8(0), "zero")
    graph.initializer.extend([scale, zero])
    quantise = helper.make_node("QuantizeLinear", [value, "scale", "zero"], ["q"])
    dequantise = helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"])
    first.input[0] = "dq"
    graph.node.insert(at, dequantise)
    graph.node.insert(at, quantise)
    report = build_engine(save(model, tmp_path), tmp_path / "model.engine")
    assert report.sidecar.precision == "int8"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_nms_baseline_ends_before_its_nms(
    nano: Callable[[str], ModelProto], tmp_path: Path, precision: str
) -> None:
    graph = nano("fcos_rt_nano")
    source = save(graph if precision == "fp32" else halve(graph), tmp_path)
    options = BuildOptions(batch=(1, 2, 2))
    report = build_engine(source, tmp_path / "model.engine", options)
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
    nano: Callable[[str], ModelProto], tmp_path: Path
) -> None:
    """A description that hides the NMS: the builder's own words in one line."""
    model = nano("fcos_rt_nano")
    spec = json.loads(model.metadata_props[0].value) | {"head": "o2o", "nms": None}
    model.metadata_props[0].value = json.dumps(spec)
    source = save(model, tmp_path)
    with pytest.raises(ModelError) as error:
        build_engine(source, tmp_path / "model.engine", BuildOptions(batch=(1, 1, 1)))
    message = str(error.value)
    assert message.startswith(f"{source}: tensorrt-rtx {VERSION} cannot build it (")
    assert message.endswith("): export the model again, or run the ONNX file itself")
    assert "nms/nms_selected" in message
    assert "has no runners that implement it" in message
    assert "/_src" not in message
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_the_cut_graph_gives_the_candidates_of_the_whole(nano: Callable[[str], ModelProto]) -> None:
    whole, part = nano("fcos_rt_nano"), nano("fcos_rt_nano")
    for name, kind in zip(CANDIDATES, (1, 1, 7), strict=True):
        whole.graph.output.append(helper.make_tensor_value_info(name, kind, None))
    cut_nms(part)
    onnx.checker.check_model(part)
    assert not any(tensor.name.startswith("nms_") for tensor in part.graph.initializer)
    image = np.random.default_rng(3).integers(0, 256, (2, 256, 256, 3), dtype=np.uint8)
    results = []
    for model in (whole, part):
        session = ort.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        results.append(session.run(CANDIDATES, {"images": image}))
    for expected, found in zip(*results, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert [found.dtype for found in results[1]] == [np.float32, np.float32, np.int32]
