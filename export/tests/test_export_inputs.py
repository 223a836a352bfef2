"""Files that take whole pictures or planar floats: the same pixels, boxes and rows as the usual."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import export_foreign as foreign
import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

from nmsfree import Detector, GateError, InputError, ModelSpec
from nmsfree.backends import OnnxRuntimeBackend, OpenVinoBackend
from nmsfree.backends.tensorrt.vendor import is_installed, load_vendor
from nmsfree.preprocess import resize_into
from nmsfree.spec import Resize
from nmsfree_export.adopt.adopt import adopt_onnx
from nmsfree_export.adopt.foreign import RESIZES, AdoptOptions
from nmsfree_export.convert import convert_onnx
from nmsfree_export.export import ExportOptions, export_onnx
from nmsfree_export.graph.contract import content_of, outputs_of, set_outputs
from nmsfree_export.graph.inputs import with_input
from nmsfree_export.options import BuildOptions, InputOptions, PrecisionOptions
from nmsfree_export.tensorrt.build import build_engine
from nmsfree_export.verify.certificate import check_graph
from nmsfree_export.verify.inputs import SIZES, check_resizing, many_sizes
from nmsfree_training.weights.checkpoint import Checkpoint

ANY = PrecisionOptions(host=InputOptions("any"))
Files = dict[str, Path]


@pytest.fixture(scope="module")
def files(nano: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Usual files: our own, adopted ones with a letterbox in the centre and an antialiased resize.

    And of each one that takes any picture.
    """
    folder = tmp_path_factory.mktemp("inputs")
    found = {"nano": export_onnx(nano, folder / "nano.onnx").path}
    for name, make in (("yolo26", foreign.yolo26), ("dfine", foreign.dfine)):
        theirs = foreign.save(make(), folder / f"{name}.theirs.onnx")
        options = AdoptOptions(resize="stretch-antialiased") if name == "dfine" else AdoptOptions()
        found[name] = adopt_onnx(theirs, folder / f"{name}.onnx", options).path
    for name, path in list(found.items()):
        report = convert_onnx(path, folder / f"{name}.any.onnx", ANY)
        assert report.input is not None and report.input.resizing is not None
        assert report.parity.passed and report.parity.images == len(SIZES) == 20
        assert report.parity.rows >= 60 and report.input.resizing.share < 1e-4
        found[f"{name}.any"] = report.path
    return found


def tiny(spec: ModelSpec) -> ModelProto:
    """A file whose only box is the whole input."""
    pixels = helper.make_node("ReduceMax", ["float", "axes"], ["top"], keepdims=1)
    cast = helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT)
    box = helper.make_tensor("whole", 1, [1, 1, 4], [0.0, 0.0, spec.width, spec.height])
    zero = helper.make_tensor("zero", 1, [1], [0.0])
    tensors = [box, zero, helper.make_tensor("axes", 7, [3], [1, 2, 3])]
    nodes = [cast, pixels, helper.make_node("Squeeze", ["top", "axes"], ["score"])]
    nodes += [
        helper.make_node("Mul", ["score", "zero"], ["nothing"]),
        helper.make_node("Add", ["whole", "nothing"], ["detection_boxes"]),
        helper.make_node("Reshape", ["score", "one"], ["detection_scores"]),
        helper.make_node("Cast", ["detection_scores"], ["detection_classes"], to=6),
        helper.make_node("Cast", ["detection_scores"], ["num_detections"], to=6),
    ]
    tensors.append(helper.make_tensor("one", 7, [2], [1, 1]))
    size = 1, spec.height, spec.width, 3
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, size)
    graph = helper.make_graph(nodes, "tiny", [images], [], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    set_outputs(model, outputs_of(spec, 1))
    return model


def described(resize: Resize, **fields: Any) -> ModelSpec:
    own = {"name": "tiny", "head": "o2o", "height": 40, "width": 64, "batch": 1, "top_k": 1}
    names: dict[str, Any] = {"class_names": ("a",), "category_ids": (1,)}
    return ModelSpec(**(own | names | {"resize": resize, "input": "any"} | fields))


KINDS = {name: kind for name, kind in RESIZES.items() if kind.interpolation == "linear"}
KINDS |= {"ours": Resize(), "not enlarged": Resize(place="center", enlarge=False)}


@pytest.mark.parametrize("engine", [OnnxRuntimeBackend, OpenVinoBackend])
@pytest.mark.parametrize("kind", KINDS)
def test_pixels_and_places(kind: str, engine: Any, tmp_path: Path) -> None:
    """Every kind of resize, on the sizes of the gate and on those that are cut at a half."""
    if engine is OpenVinoBackend:
        pytest.importorskip("openvino")
    spec = described(KINDS[kind])
    model = with_input(tiny(spec), spec)
    names = {name for node in model.graph.node for name in node.input}
    assert names >= {tensor.name for tensor in model.graph.initializer}, "nothing idle"
    found = check_resizing(model, spec)
    # OpenCV's product in a column has 26 bits; Pillow's sums are exact.
    assert found.pictures == 20 and found.largest <= 1 - spec.resize.antialias
    assert found.share < 1e-4
    path = tmp_path / "tiny.onnx"
    path.write_bytes(content_of(model, spec))
    backend = engine(path)
    sizes = [*SIZES[:-1], *((80, w) for w in range(1, 41, 3)), (160, 129), (129, 256), (320, 12)]
    for height, width in sizes:
        geometry = resize_into(
            np.zeros((height, width, 3), np.uint8), np.empty((40, 64, 3), np.uint8), spec.resize
        )
        raw = backend.run(np.zeros((1, height, width, 3), np.uint8))
        wanted = geometry.to_source(np.array([[0, 0, 64, 40]], np.float32))
        np.testing.assert_allclose(raw.detection_boxes[0], wanted, rtol=1e-5, atol=1e-3)
    backend.close()


@pytest.mark.parametrize("source", [(256, 256), (720, 405)])
def test_halves_and_tall_pictures_are_pillows(source: tuple[int, int]) -> None:
    """From 256 to 320 pixels the weights are tenths, and many a sum is a half."""
    spec = described(KINDS["stretch-antialiased"], height=320, width=320, source=source)
    assert check_resizing(with_input(tiny(spec), spec), spec).largest == 0


@pytest.mark.parametrize("kind", ["ours", "letterbox", "stretch-antialiased"])
def test_one_size_has_constants_only(kind: str) -> None:
    spec = described(KINDS[kind], source=(123, 77))
    model = with_input(tiny(spec), spec)
    assert check_resizing(model, spec).largest <= 1
    made = {node.op_type for node in model.graph.node if node.name.startswith("input/")}
    assert not made & {"Shape", "Range", "Div", "GreaterOrEqual"}


@pytest.mark.parametrize("name", ["nano", "yolo26", "dfine"])
def test_the_detector_prepares_nothing(name: str, files: Files) -> None:
    with Detector(files[name]) as usual, Detector(files[f"{name}.any"]) as whole:
        assert whole.spec.input == "any" and whole.spec.batch == 1
        assert whole.self_check().ok
        spec = whole.spec
        assert (spec.height, spec.width) == (usual.spec.height, usual.spec.width)
        pictures = [picture for _, picture in many_sizes([spec])[9:13]]
        inputs, _ = whole.preprocess(pictures[:1])
        assert np.shares_memory(inputs, pictures[0])
        pairs = zip(usual.batch(pictures), whole.batch(pictures), strict=True)
        found = 0
        for ours, theirs in pairs:
            assert len(ours) == len(theirs)
            found += len(ours)
            np.testing.assert_allclose(ours.confidence, theirs.confidence, atol=5e-3)
        assert found > 5
    model = onnx.load(files[f"{name}.any"])
    del model.metadata_props[:]
    lines = dict(check_graph(model, spec))
    assert "images uint8 [1, h, w, 3]" in lines["inputs and outputs of the contract"]


def test_verify_takes_both(files: Files, run: Callable[..., Any], tmp_path: Path) -> None:
    done = run("verify", files["nano"], files["nano.any"], "--json", "-")
    assert done.exit_code == 0, done.exception
    assert json.loads(done.stdout)["parity"]["images"] == 20
    model = onnx.load(files["nano.any"])
    scale = next(n for n in model.graph.node if n.name.startswith("output/Div"))
    scale.op_type = "Mul"
    broken = tmp_path / "broken.onnx"
    onnx.save(model, broken)
    done = run("verify", files["nano"], broken)
    assert done.exit_code == 1 or isinstance(done.exception, GateError)


def test_export_with_another_input(nano: Checkpoint, tmp_path: Path) -> None:
    options = ExportOptions(host=InputOptions("any", (180, 320)), precision="fp16")
    report = export_onnx(nano, tmp_path / "any.onnx", options)
    content = report.to_json()["input"]
    assert isinstance(content, dict) and content["source"] == (180, 320)
    with Detector(report.path) as detector:
        assert detector.self_check().ok
        detector(np.zeros((180, 320, 3), np.uint8))
        with pytest.raises(InputError, match=r"has 100 × 320 pixels, but .* takes 180 × 320 only"):
            detector(np.zeros((100, 320, 3), np.uint8))


def test_planar_floats(files: Files, tmp_path: Path, run: Callable[..., Any]) -> None:
    out = tmp_path / "floats.onnx"
    done = run("convert", files["nano"], "-o", out, "--input", "nchw-float", "--json", "-")
    assert done.exit_code == 0, done.exception
    report = json.loads(done.stdout)
    assert report["input"]["takes"] == "nchw-float" and report["parity"]["passed"]
    assert report["seeded_parity"] is None
    shape = onnx.load(out).graph.input[0].type.tensor_type
    assert shape.elem_type == TensorProto.FLOAT and shape.shape.dim[1].dim_value == 3
    picture = many_sizes([])[9][1]
    with Detector(out) as floats, Detector(files["nano"]) as usual:
        assert floats.self_check().ok
        np.testing.assert_allclose(floats(picture).xyxy, usual(picture).xyxy, atol=0.01)
    if is_installed("tensorrt-rtx"):
        with pytest.raises(InputError, match=r"takes planar floats, engines here take pixels"):
            build_engine(out, tmp_path / "no.engine", BuildOptions(sms=(89,)))


def test_refusals(files: Files, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    with pytest.raises(InputError, match=r"input is any already"):
        convert_onnx(files["nano.any"], out, ANY)
    with pytest.raises(InputError, match=r"its input is any: give the file that it was made from"):
        convert_onnx(files["nano.any"], out, PrecisionOptions(precision="fp16"))
    with pytest.raises(InputError, match=r"--source is of --input any"):
        InputOptions(source=(10, 10))
    with pytest.raises(InputError, match=r"takes one picture at a time: leave --batch out"):
        ExportOptions(host=InputOptions("any"), batch=None)
    spec = described(Resize(interpolation="area"))
    with pytest.raises(InputError, match=r"are resized by area: leave out --input any"):
        with_input(tiny(spec), spec)
    shifted = described(Resize(pad=(0, 0, 0)))
    with pytest.raises(GateError, match=r"expected 1 grey level"):
        check_resizing(with_input(tiny(shifted), shifted), replace(shifted, resize=Resize()))
    assert not out.exists()


needs_builder = pytest.mark.skipif(
    not is_installed("tensorrt-rtx"), reason="tensorrt-rtx is not installed"
)


@needs_builder
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ["nano", "dfine"])
def test_engines_of_one_size_build(name: str, precision: Any, files: Files, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"make the file again with --source H W"):
        build_engine(files[f"{name}.any"], tmp_path / "no.engine", BuildOptions(sms=(89,)))
    options = PrecisionOptions(precision=precision, host=InputOptions("any", (1080, 1920)))
    made = convert_onnx(files[name], tmp_path / "any.onnx", options).path
    report = build_engine(made, tmp_path / "model.engine", BuildOptions(sms=(89,)))
    assert report.inputs[0].shape == (1, 1080, 1920, 3) and report.size > 0


@needs_builder
@pytest.mark.parametrize("name", ["nano", "dfine"])
def test_engines_of_any_size_build(name: str, files: Files) -> None:
    """By the vendor's own builder, as another program would."""
    vendor = load_vendor("tensorrt-rtx")
    builder = vendor.create_builder()
    network = vendor.create_network(builder)
    parser = vendor.module.OnnxParser(network, vendor.logger)
    assert parser.parse(files[f"{name}.any"].read_bytes()), parser.get_error(0).desc()
    config = builder.create_builder_config()
    vendor.set_targets(config, (89,))
    profile = builder.create_optimization_profile()
    profile.set_shape("images", (1, 1, 1, 3), (1, 1080, 1920, 3), (1, 2160, 3840, 3))
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None
