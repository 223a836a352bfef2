"""Files of any size, of another opset, with their own NMS, and what NMS does to one without."""

import io
import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import export_foreign as foreign
import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper, version_converter
from rich.console import Console

from nmsfree import Detector, GateError, InputError, ModelError
from nmsfree.cli import progress
from nmsfree.cli.detect import Request, _detect
from nmsfree.cli.options import Choice
from nmsfree.datasets.formats.folder import load_dataset
from nmsfree.images import write_picture
from nmsfree_export.adopt import adopt as adopting
from nmsfree_export.adopt.adopt import ADOPT_DEFAULTS, AdoptOptions, AdoptReport, adopt_onnx
from nmsfree_export.adopt.find import variants
from nmsfree_export.adopt.foreign import File
from nmsfree_export.adopt.rewrite import opset_of
from nmsfree_export.cli.adopt import _show
from nmsfree_export.options import NmsOptions
from nmsfree_export.tensorrt.network import read_source
from nmsfree_export.verify.parity import bundled_pictures, pictures_for

OPERATOR = AdoptOptions(nms=NmsOptions("operator"))


def adopt(
    model: ModelProto, folder: Path, options: AdoptOptions = ADOPT_DEFAULTS, **more: Any
) -> AdoptReport:
    path = foreign.save(model, folder / "theirs.onnx")
    return adopt_onnx(path, folder / "ours.onnx", options, **more)


def of_opset(model: ModelProto, opset: int) -> ModelProto:
    if opset > model.opset_import[0].version:
        return version_converter.convert_version(model, opset)
    model.opset_import[0].version = opset  # these operators are as old
    return model


@pytest.mark.parametrize(("opset", "written"), [(15, 18), (16, 16), (19, 18), (22, 18)])
def test_another_opset(opset: int, written: int, tmp_path: Path) -> None:
    report = adopt(of_opset(foreign.yolo_rows(), opset), tmp_path)
    assert opset_of(onnx.load(report.path)) == written
    assert report.adoption.unmatched == 0
    said = dict(report.foreign.concluded).get("opset")
    assert said == (None if opset == written else f"{opset}, converted to 18")


def test_what_cannot_be_converted_stays_while_every_engine_reads_it(tmp_path: Path) -> None:
    """GridSample of opset 20 has no way back, and none from 15, where it was not yet."""
    report = adopt(of_opset(foreign.rtdetr_dense(), 20), tmp_path)
    assert opset_of(onnx.load(report.path)) == 20
    assert dict(report.foreign.concluded)["opset"].startswith("20, not converted to 18: ")
    with Detector(report.path, device="openvino") as detector:
        assert detector.self_check().ok
    with pytest.raises(ModelError, match="opset 22, expected 16 to 18, and it cannot be converted"):
        adopt(of_opset(foreign.rtdetr_dense(), 22), tmp_path)


PLAIN = AdoptOptions(nms=NmsOptions("plain", nms_candidates=100))


@pytest.mark.parametrize(("nms_free", "options"), [(True, ADOPT_DEFAULTS), (False, PLAIN)])
def test_a_dynamic_size_survives(nms_free: bool, options: AdoptOptions, tmp_path: Path) -> None:
    report = adopt(foreign.yolo_any_size(nms_free=nms_free), tmp_path, options)
    spec, picture = report.spec, bundled_pictures()[2][1]
    assert (spec.height, spec.width, spec.size_step, spec.batch) == (64, 64, 32, None)
    assert dict(report.foreign.concluded)["size"] == "any multiple of 32, usually 64 × 64"
    assert report.adoption.unmatched == 0
    boxes = []
    for device in ("cpu", "openvino"):
        with Detector(report.path, device=device) as usual:
            assert usual.self_check().ok
        with Detector(report.path, device=device, size=(96, 160)) as detector:
            assert (detector.spec.height, detector.spec.width) == (96, 160)
            boxes.append(detector(picture, threshold=0.3).xyxy)
            with pytest.raises(ModelError, match=r"refused images.*or multiples of 32"):
                detector.backend.run(np.zeros((1, 100, 160, 3), np.uint8))
        pickled = pickle.loads(pickle.dumps(detector))
        assert pickled.spec.width == 160
    assert len(boxes[0]) > 0 and boxes[0].max() > 64
    engine = read_source(report.path)  # what an engine is built of
    assert engine.spec.size_step is None
    sides = onnx.load_from_string(engine.content).graph.input[0].type.tensor_type.shape.dim[1:3]
    assert [side.dim_value for side in sides] == [64, 64]
    np.testing.assert_allclose(boxes[0], boxes[1], atol=0.05)


def test_detect_takes_a_size(tmp_path: Path) -> None:
    report = adopt(foreign.yolo_any_size(), tmp_path)
    write_picture(tmp_path / "a.png", picture := bundled_pictures()[2][1])
    lines = tmp_path / "lines"
    asked = Request(
        sources=(str(tmp_path / "a.png"),),
        model=report.path,
        choice=Choice(threshold="0.3"),
        save=False,
        json_file=str(lines),
        size=(96, 160),
    )
    _detect(asked)
    boxes = [json.loads(line)["box"] for line in lines.read_text().splitlines()]
    with Detector(report.path, size=(96, 160)) as detector:
        np.testing.assert_allclose(boxes, detector(picture, threshold=0.3).xyxy, atol=0.01)
    with pytest.raises(InputError, match="size is 100 × 160, expected multiples of 32"):
        _detect(replace(asked, size=(100, 160)))


def test_a_size_is_pinned_or_refused(tmp_path: Path) -> None:
    report = adopt(foreign.yolo_any_size(), tmp_path, AdoptOptions(size=(96, 128)))
    assert (report.spec.height, report.spec.width, report.spec.size_step) == (96, 128, None)
    with pytest.raises(InputError, match="this model takes 96 × 128 only"):
        Detector(report.path, size=(64, 64))
    report = adopt(foreign.yolo_any_size(), tmp_path)
    with pytest.raises(InputError, match="size is 64 × 100, expected multiples of 32"):
        Detector(report.path, size=(64, 100))
    model = foreign.yolo_any_size()
    for tensor in model.graph.initializer:
        if tensor.dims == [3] and numpy_helper.to_array(tensor)[2] == -1:  # the number of cells
            tensor.CopyFrom(numpy_helper.from_array(np.array([0, 9, 64]), tensor.name))
    report = adopt(model, tmp_path)
    assert report.spec.size_step is None
    said = dict(report.foreign.concluded)["size"]
    assert said == "64 × 64: said to be dynamic, but it refuses others"


def test_a_file_with_its_own_nms_is_a_baseline_as_it_is(tmp_path: Path) -> None:
    report = adopt(foreign.yolo_with_nms(), tmp_path, OPERATOR)
    assert report.adoption.unmatched == 0 and report.adoption.rows >= 100
    assert report.spec.nms is not None and report.spec.nms.iou == pytest.approx(0.45)
    assert report.spec.head == "o2m"
    assert sum(n.op_type == "NonMaxSuppression" for n in onnx.load(report.path).graph.node) == 1
    with Detector(report.path) as detector:
        assert detector.self_check().ok


@pytest.mark.parametrize(
    ("nms", "message"),
    [
        (NmsOptions(), "holds NonMaxSuppression.*with --nms operator"),
        (NmsOptions("plain"), "export with nms=None, and adopt that with --nms plain"),
        (NmsOptions("operator", nms_iou=0.5), "take its own, with --nms operator alone"),
    ],
)
def test_its_own_nms_is_not_replaced(nms: NmsOptions, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        adopt(foreign.yolo_with_nms(), tmp_path, AdoptOptions(nms=nms))


def test_an_iou_alone_adds_no_nms(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--nms-iou says nothing without NMS: give --nms"):
        adopt(foreign.yolo_rows(), tmp_path, AdoptOptions(nms=NmsOptions(nms_iou=0.5)))


def other_iou(model: ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == "nms_iou")
    tensor.CopyFrom(numpy_helper.from_array(np.array([0.9], np.float32), tensor.name))


@pytest.mark.parametrize("kind", ["plain", "operator"])
def test_nms_that_is_not_the_greedy_loop_is_refused(
    kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = adopting.rewrite

    def faulty(*arguments: Any) -> ModelProto:
        model = right(*arguments)
        other_iou(model)
        return model

    monkeypatch.setattr(adopting, "rewrite", faulty)
    with pytest.raises(GateError, match=r"NMS differs from the greedy loop in [1-9]"):
        adopt(foreign.yolo_rows(), tmp_path, AdoptOptions(nms=NmsOptions(kind, nms_iou=0.5)))


def test_too_few_steps_are_counted(tmp_path: Path) -> None:
    few = NmsOptions("plain", nms_iou=0.1, nms_steps=2)
    adoption = adopt(foreign.yolo_cells(), tmp_path, AdoptOptions(nms=few)).adoption
    assert adoption.longer_chains > 0 and adoption.nms_wrong == 0


@pytest.mark.parametrize("kind", ["plain", "operator"])
@pytest.mark.parametrize("make", [foreign.yolo_cells, foreign.yolo_rows])
def test_with_nms_it_is_the_greedy_loop(
    make: Callable[[], ModelProto], kind: Any, tmp_path: Path
) -> None:
    """An NMS baseline of a file that needs it, and a repair of one that still answers twice."""
    report = adopt(make(), tmp_path, AdoptOptions(nms=NmsOptions(kind, nms_iou=0.7)))
    assert report.adoption.unmatched == 0 and report.adoption.score_difference < 1e-5
    assert (report.adoption.nms_wrong, report.adoption.longer_chains) == (0, 0)
    assert report.spec.nms is not None and report.spec.nms.iou == 0.7
    operators = {node.op_type for node in onnx.load(report.path).graph.node}
    assert ("NonMaxSuppression" in operators) == (kind == "operator")


def test_what_nms_does_is_measured(nano: Any, trace: Any, digits: Path, tmp_path: Path) -> None:
    """On a one-to-one head with few duplicates: nearly nothing."""
    theirs = foreign.wrapped(trace(nano), "A")
    options = AdoptOptions(nms=NmsOptions("plain", nms_iou=0.6))
    val = load_dataset(digits, "val")
    report = adopt(theirs, tmp_path, options, images=digits / "val", check=val)
    effect = report.nms_effect
    assert effect is not None
    assert 0.5 < effect.before.ap <= 1 and abs(effect.after.ap - effect.before.ap) < 0.02
    assert effect.after.duplicates_at_floor == 0 <= effect.before.duplicates_at_floor
    assert json.loads(json.dumps(report.to_json()))["nms_effect"]["after"]["ap"] == effect.after.ap
    console = Console(record=True, width=200, file=io.StringIO())
    _show(report, console)
    assert "without NMS → with it" in console.export_text()


def test_what_nms_does_is_asked_of_no_other_file(digits: Path, tmp_path: Path) -> None:
    val = load_dataset(digits, "val")
    for model, options in (
        (foreign.yolo_rows(), ADOPT_DEFAULTS),
        (foreign.yolo_with_nms(), OPERATOR),
    ):
        with pytest.raises(InputError, match="--check-data compares the file without NMS"):
            adopt(model, tmp_path, options, check=val)


def test_labels_tell_of_a_file_of_no_known_project(tmp_path: Path) -> None:
    """All that must be told of it otherwise is tried."""
    file = File.of(tmp_path / "theirs.onnx", foreign.any_logits(), foreign.NAMES)
    ways = variants(file, ADOPT_DEFAULTS)
    assert len({way.resize for way in ways}) == 5 and len({way.boxes for way in ways}) == 4
    assert len(variants(file, replace(ADOPT_DEFAULTS, resize="stretch"))) * 5 == len(ways)


def test_without_a_terminal_steps_are_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    for every, lines in ((0, ["first …", "second …"]), (60, [])):
        monkeypatch.setattr(progress, "EVERY", every)
        text = io.StringIO()
        with progress.told_steps("adopting", Console(file=text)) as tell:
            tell("first")
            tell("second")
        assert text.getvalue().splitlines() == lines


def test_adopted_files_are_verified_on_pictures_they_see_something_in(tmp_path: Path) -> None:
    spec = adopt(foreign.yolo_rows(), tmp_path).spec
    assert any("clouds" in name for name, _ in pictures_for(spec, None))
    own = replace(spec, provenance={})
    assert not any("clouds" in name for name, _ in pictures_for(own, None))
