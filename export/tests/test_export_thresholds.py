"""Measured thresholds on their way into the ONNX file, and the same figures from both files."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from nmsfree import Detector, InputError, ModelSpec
from nmsfree.cli.eval import eval_command
from nmsfree.datasets.digits.scenes import write_digits
from nmsfree.datasets.formats.coco import load_coco
from nmsfree.spec import FORMAT_VERSION, Thresholds
from nmsfree_export.cli.export import export as export_command
from nmsfree_export.export import DEFAULT_THRESHOLD, ExportOptions, make_export_spec
from nmsfree_training.weights.checkpoint import Checkpoint

WEIGHTS = Path(__file__).parents[2] / "weights" / "fcos_e2e_nano.safetensors"
FIGURES = ["AP", "AP50", "AP75", "AP_with_nms", "AR100", "F1", "F1_with_nms", "calibration_error"]


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


def test_thresholds_of_the_checkpoint_are_taken(known: Checkpoint) -> None:
    spec = make_export_spec(known, ExportOptions())
    assert spec.thresholds == known.thresholds
    assert spec.threshold == 0.42
    assert spec.format_version == FORMAT_VERSION


def test_without_thresholds_nothing_changes(checkpoint: Checkpoint) -> None:
    spec = make_export_spec(checkpoint, ExportOptions())
    assert (spec.thresholds, spec.threshold) == (None, DEFAULT_THRESHOLD)


def test_thresholds_belong_to_one_head(known: Checkpoint) -> None:
    """They were measured on the head that is deployed: the scores of the other differ."""
    spec = make_export_spec(known, ExportOptions(head="o2m"))
    assert (spec.thresholds, spec.threshold) == (None, DEFAULT_THRESHOLD)


def test_an_explicit_threshold_wins(known: Checkpoint) -> None:
    spec = make_export_spec(known, ExportOptions(threshold=0.7))
    assert (spec.threshold, spec.thresholds) == (0.7, known.thresholds)


def test_the_default_is_never_below_the_floor(known: Checkpoint) -> None:
    assert make_export_spec(known, ExportOptions(score_floor=0.6)).threshold == 0.6
    with pytest.raises(InputError, match=r"threshold is 0\.5, expected the score floor \(0\.6\)"):
        make_export_spec(known, ExportOptions(score_floor=0.6, threshold=0.5))


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
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder: a checkpoint evaluated, exported with what was measured, and evaluated again."""
    folder = tmp_path_factory.mktemp("both")
    write_digits(folder / "digits", train=0, val=24, crowd=0)
    app = typer.Typer()
    app.command("eval")(eval_command)
    app.command("export")(export_command)
    onnx = folder / "nano.onnx"
    data = ["--data", str(folder / "digits"), "--no-plots", "--threads", "1"]
    for command in (
        ["eval", str(WEIGHTS), *data, "--json", str(folder / "checkpoint.json")],
        ["export", str(WEIGHTS), "-o", str(onnx), "--thresholds", str(folder / "checkpoint.json")],
        ["eval", str(onnx), *data, "--json", str(folder / "onnx.json")],
    ):
        outcome = CliRunner().invoke(app, command)
        assert outcome.exit_code == 0, (outcome.output, outcome.exception)
        if command[0] == "export":
            assert "best F1 on digits val, 24 images, IoU 0.5" in outcome.output
    return folder


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_checkpoint_and_onnx_give_the_same_figures(both: Path) -> None:
    checkpoint, onnx = read(both / "checkpoint.json"), read(both / "onnx.json")
    assert 0.3 < checkpoint["AP"] < 0.99, "there is something to compare"
    for name in FIGURES:
        assert onnx[name] == pytest.approx(checkpoint[name], abs=0.001), name
    for ours, theirs in zip(onnx["per_class"], checkpoint["per_class"], strict=True):
        assert ours["AP"] == pytest.approx(theirs["AP"], abs=0.001)
    assert onnx["cap_hits"] == checkpoint["cap_hits"]
    assert onnx["file"] != checkpoint["file"]


def test_the_onnx_file_carries_what_was_measured(both: Path) -> None:
    report = read(both / "checkpoint.json")
    with Detector(both / "nano.onnx", threads=1) as detector:
        spec: ModelSpec = detector.spec
        assert spec.thresholds is not None
        assert spec.thresholds.to_json() == report["thresholds"]
        assert spec.threshold == report["thresholds"]["best_f1"]
        sample = load_coco(both / "digits", "val").samples[0]
        found = detector(sample.path, threshold="per-class")
        lowest = spec.thresholds.for_best_f1()
        assert len(found) > 0
        assert all(d.confidence > lowest[d.class_id] for d in found)
