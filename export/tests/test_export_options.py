"""Options and what comes of them: refusals, thresholds in the file, the dedup IoU."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from nmsfree import Detector, InputError
from nmsfree.backends import OnnxRuntimeBackend
from nmsfree.cli.eval import eval_command
from nmsfree.datasets.formats.coco import load_coco
from nmsfree.spec import FORMAT_VERSION, Thresholds
from nmsfree_export.cli.export import export as export_command
from nmsfree_export.export import ExportOptions, export_onnx, log_other_size, make_export_spec
from nmsfree_export.verify.compare import Side, open_pair
from nmsfree_export.verify.parity import compare, load_images
from nmsfree_training.config import preset
from nmsfree_training.weights.checkpoint import (
    Checkpoint,
    deployed_like,
    save_checkpoint,
    with_dedup_iou,
)
from nmsfree_training.weights.predict import TorchBackend

Make = Callable[..., Checkpoint]
FIGURES = ["AP", "AP50", "AP75", "AP_with_nms", "AR100", "F1", "F1_with_nms", "calibration_error"]
SIZE = (224, 160)
DATA = Path("data")
NEEDS = (
    "int8 needs the engine it is for, as no one file serves both, and training pictures: give --for"
    " cpu or --for tensorrt, and --calibrate DIR"
)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int8"}, NEEDS),
        ({"precision": "int8", "target": "cpu"}, NEEDS),
        ({"precision": "int8", "calibration_images": 8}, NEEDS),
        (
            {"precision": "fp16", "target": "cpu", "calibrate": DATA},
            "calibration is for int8, but precision is fp16: --precision int8",
        ),
        (
            {"precision": "int8", "target": "cpu", "calibrate": DATA, "max_unmatched": 1.0},
            "max unmatched is 1.0, expected 0 or more and below 1",
        ),
        (
            {"check_data": DATA},
            "checking AP is for fp16 and int8, but precision is fp32: measure with `nmsfree eval`",
        ),
        ({"check_split": "val"}, "checking AP needs a labelled dataset: give --check-data DIR"),
        (
            {"auto_mixed": True},
            "auto-mixed keeps layers of fp16 and int8 in float, but precision is fp32, where all"
            " are: leave --auto-mixed out",
        ),
        (
            {"head": "o2m", "dedup_iou": 0.7},
            "dedup IoU is for the one-to-one head, but head is o2m: leave it out",
        ),
        ({"precision": "int4"}, "precision is 'int4', expected fp32, fp16, int8"),
        ({"target": "npu"}, "target is 'npu', expected cpu, tensorrt"),
        ({"head": "o2x"}, "head is 'o2x', expected o2m, o2o"),
        ({"interpolation": "cubic"}, "interpolation is 'cubic', expected linear, area"),
        ({"score_floor": 1.0}, "score floor is 1.0, expected 0 … 1"),
        ({"threshold": 2.0}, "threshold is 2.0, expected the score floor (0.05) … 1"),
        ({"threshold": 0.01}, "threshold is 0.01, expected the score floor (0.05) … 1"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        ExportOptions(**options)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("-o a.onnx --precision int8 --for cpu", NEEDS),
        ("-o a.txt", "output is a.txt, expected a name that ends in .onnx"),
        ("--batch 0", "batch is '0', expected a number of 1 … 65536, or 'dynamic'"),
        ("--batch many", "batch is 'many', expected a number of 1 … 65536, or 'dynamic'"),
    ],
)
def test_wrong_usage(run: Callable[..., Any], weights: Path, words: str, message: str) -> None:
    outcome = run("export", weights / "fcos_e2e_nano.safetensors", *words.split())
    assert isinstance(outcome.exception, InputError)
    assert str(outcome.exception) == message


def measured(classes: int, best_f1: float = 0.42) -> Thresholds:
    return Thresholds(
        best_f1=best_f1,
        best_f1_per_class=(0.5,) * classes,
        at_precision=None,
        at_precision_per_class=(None,) * classes,
        recall_at_precision=None,
        recall_at_precision_per_class=(None,) * classes,
        measured_on="toys val, 3 images, IoU 0.5",
    )


@pytest.fixture
def known(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint of this folder with thresholds."""
    return dataclasses.replace(checkpoint, thresholds=measured(len(checkpoint.class_names)))


def report_of(checkpoint: Checkpoint, path: Path, **fields: Any) -> Path:
    """Write what `nmsfree eval --json` would write, fields replaced as asked."""
    names = list(checkpoint.class_names)
    report = {"class_names": names, "head": "o2o", "thresholds": measured(len(names)).to_json()}
    path.write_text(json.dumps(report | fields), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("options", "threshold", "kept"),
    [
        ({}, 0.42, True),
        ({"threshold": 0.7}, 0.7, True),
        ({"score_floor": 0.6}, 0.6, True),  # never below the floor
        ({"head": "o2m"}, 0.3, False),  # scores of the other head differ
    ],
)
def test_thresholds_of_the_checkpoint(
    known: Checkpoint, options: dict[str, Any], threshold: float, kept: bool
) -> None:
    spec = make_export_spec(known, ExportOptions(**options))
    assert spec.threshold == threshold
    assert spec.thresholds == (known.thresholds if kept else None)
    assert spec.format_version == FORMAT_VERSION
    none = make_export_spec(dataclasses.replace(known, thresholds=None), ExportOptions())
    assert (none.thresholds, none.threshold) == (None, 0.3)


def test_a_file_goes_before_the_checkpoint(known: Checkpoint, tmp_path: Path) -> None:
    other = measured(len(known.class_names), best_f1=0.33)
    file = report_of(known, tmp_path / "eval.json", thresholds=other.to_json())
    spec = make_export_spec(known, ExportOptions(thresholds=file))
    assert (spec.threshold, spec.thresholds) == (0.33, other)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"class_names": list("abcdefx")}, "class 6 is 'x', the checkpoint's is 'g'"),
        ({"class_names": list("bacdefg")}, "class 0 is 'b', the checkpoint's is 'a'"),
        ({"class_names": ["a"]}, "1, the checkpoint has 7"),
        ({"head": "o2m"}, "measured for the head o2m, this export is of o2o"),
        ({"thresholds": {"best_f1": 0.4}}, "thresholds: lacks the field best_f1_per_class"),
        (
            {"thresholds": measured(7).to_json() | {"best_f1": 1.5}},
            r"thresholds\.best_f1: expected",
        ),
        ({"head": 3}, "head: "),
        ({"class_names": 3}, "class_names: expected array"),
        ({"thresholds": None}, "thresholds: expected object, got null"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    checkpoint: Checkpoint, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    file = report_of(checkpoint, tmp_path / "eval.json", **fields)
    with pytest.raises(InputError, match=message) as info:
        make_export_spec(checkpoint, ExportOptions(thresholds=file))
    assert str(info.value).startswith(f"{file}: ")
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("text", [None, "{", "[]", '{"AP": 0.5}', "[" * 10**5, "\udcff"])
def test_something_else_is_refused(
    checkpoint: Checkpoint, tmp_path: Path, text: str | None
) -> None:
    file = tmp_path / "eval.json"
    if text is not None:
        file.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(InputError, match=r"no such file|`nmsfree eval --json` wrote"):
        make_export_spec(checkpoint, ExportOptions(thresholds=file))


@pytest.fixture(scope="module")
def both(weights: Path, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder: a checkpoint evaluated, exported with what was measured, and evaluated again."""
    folder = tmp_path_factory.mktemp("both")
    app = typer.Typer()
    app.command("eval")(eval_command)
    app.command("export")(export_command)
    onnx, first = folder / "nano.onnx", folder / "checkpoint.json"
    checkpoint = str(weights / "fcos_e2e_nano.safetensors")
    data = ["--data", str(digits), "--no-plots", "--threads", "1"]
    for command in (
        ["eval", checkpoint, *data, "--json", str(first)],
        ["export", checkpoint, "-o", str(onnx), "--thresholds", str(first)],
        ["eval", str(onnx), *data, "--json", str(folder / "onnx.json")],
    ):
        outcome = CliRunner().invoke(app, command)
        assert outcome.exit_code == 0, (outcome.output, outcome.exception)
        if command[0] == "export":
            assert "best F1 on digits val, 12 images, IoU 0.5" in outcome.output
    return folder


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_checkpoint_and_onnx_give_the_same_figures(both: Path) -> None:
    checkpoint, onnx = read(both / "checkpoint.json"), read(both / "onnx.json")
    assert 0.3 < checkpoint["AP"] < 0.99, "there is something to compare"
    for name in FIGURES:
        assert onnx[name] == pytest.approx(checkpoint[name], abs=0.001), name
    for ours, theirs in zip(onnx["per_class"], checkpoint["per_class"], strict=True):
        assert ours["AP"] == pytest.approx(theirs["AP"], abs=0.001)
    assert onnx["cap_hits"] == checkpoint["cap_hits"]
    assert onnx["file"] != checkpoint["file"]


def test_the_onnx_file_carries_what_was_measured(both: Path, digits: Path) -> None:
    report = read(both / "checkpoint.json")
    with Detector(both / "nano.onnx", threads=1) as detector:
        spec = detector.spec
        assert spec.thresholds is not None
        assert spec.thresholds.to_json() == report["thresholds"]
        assert spec.threshold == report["thresholds"]["best_f1"]
        sample = load_coco(digits, "val").samples[0]
        found = detector(sample.path, threshold="per-class")
        lowest = spec.thresholds.for_best_f1()
        assert len(found) > 0
        assert all(d.confidence > lowest[d.class_id] for d in found)


@pytest.fixture(scope="module")
def filtered(make_checkpoint: Make) -> Checkpoint:
    """With a duplicate filter of IoU 0.8."""
    filters = {"dedup_iou": 0.8, "deployed_dedup_iou": 0.0}
    return make_checkpoint(dataclasses.replace(preset("fcos_e2e_nano", 7).model, **filters), SIZE)


@pytest.mark.parametrize("size", [SIZE, (448, 352)])
def test_another_size_is_warned_of(size: tuple[int, int], filtered: Checkpoint) -> None:
    told: list[str] = []
    spec = make_export_spec(filtered, ExportOptions(input_size=size))
    log_other_size(filtered, spec, told.append)
    assert len(told) == (size != SIZE)
    assert all("at 448 × 352" in line and "2 times as large" in line for line in told)


@pytest.mark.slow
def test_file_is_that_of_a_checkpoint_with_this_iou(filtered: Checkpoint, tmp_path: Path) -> None:
    out, same = tmp_path / "out.onnx", tmp_path / "same.onnx"
    report = export_onnx(filtered, out, ExportOptions(dedup_iou=0.7))
    assert report.parity.passed
    assert report.spec.provenance["deployed_dedup_iou"] == "0.7"
    model = dataclasses.replace(filtered.model, deployed_dedup_iou=0.7)
    export_onnx(dataclasses.replace(filtered, model=model), same)
    images = load_images(None)[:2]
    asked, wanted = OnnxRuntimeBackend(out), OnnxRuntimeBackend(same)
    assert compare(asked, wanted, images).score_difference == 0
    assert with_dedup_iou(filtered, 0.8) is filtered, "its own: nothing changes"
    usual = TorchBackend(filtered.build(), make_export_spec(filtered, ExportOptions()))
    assert not compare(asked, usual, images).passed
    assert "deployed_dedup_iou" not in usual.spec.provenance


def test_verify_runs_the_checkpoint_as_exported(filtered: Checkpoint, tmp_path: Path) -> None:
    weights, out = tmp_path / "model.safetensors", tmp_path / "model.onnx"
    save_checkpoint(filtered, weights)
    report = export_onnx(filtered, out, ExportOptions(dedup_iou=0.7))
    with open_pair(Side(weights), Side(out)) as (first, second):
        assert compare(first, second, load_images(None)[:1]).passed
        # The layers of both are compared after this.
        assert deployed_like(filtered, first.spec).model.deployed_dedup_iou == 0.7
        assert first.spec.provenance == report.spec.provenance


def test_thresholds_say_how_they_were_measured(filtered: Checkpoint) -> None:
    changed = with_dedup_iou(dataclasses.replace(filtered, thresholds=measured(7)), 0.5)
    assert changed.thresholds is not None
    where = "toys val, 3 images, IoU 0.5, with dedup IoU 0.8"
    assert (changed.thresholds.measured_on, changed.thresholds.best_f1) == (where, 0.42)


def test_no_iou(filtered: Checkpoint, checkpoint: Checkpoint) -> None:
    for iou in (0.0, -0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match=r"dedup IoU is .*, expected more than 0, up to 1"):
            with_dedup_iou(filtered, iou)
    with pytest.raises(InputError, match="trained without a duplicate filter: leave it out"):
        with_dedup_iou(checkpoint, 0.7)


def test_the_dedup_iou_on_the_command_line(
    run: Callable[..., Any], filtered: Checkpoint, tmp_path: Path
) -> None:
    weights = tmp_path / "model.safetensors"
    save_checkpoint(filtered, weights)
    done = run("export", weights, "-o", tmp_path / "model.onnx", "--dedup-iou", "0.7")
    assert done.exit_code == 0
    assert "dedup IoU 0.7" in done.stderr
