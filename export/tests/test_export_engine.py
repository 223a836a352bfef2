"""Engines are built for real, with no GPU: the published network and the bundled detectors."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from onnx import ModelProto

from nmsfree import EngineError, ModelError, ModelSpec, NmsSpec, RawDetections
from nmsfree.backends.tensorrt.sidecar import read_sidecar, this_platform
from nmsfree_export.candidate import Builder
from nmsfree_export.export import ExportOptions, make_export_spec
from nmsfree_export.export import trace as trace_certified
from nmsfree_export.graph.contract import content_of, describe
from nmsfree_export.options import BuildOptions, NmsOptions
from nmsfree_export.quantize import load_calibration
from nmsfree_export.tensorrt.build import BuildReport, build_engine
from nmsfree_training.weights.checkpoint import Checkpoint, load_checkpoint

trt: Any = pytest.importorskip("tensorrt_rtx")

VERSION: str = trt.__version__
Trace = Callable[..., ModelProto]


def build(model: ModelProto, folder: Path, **options: Any) -> BuildReport:
    source = folder / "model.onnx"
    source.write_bytes(model.SerializeToString())
    return build_engine(source, folder / "model.engine", BuildOptions(**options))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_published_network_builds_without_a_gpu(
    published: Checkpoint, trace: Trace, tmp_path: Path
) -> None:
    """For SM 8.9; the network that was built has the contract's inputs and outputs."""
    report = build(trace(published), tmp_path)
    source, engine = tmp_path / "model.onnx", tmp_path / "model.engine"
    sidecar = read_sidecar(engine)
    assert sidecar == report.sidecar
    assert sidecar.precision == "fp32"
    assert (sidecar.onnx, sidecar.onnx_sha256) == ("model.onnx", digest(source))
    assert sidecar.engine_sha256 == digest(engine)
    assert (sidecar.builder, sidecar.builder_version) == ("tensorrt-rtx", VERSION)
    assert (sidecar.targets, sidecar.platform) == ((89,), this_platform())
    assert (sidecar.tf32, sidecar.batch) == (False, (1, 1, 1))
    assert (sidecar.spec.height, sidecar.spec.width) == (512, 736)
    assert sidecar.spec.class_names[0] == "person"
    assert [str(tensor) for tensor in report.inputs] == ["images uint8 [1, 512, 736, 3]"]
    assert [str(tensor) for tensor in report.outputs] == [
        "num_detections int32 [1, 1]",
        "detection_boxes float32 [1, 100, 4]",
        "detection_scores float32 [1, 100]",
        "detection_classes int32 [1, 100]",
    ]
    assert report.size == engine.stat().st_size == pytest.approx(74e6, rel=0.1)
    assert 0 < sidecar.build_seconds < 60  # about one on an idle machine


def test_a_bundled_detector_builds_in_every_precision(
    weights: Path, trace: Trace, tmp_path: Path
) -> None:
    """The precision is that of the graph, and named after it."""
    checkpoint = load_checkpoint(weights / "fcos_o2o_nano.safetensors")
    spec = make_export_spec(checkpoint, ExportOptions(precision="fp16"))
    builder = Builder(trace_certified(checkpoint, spec), spec, None, tmp_path)
    mixed, half = builder.build(["heads.0.cls_heads.0.conv"]), builder.build()
    described = [ModelProto.FromString(content_of(c.model, c.spec)) for c in (mixed, half)]
    sizes = []
    for precision, graph in (
        ("fp32", trace(checkpoint)),
        ("mixed fp16", described[0]),
        ("fp16", described[1]),
    ):
        report = build(graph, tmp_path)
        assert report.sidecar.precision == precision
        assert report.sidecar.spec.name == "fcos_o2o_nano"
        assert str(report.inputs[0]) == "images uint8 [1, 256, 256, 3]"
        assert tuple(tensor.name for tensor in report.outputs) == RawDetections._fields
        sizes.append(report.size)
    assert sizes[0] > sizes[1] > sizes[2]


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
    made = Builder(trace_certified(checkpoint, spec), spec, calibration, tmp_path).build()
    report = build(ModelProto.FromString(content_of(made.model, made.spec)), tmp_path)
    height, width = checkpoint.input_size
    assert report.sidecar.targets == (89,) and not report.sidecar.tf32
    assert [str(t) for t in report.inputs] == [f"images uint8 [1, {height}, {width}, 3]"]
    assert tuple(t.name for t in report.outputs) == RawDetections._fields
    assert {t.dtype for t in report.outputs} == {"int32", "float32"}
    assert report.sidecar.precision == report.sidecar.spec.precision == precision
    assert report.sidecar.spec.int8_target == int8.get("target")
    if (name, precision) == ("published", "fp16"):
        assert report.size == pytest.approx(38e6, rel=0.1)  # half of FP32's 74 MB


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_nms_baseline_of_plain_operators_builds_whole(
    weights: Path, tmp_path: Path, precision: str
) -> None:
    checkpoint = load_checkpoint(weights / "fcos_rt_nano.safetensors")
    options = ExportOptions(batch=None, precision=precision, nms=NmsOptions(nms="plain"))
    spec = make_export_spec(checkpoint, options)
    made = Builder(trace_certified(checkpoint, spec), spec, None, tmp_path).build()
    model = ModelProto.FromString(content_of(made.model, made.spec))
    report = build(model, tmp_path, batch=(1, 2, 2))
    assert report.sidecar.targets == (89,) and report.sidecar.spec.precision == precision
    nms = report.sidecar.spec.nms
    assert nms is not None and (nms.steps, nms.candidates) == (20, 1000)
    assert [str(tensor) for tensor in report.outputs] == [
        "num_detections int32 [N, 1]",
        "detection_boxes float32 [N, 100, 4]",
        "detection_scores float32 [N, 100]",
        "detection_classes int32 [N, 100]",
    ]


@pytest.fixture
def operator(weights: Path, trace: Trace) -> ModelProto:
    """The NMS baseline with the operator."""
    return trace(load_checkpoint(weights / "fcos_rt_nano.safetensors"), batch=None)


def test_nms_by_the_operator_is_refused(operator: ModelProto, tmp_path: Path) -> None:
    with pytest.raises(EngineError) as error:
        build(operator, tmp_path, batch=(1, 1, 1))
    source = tmp_path / "model.onnx"
    assert str(error.value) == (
        f"{source}: NMS is the operator NonMaxSuppression, which tensorrt-rtx does not build: make"
        " it of plain operators, with `nmsfree export CHECKPOINT --head o2m --nms plain -o"
        f" {source}`, then `nmsfree build {source}`"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_nms_that_no_description_tells_does_not_build(operator: ModelProto, tmp_path: Path) -> None:
    """The builder's own words in one line."""
    spec = ModelSpec.from_json(operator.metadata_props[0].value)
    describe(operator, replace(spec, nms=NmsSpec(steps=2)))
    with pytest.raises(ModelError) as error:
        build(operator, tmp_path, batch=(1, 1, 1))
    message = str(error.value)
    assert message.startswith(f"{tmp_path}/model.onnx: tensorrt-rtx {VERSION} cannot build it (")
    assert message.endswith("): export the model again, or run the ONNX file itself")
    assert "NonMaxSuppression" in message
    assert "has no runners that implement it" in message
    assert "/_src" not in message
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
