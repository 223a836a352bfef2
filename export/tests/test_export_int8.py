"""INT8: trained weights keep their detections and AP; what is refused, and in which words."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from nmsfree import Detector
from nmsfree.backends import OnnxRuntimeBackend
from nmsfree.errors import DataError, GateError, InputError
from nmsfree.evaluation.scores import Metrics
from nmsfree.images import read_image
from nmsfree.preprocess import resize_into
from nmsfree_export.convert import Report
from nmsfree_export.export import ExportOptions, export_onnx, make_export_spec
from nmsfree_export.graph.contract import content_of
from nmsfree_export.graph.layers import count_precisions
from nmsfree_export.options import Tolerance
from nmsfree_export.quantize import load_calibration
from nmsfree_export.verify import accuracy as accuracy_module
from nmsfree_export.verify.accuracy import Accuracy
from nmsfree_export.verify.parity import Parity
from nmsfree_training.weights.checkpoint import Checkpoint

TRAIN, VAL = 8, 12  # pictures of the fixture `digits`
ADVICE = "calibrate with more pictures, or keep fp16 or fp32"


def int8(target: str, data: Path, **more: Any) -> ExportOptions:
    return ExportOptions(precision="int8", target=target, calibrate=data, **more)


@pytest.fixture(scope="module", params=["cpu", "tensorrt"])
def trained(
    request: pytest.FixtureRequest,
    nano: Checkpoint,
    digits: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Report:
    """The trained nano detector in INT8."""
    out = tmp_path_factory.mktemp("int8") / "model.onnx"
    options = int8(request.param, digits, check_data=digits, max_ap_drop=2.0)
    return export_onnx(nano, out, options)


def test_trained_weights_keep_their_detections_and_ap(trained: Report) -> None:
    parity, found = trained.parity, trained.accuracy
    assert parity.tolerance.unmatched == 0.1
    assert parity.passed and parity.rows > 400
    assert parity.unmatched < 0.05 * parity.rows
    assert parity.score_difference > 1e-3, "it is INT8"
    assert trained.size < 1_520_000, "a quarter of FP32's 5.2 MB, and tables"
    assert found is not None and found.measured_on == f"digits val, {VAL} images"
    assert found.ap_reference > 0.6
    assert 0 < abs(found.ap - found.ap_reference) < 0.02, "two files were measured"
    assert 0 < abs(found.threshold - found.threshold_reference) < 0.2


def test_it_answers_its_canary(trained: Report, tmp_path: Path) -> None:
    """Also in OpenVINO, which rounds otherwise; the description alone says where a file may run."""
    path = tmp_path / "model.onnx"
    path.write_bytes(
        content_of(onnx.load(trained.path), dataclasses.replace(trained.spec, int8_target=None))
    )
    for device, exact in (("cpu", True), ("openvino", False)):
        with Detector(path, device=device) as detector:
            found = detector.self_check()
        assert found.ok and (found.missing == 0) == exact
        assert found.tolerance.missing == 0.4


def test_the_file_says_what_it_is(trained: Report) -> None:
    model = onnx.load(trained.path)
    assert {e.domain: e.version for e in model.opset_import} == {"": 18}
    assert [e.key for e in model.metadata_props] == ["nmsfree"]
    spec = json.loads(model.metadata_props[0].value)
    assert (spec["precision"], spec["int8_target"]) == ("int8", trained.spec.int8_target)
    assert spec["provenance"]["calibration"] == f"digits train, {TRAIN} images"
    assert count_precisions(model) == {"int8": 38, "fp32": 6}
    lines = dict(trained.certificate.lines)
    assert lines["precision"] == "38 convolutions in int8, 6 in fp32"
    assert lines["standard operators only"].startswith("ai.onnx opset 18, ")
    report: Any = trained.to_json()
    assert (report["precision"], report["int8_target"]) == ("int8", trained.spec.int8_target)
    assert report["parity"]["passed"] is True and report["parity"]["allowed"] == 0.1
    assert trained.accuracy is not None
    assert report["accuracy"]["ap"] == trained.accuracy.ap


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_shared_weights(grouped: Checkpoint, digits: Path, tmp_path: Path, target: str) -> None:
    """GroupNorm, and levels that share their weights; the weights are random, so many rows swap."""
    options = int8(target, digits, batch=None, calibration_images=2, max_unmatched=0.5)
    report = export_onnx(grouped, tmp_path / "model.onnx", options)
    assert report.spec.provenance["calibration"] == "digits train, 2 images"
    assert count_precisions(onnx.load(report.path)) == {"int8": 38, "fp32": 6}


def test_dynamic_batch_of_the_nms_baseline(
    checkpoint: Checkpoint, digits: Path, tmp_path: Path
) -> None:
    options = int8("tensorrt", digits, head="o2m", batch=None, max_unmatched=0.5)
    report = export_onnx(checkpoint, tmp_path / "model.onnx", options)
    assert report.spec.batch is None and report.parity.rows > 50


def test_too_many_rows_without_partner(
    checkpoint: Checkpoint, digits: Path, tmp_path: Path
) -> None:
    options = int8("cpu", digits, tolerance=Tolerance(0.0, 0.0), max_unmatched=0.0)
    with pytest.raises(GateError, match=r"^parity: 5 images, \d+ rows, \d+ unmatched \("):
        export_onnx(checkpoint, tmp_path / "a.onnx", options)
    assert not list(tmp_path.iterdir())


def test_the_words_of_parity() -> None:
    parity = Parity(5, 200, 21, 0.04, 3.0, "a.png", Tolerance(0.05, 12.8, unmatched=0.1))
    with pytest.raises(GateError) as caught:
        parity.enforce()
    assert str(caught.value) == (
        "parity: 5 images, 200 rows, 21 unmatched (10.5%, allowed 10%), of the others largest "
        "difference: score 4.0e-02, box 3.0e+00 px; median: score 0.0e+00, box 0.0e+00 px"
    )
    assert dataclasses.replace(parity, unmatched=20).passed
    assert not dataclasses.replace(parity, rows=0, unmatched=0).passed
    assert parity.to_json()["passed"] is False


def test_lost_ap_is_refused() -> None:
    found = Accuracy("digits val, 300 images", 0.771, 0.760, 0.434, 0.402, max_drop=0.01)
    with pytest.raises(GateError) as caught:
        found.enforce(ADVICE)
    assert str(caught.value) == (
        "accuracy: 77.1 → 76.0 AP on digits val, 300 images (at most 1.0 lost), threshold of the "
        f"best F1 0.434 → 0.402: {ADVICE}"
    )
    assert found.to_json()["passed"] is False
    assert found.to_json()["ap_drop"] == pytest.approx(0.011)
    assert found.to_json()["threshold_shift"] == pytest.approx(-0.032)
    dataclasses.replace(found, ap=0.762).enforce()


def test_a_file_that_loses_ap_is_not_left_behind(
    nano: Checkpoint, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FP16 is measured in the same way; the second file's AP is made half of what it is."""
    real = accuracy_module.analyse
    seen = []

    def analyse(*arguments: Any) -> object:
        found = real(*arguments)
        seen.append(found.spec.precision)
        metrics: Metrics = dataclasses.replace(found.metrics, ap=found.metrics.ap / len(seen))
        return dataclasses.replace(found, metrics=metrics)

    monkeypatch.setattr(accuracy_module, "analyse", analyse)
    options = ExportOptions(precision="fp16", check_data=digits)
    with pytest.raises(GateError, match=r"^accuracy: .* AP on digits val, 12 images"):
        export_onnx(nano, tmp_path / "half.onnx", options)
    assert seen == ["fp32", "fp16"]
    assert not list(tmp_path.iterdir())


def test_calibration_pictures_are_spread_and_letterboxed(
    checkpoint: Checkpoint, digits: Path
) -> None:
    spec = make_export_spec(checkpoint, ExportOptions())
    chosen = load_calibration(digits, "train", 4, spec)
    names = [path.name for path in chosen.paths]
    assert names == ["00000.png", "00002.png", "00004.png", "00006.png"]
    assert chosen.description == "digits train, 4 images"
    want = np.empty((spec.height, spec.width, 3), np.uint8)
    resize_into(read_image(chosen.paths[1]), want, spec.resize)
    assert np.array_equal(chosen.read(1)[0], want)
    with pytest.raises(InputError, match=r"^calibration images are 0, expected 1 or more$"):
        load_calibration(digits, "train", 0, spec)


@pytest.mark.parametrize("split", ["val", "val2017", "test", "Test-dev", "minival", "eval"])
def test_measuring_splits_do_not_calibrate(
    checkpoint: Checkpoint, digits: Path, split: str
) -> None:
    spec = make_export_spec(checkpoint, ExportOptions())
    words = f"calibration split is {split!r}: .*: use a training split, --calibrate-split train"
    with pytest.raises(InputError, match=words):
        load_calibration(digits, split, 8, spec)


def test_pictures_of_the_measured_split_do_not_calibrate(
    nano: Checkpoint, digits: Path, tmp_path: Path
) -> None:
    """Whatever the split is called: its pictures count."""
    options = int8("cpu", digits, check_data=digits, check_split="train")
    words = (
        "8 images of the calibration split 'train' are also in the split 'train' that the file is"
        " measured on, first 00000.png: .*; use another split for one of them"
    )
    with pytest.raises(InputError, match=words):
        export_onnx(nano, tmp_path / "a.onnx", options)


def test_other_classes_are_told_before_the_work(
    checkpoint: Checkpoint, digits: Path, tmp_path: Path
) -> None:
    options = ExportOptions(precision="fp16", check_data=digits)
    with pytest.raises(DataError, match=r"^classes differ: the model has 7"):
        export_onnx(checkpoint, tmp_path / "a.onnx", options)


def test_the_command_line(
    run: Callable[..., Any], weights: Path, digits: Path, tmp_path: Path
) -> None:
    out, report = tmp_path / "model.onnx", tmp_path / "report.json"
    words = (
        f"export {weights}/fcos_e2e_nano.safetensors -o {out} --precision int8 --for cpu "
        f"--calibrate {digits} --calibrate-split train --calibration-images 4 --max-unmatched 0.2 "
        f"--check-data {digits} --check-split val --max-ap-drop 5 --json {report}"
    )
    outcome = run(*words.split())
    assert outcome.exit_code == 0, outcome.exception
    assert "int8 for cpu" in outcome.stderr and "accuracy of FP32 kept" in outcome.stderr
    found = json.loads(report.read_text())
    assert found["accuracy"]["max_drop"] == 0.05
    assert found["parity"]["allowed"] == 0.2
    assert OnnxRuntimeBackend(out).spec.provenance["calibration"] == "digits train, 4 images"
