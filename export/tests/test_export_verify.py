"""`nmsfree verify`: any pair that runs on a processor, AP on a split, and what a failure shows."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nmsfree.backends import CallableBackend, OnnxRuntimeBackend, RawDetections
from nmsfree.datasets.formats.folder import load_dataset
from nmsfree.detector import Detector
from nmsfree.errors import GateError, InputError
from nmsfree.evaluation.evaluate import evaluate
from nmsfree_export import matrix
from nmsfree_export.candidate import Builder
from nmsfree_export.export import ExportOptions, make_export_spec, trace
from nmsfree_export.graph.contract import content_of, full_spec
from nmsfree_export.options import Tolerance, VerifyOptions
from nmsfree_export.quantize import load_calibration
from nmsfree_export.verify.compare import Side, compare_layers, compare_models
from nmsfree_export.verify.parity import load_images, tolerance_for
from nmsfree_training.weights.checkpoint import load_checkpoint

IMAGES = 12  # of the fixture `digits`
Files = dict[str, Path]
Run = Callable[..., Any]


@pytest.fixture(scope="module")
def files(weights: Path, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The trained nano detector: checkpoint, and files of every precision; and another one."""
    folder = tmp_path_factory.mktemp("models")
    found = {"checkpoint": weights / "fcos_o2o_nano.safetensors"}
    found["other"] = weights / "fcos_e2e_nano.safetensors"
    checkpoint = load_checkpoint(found["checkpoint"])
    int8 = ExportOptions(precision="int8", target="cpu", calibrate=digits)
    for name, options in (("int8", int8), ("fp16", ExportOptions(precision="fp16"))):
        spec = make_export_spec(checkpoint, options)
        calibration = load_calibration(digits, "train", 4, spec) if name == "int8" else None
        builder = Builder(trace(checkpoint, spec), spec, calibration, folder)
        made = {name: content_of(builder.build().model, spec)}
        if name == "int8":
            made["fp32"] = content_of(builder.original.model, full_spec(spec))
        for kind, content in made.items():
            found[kind] = folder / f"{kind}.onnx"
            found[kind].write_bytes(content)
    return found


STRICT = (1e-4, 0.05)
HALF = (0.01, 0.5)
EIGHT_BITS = (0.05, 12.8)


@pytest.mark.parametrize(
    ("a", "b", "options", "engines", "tolerance", "seen"),
    [
        ("checkpoint", "fp32", "", ("PyTorch", "ONNX Runtime"), STRICT, (0, 1e-5)),
        ("fp32", "checkpoint", "", ("ONNX Runtime", "PyTorch"), STRICT, (0, 1e-5)),
        ("fp32", "fp32", "--device-b openvino", ("ONNX Runtime", "OpenVINO"), STRICT, (0, 1e-5)),
        ("fp32", "int8", "--device openvino", ("OpenVINO", "OpenVINO"), EIGHT_BITS, (1e-3, 0.05)),
        ("fp32", "fp16", "", ("ONNX Runtime", "ONNX Runtime"), HALF, (1e-5, 5e-3)),
        ("checkpoint", "int8", "", ("PyTorch", "ONNX Runtime"), EIGHT_BITS, (1e-3, 0.05)),
    ],
)
def test_pairs(
    run: Run,
    files: Files,
    a: str,
    b: str,
    options: str,
    engines: tuple[str, str],
    tolerance: tuple[float, float],
    seen: tuple[float, float],
) -> None:
    if "openvino" in options:
        pytest.importorskip("openvino")
    outcome = run("verify", files[a], files[b], "--json", "-", *options.split())
    assert outcome.exit_code == 0, outcome.exception
    report = json.loads(outcome.stdout)
    for key, name, engine in (("a", a, engines[0]), ("b", b, engines[1])):
        side = report[key]
        assert side["engine"].startswith(engine)
        assert side["precision"] == {"checkpoint": "fp32"}.get(name, name)
        assert side["int8_target"] == ("cpu" if name == "int8" else None)
        assert f"{key}  {files[name]}: " in outcome.stderr and side["engine"] in outcome.stderr
    parity = report["parity"]
    assert parity["passed"] and parity["rows"] > 400
    assert tuple(parity["tolerance"].values()) == tolerance
    assert seen[0] < parity["score_difference"] < seen[1], "two models ran"
    assert "allowed" in parity if b == "int8" else "allowed" not in parity
    assert report["accuracy"] is None and report["layers"] is None
    word = "most detections the same" if b == "int8" else "same detections"
    assert f"\n{word}: 5 images, " in outcome.stderr


def test_a_failure_shows_the_layers(run: Run, files: Files, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    words = ["--score-tolerance", "1e-5", "--json", out]
    outcome = run("verify", files["fp16"], files["checkpoint"], *words)
    assert isinstance(outcome.exception, GateError) and outcome.exception.exit_status == 1
    assert str(outcome.exception).startswith("parity: 5 images, ")
    assert "(allowed 1e-05)" in str(outcome.exception)
    assert "layers of fp16.onnx beside fcos_o2o_nano.safetensors" in outcome.stderr
    assert "worst 8 of 51 layers" in outcome.stderr
    layers = json.loads(out.read_text())["layers"]
    assert (layers["exact"], layers["judged"]) == ("fcos_o2o_nano.safetensors", "fp16.onnx")
    added = [e["added"] for e in layers["errors"]]
    assert len(added) == 51 and added == sorted(added, reverse=True)
    assert 1e-4 < added[0] < 1e-3
    assert {e["precision"] for e in layers["errors"] if e["op"] == "Conv"} == {"fp16"}


def test_layers_of_one_graph_are_no_use(run: Run, files: Files) -> None:
    outcome = run("verify", files["fp32"], files["fp32"], "--layers")
    assert outcome.exit_code == 0
    note = "layers: both run the same graph, so what differs is the engines' own arithmetic"
    assert note in " ".join(outcome.stderr.split())


def test_ap_and_the_best_threshold(run: Run, files: Files, digits: Path) -> None:
    words = ["--data", digits, "--max-ap-drop", "5", "--json", "-"]
    outcome = run("verify", files["fp32"], files["int8"], *words)
    assert outcome.exit_code == 0, outcome.exception
    found = json.loads(outcome.stdout)["accuracy"]
    dataset = load_dataset(digits, "val")
    for key, name in (("ap_reference", "fp32"), ("ap", "int8")):
        with Detector(files[name]) as detector:
            assert found[key] == evaluate(detector, dataset).ap
    assert found["ap"] != found["ap_reference"]
    assert found["ap_drop"] == found["ap_reference"] - found["ap"]
    assert found["threshold_shift"] == found["threshold"] - found["threshold_reference"] != 0
    assert found["measured_on"] == f"digits val, {IMAGES} images"
    assert found["passed"] and found["max_drop"] == 0.05
    assert f"AP kept: {100 * found['ap_reference']:.1f} → " in outcome.stderr


def test_what_one_model_wins_the_other_loses(run: Run, files: Files, digits: Path) -> None:
    """Two detectors whose rows nobody compares: one direction loses AP, and is refused."""
    pair = files["fp32"], files["other"]
    options = ["--data", str(digits), "--max-unmatched", "1", "--max-ap-drop", "0"]
    outcomes = [run("verify", *order, *options) for order in (pair, pair[::-1])]
    failed = [o for o in outcomes if o.exception is not None]
    assert len(failed) == 1
    assert isinstance(failed[0].exception, GateError)
    assert str(failed[0].exception).startswith("accuracy: ")
    assert f"AP on digits val, {IMAGES} images (at most 0.0 lost)" in str(failed[0].exception)
    assert (
        "most detections the same: " in failed[0].stderr
        and "worst 8 of 51 layers" in failed[0].stderr
    )


def test_an_output_against_the_contract_has_layers_but_no_ap(files: Files, digits: Path) -> None:
    """As of a file that overflows."""
    first = OnnxRuntimeBackend(files["fp32"])

    def broken(images: np.ndarray) -> RawDetections:
        raw = first.run(images)
        return raw._replace(detection_boxes=raw.detection_boxes * np.float32("nan"))

    outcome = compare_models(
        VerifyOptions(a=files["fp32"], b=files["fp16"]),
        (first, CallableBackend(broken, first.spec, "broken")),
        load_images(None)[:1],
        load_dataset(digits, "val"),
    )
    assert str(outcome.failure) == "parity: broken gives values that are not finite"
    assert outcome.parity is None and outcome.accuracy is None
    assert outcome.layers is not None and len(outcome.layers.errors) == 51
    report = outcome.to_json()
    assert report["parity"] == {"passed": False, "failure": str(outcome.failure)}


def test_tolerances(files: Files) -> None:
    spec = OnnxRuntimeBackend(files["fp32"]).spec
    assert tolerance_for(spec, "fp32", "fp32") == Tolerance()
    assert tolerance_for(spec, "fp32", "fp16") == Tolerance(0.01, 0.5)
    for precision in ("int8", "bf16"):
        assert tolerance_for(spec, "fp16", precision) == Tolerance(0.05, 12.8, 0.1, 0.05, 2.56)
    assert tolerance_for(spec, "fp32", unmatched=0.2) == Tolerance(0.05, 12.8, 0.2)
    assert Side(Path("a.onnx"), "openvino", "bf16").precision(spec) == "bf16"
    int8 = replace(spec, precision="int8")
    assert Side(Path("a.onnx"), "openvino", "f32").precision(int8) == "int8"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--split val", "checking AP needs a labelled dataset: give --data DIR"),
        ("--max-ap-drop 2", "checking AP needs a labelled dataset: give --data DIR"),
        (
            "--max-unmatched 0.1 --box-tolerance 1",
            "--max-unmatched judges by the share of rows without a partner, --score-tolerance and "
            "--box-tolerance by differences: give one or the other",
        ),
        (
            "--precision-b bf16",
            "precision is 'bf16', but does not apply to ONNX Runtime on cpu: it is for openvino, "
            "leave it out here",
        ),
        (
            "--device openvino",
            "CHECKPOINT: device is 'openvino', but a checkpoint runs in PyTorch, on cpu or cuda: "
            "give the device of the other model alone, with --device-a or --device-b",
        ),
        (
            "--precision-a bf16",
            "precision is 'bf16', but does not apply to a checkpoint: it is for openvino, leave it "
            "out here",
        ),
    ],
)
def test_options_that_do_not_fit(run: Run, files: Files, options: str, message: str) -> None:
    outcome = run("verify", files["checkpoint"], files["fp32"], *options.split())
    assert isinstance(outcome.exception, InputError)
    assert str(outcome.exception) == message.replace("CHECKPOINT", str(files["checkpoint"]))


def test_an_engine_hides_its_layers(files: Files) -> None:
    spec = OnnxRuntimeBackend(files["fp32"]).spec
    sides = Side(files["fp32"]), Side(Path("model.engine"))
    found = compare_layers(sides, (spec, spec), load_images(None)[:1])
    assert not found.errors
    assert found.note == "model.engine: an engine hides its layers: compare those of its ONNX file"


def test_one_file_on_every_engine(run: Run, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix, "BROWSERS", matrix.BROWSERS[:1])  # WebGPU takes a minute here
    done = run("verify", "--matrix", files["fp32"], "--json", "-")
    assert done.exit_code == 0, done.exception
    cells = {cell["name"]: cell for cell in json.loads(done.stdout)["cells"]}
    for name in ("fp16 version", "int8 version"):
        assert cells[name]["parity"]["passed"] and cells[name]["layer"]
    browser = cells["WebAssembly in Chromium"]
    assert browser["parity"]["passed"] if browser["engine"] else browser["missing"]
    assert "nmsfree build" in cells["engine"]["missing"] and not cells["engine"]["engine"]
    assert "engine: no fp32.engine beside it" in done.stderr
    with pytest.raises(InputError, match=r"give two models to compare, or one and --matrix"):
        VerifyOptions(a=files["fp32"])
    with pytest.raises(InputError, match=r"--matrix takes --images and --json"):
        VerifyOptions(a=files["fp32"], matrix=True, device="openvino")
