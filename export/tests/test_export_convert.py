"""Any float32 file of the contract in FP16 and INT8: what is rounded, proven and refused."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import export_foreign as foreign
import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, numpy_helper

from nmsfree import Detector, GateError, InputError, ModelError
from nmsfree.backends.tensorrt.vendor import is_installed
from nmsfree_export.adopt.adopt import adopt_onnx
from nmsfree_export.candidate import FragileError
from nmsfree_export.convert import Report, convert_onnx
from nmsfree_export.export import ExportOptions, export_onnx
from nmsfree_export.graph.layers import count_precisions, read_layers
from nmsfree_export.options import BuildOptions, PrecisionOptions, Tolerance
from nmsfree_export.verify.parity import bundled_pictures
from nmsfree_training.weights.checkpoint import Checkpoint

HALF = PrecisionOptions(precision="fp16")
FAMILIES = {"A": foreign.yolo26, "K": foreign.dfine}
IN_FLOAT = ("Softmax", "LayerNormalization", "GridSample", "TopK", "Log", "Div")


@pytest.fixture(scope="module")
def adopted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of both families, adopted."""
    folder = tmp_path_factory.mktemp("adopted")
    found = {}
    for letter, make in FAMILIES.items():
        theirs = foreign.save(make(), folder / f"{letter}.theirs.onnx")
        found[letter] = adopt_onnx(theirs, folder / f"{letter}.onnx").path
    return found


@pytest.fixture(scope="module")
def halves(adopted: dict[str, Path]) -> dict[str, Report]:
    return {
        letter: convert_onnx(path, path.with_suffix(".half.onnx"), HALF)
        for letter, path in adopted.items()
    }


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures, without labels."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, (_, picture) in enumerate(bundled_pictures()):
        cv2.imwrite(str(folder / f"{number}.png"), picture)
    return folder


@pytest.mark.parametrize("letter", FAMILIES)
def test_what_is_in_half(letter: str, adopted: dict[str, Path], halves: dict[str, Report]) -> None:
    report = halves[letter]
    assert report.parity.passed and report.parity.unmatched <= 0.02 * report.parity.rows
    assert report.parity.confident > 100 and report.spec.precision == "fp16"
    model = onnx.shape_inference.infer_shapes(onnx.load(report.path))
    types = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
    types |= {t.name: t.data_type for t in model.graph.initializer}
    read: dict[str, set[int]] = {}
    for node in model.graph.node:
        read.setdefault(node.op_type, set()).add(types.get(node.input[0], 0))
    assert read["Conv"] == {TensorProto.FLOAT16}
    floats = [op for op in IN_FLOAT if op in read]
    assert len(floats) == (4 if letter == "A" else 6)
    assert not any(TensorProto.FLOAT16 in read[op] for op in floats)
    boxes = next(node for node in model.graph.node if "detection_boxes" in node.output)
    assert types[boxes.input[0]] == TensorProto.FLOAT
    means = [layer for layer in read_layers(onnx.load(report.path)) if layer.is_mean]
    assert [layer.precision for layer in means] == (["fp32"] if letter == "K" else [])
    lines = dict(report.certificate.lines)
    assert lines["no NMS, loop or branch"].startswith("only ")
    assert "the FP32 graph with rounding added, weights rounded to halves" in lines
    assert report.size < adopted[letter].stat().st_size


def test_what_a_half_cannot_hold_stays_in_float() -> None:
    """A mask of −1e9 and an epsilon of 1e-9, added to a product."""
    from nmsfree_export.graph.half import to_half

    graph = foreign.Graph()
    for number, value in enumerate((-1e9, 1e-9, 1.0)):
        product = graph.linear(graph.logits, 5, 5)
        added = graph.add("Add", product, graph.of(value), out=(f"sum{number}",))
        graph.output(f"out{number}", graph.linear(added, 5, 5), (64, 5))
    half = onnx.shape_inference.infer_shapes(to_half(graph.model()))
    types = {v.name: v.type.tensor_type.elem_type for v in half.graph.value_info}
    found = [types[f"sum{number}"] for number in range(3)]
    assert found == [TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.FLOAT16]


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_an_export_is_one_in_fp32_converted(
    nano: Checkpoint, digits: Path, tmp_path: Path, precision: str
) -> None:
    int8: Any = {"target": "cpu", "calibrate": digits, "calibration_images": 4}
    more: Any = {"precision": precision} | (int8 if precision == "int8" else {})
    at_once = export_onnx(nano, tmp_path / "once.onnx", ExportOptions(**more))
    full = export_onnx(nano, tmp_path / "full.onnx")
    converted = convert_onnx(full.path, tmp_path / "new.onnx", PrecisionOptions(**more))
    assert converted.path.read_bytes() == at_once.path.read_bytes()
    assert converted.parity.rows >= 400


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_int8_of_an_adopted_file(
    adopted: dict[str, Path], pictures: Path, tmp_path: Path, target: str
) -> None:
    """Calibrated on pictures without labels; the weights are random, so many rows swap."""
    options = PrecisionOptions(
        precision="int8", target=target, calibrate=pictures, max_unmatched=0.9
    )
    strict = replace(options, tolerance=Tolerance(0.0, 0.0), max_unmatched=0.0)
    with pytest.raises(GateError, match=r"pictures that show what it finds: .* --images DIR"):
        convert_onnx(adopted["A"], tmp_path / "no.onnx", strict)
    report = convert_onnx(adopted["A"], tmp_path / "int8.onnx", options)
    model = onnx.load(report.path)
    assert count_precisions(model) == {"int8": 3, "fp32": 5}
    assert report.spec.provenance["calibration"] == f"{pictures.name}, 6 images"
    fed = {n.input[0] for n in model.graph.node if n.op_type == "QuantizeLinear"}
    bending = {n.output[0] for n in model.graph.node if n.op_type == "Sigmoid"}
    assert bool(fed & bending) == (target == "cpu"), "SiLU in integers"
    lines = dict(report.certificate.lines)
    assert lines["last convolutions and all after them in float"] == "1 convolutions in fp32"


def overflowing(model: ModelProto) -> str:
    """Let a projection give values beyond a half, which the next makes small; return its name."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    products = [n for n in model.graph.node if n.op_type == "MatMul" and n.input[1] in tensors]
    for node, factor in zip(products[2:4], (1e6, 1e-6), strict=True):
        tensor = tensors[node.input[1]]
        value = numpy_helper.to_array(tensor) * np.float32(factor)
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return str(products[2].input[1])


def test_a_fragile_layer_is_named_and_left_in_float(tmp_path: Path) -> None:
    model = foreign.yolo26()
    name = overflowing(model)
    path = adopt_onnx(foreign.save(model, tmp_path / "theirs.onnx"), tmp_path / "ours.onnx").path
    with pytest.raises(GateError) as caught:
        convert_onnx(path, tmp_path / "half.onnx", HALF)
    assert isinstance(caught.value, FragileError)
    assert "--auto-mixed keeps such layers in float" in str(caught.value)
    assert not (tmp_path / "half.onnx").exists()
    options = PrecisionOptions(precision="fp16", auto_mixed=True)
    report = convert_onnx(path, tmp_path / "half.onnx", options)
    assert name in report.float_layers and len(report.float_layers) <= 4
    assert report.attempts and report.parity.passed


def test_refusals(adopted: dict[str, Path], halves: dict[str, Report], tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    with pytest.raises(InputError, match=r"is fp16 already: give the float32 file"):
        convert_onnx(halves["A"].path, out, HALF)
    with pytest.raises(InputError, match=r"precision is fp32, which the file is in"):
        convert_onnx(adopted["A"], out, PrecisionOptions())
    theirs = foreign.save(foreign.yolo_rows(), tmp_path / "theirs.onnx")
    with pytest.raises(ModelError, match=r"no 'nmsfree' metadata.* `nmsfree adopt`"):
        convert_onnx(theirs, out, HALF)
    (tmp_path / "noise.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(ModelError, match=r"not an ONNX file that can be read"):
        convert_onnx(tmp_path / "noise.onnx", out, HALF)
    with pytest.raises(InputError, match=r"target is 'gpu', expected cpu, tensorrt"):
        PrecisionOptions(precision="int8", target="gpu", calibrate=tmp_path)
    with pytest.raises(InputError, match=r"int8 needs .* --calibrate DIR"):
        PrecisionOptions(precision="int8", target="cpu")
    assert not out.exists()


def test_pictures_that_mean_nothing_are_not_enough(tmp_path: Path) -> None:
    """A detector that sees nothing in them would pass whatever it became."""
    model = foreign.yolo_rows()
    bias = next(t for t in model.graph.initializer if t.name == "w2")
    value = numpy_helper.to_array(bias) - np.float32([0] * 4 + [9] * foreign.CLASSES)
    bias.CopyFrom(numpy_helper.from_array(value, bias.name))
    path = adopt_onnx(foreign.save(model, tmp_path / "theirs.onnx"), tmp_path / "ours.onnx").path
    with pytest.raises(InputError, match=r"expected 20 to judge by: give pictures .* --images"):
        convert_onnx(path, tmp_path / "half.onnx", HALF)


def test_the_command(
    adopted: dict[str, Path],
    run: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # the table's cells stay whole
    out = tmp_path / "half.onnx"
    done = run("convert", adopted["K"], "-o", out, "--precision", "fp16", "--json", "-")
    assert done.exit_code == 0, done.exception
    assert json.loads(done.stdout)["precision"] == "fp16"
    assert "most detections the same as the given file" in done.stderr
    with Detector(out) as detector:
        assert len(detector(bundled_pictures()[2][1], threshold=0.05)) > 0


def test_it_needs_no_pytorch() -> None:
    code = "import sys; sys.modules |= dict.fromkeys(['torch', 'nmsfree_training', 'onnxscript'])\n"
    code += "import nmsfree_export.convert, nmsfree_export.cli.convert"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.skipif(not is_installed("tensorrt-rtx"), reason="tensorrt-rtx is not installed")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("letter", FAMILIES)
def test_engines_of_both_families_build(
    letter: str,
    precision: str,
    adopted: dict[str, Path],
    halves: dict[str, Report],
    tmp_path: Path,
) -> None:
    from nmsfree_export.tensorrt.build import build_engine

    source = adopted[letter] if precision == "fp32" else halves[letter].path
    report = build_engine(source, tmp_path / "model.engine", BuildOptions(sms=(89,)))
    assert report.size > 0 and report.sidecar.targets == (89,)
    mean = letter == "K" and precision == "fp16"
    assert report.sidecar.precision == ("mixed fp16" if mean else precision)
