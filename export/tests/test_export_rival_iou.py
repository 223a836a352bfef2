"""`nmsfree export --rival-iou`: another τ for a network that is trained already."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from nmsfree import InputError
from nmsfree.backends import OnnxRuntimeBackend
from nmsfree.spec import Thresholds
from nmsfree_export.cli.export import export as export_command
from nmsfree_export.export import ExportOptions, export_onnx
from nmsfree_export.verify.compare import Side, open_pair
from nmsfree_export.verify.parity import compare, load_images
from nmsfree_training.config import ModelConfig, fcos_e2e_nano
from nmsfree_training.weights.checkpoint import (
    Checkpoint,
    deployed_like,
    save_checkpoint,
    with_rival_iou,
)

SIZE = (224, 160)
Make = Callable[..., Checkpoint]


def config(training: float = 0.8, deployed: float = 0.0) -> ModelConfig:
    model = fcos_e2e_nano(7).model
    return dataclasses.replace(model, rival_iou=training, deployed_rival_iou=deployed)


@pytest.fixture(scope="module")
def made(make_checkpoint: Make) -> Checkpoint:
    return make_checkpoint(config(), SIZE)


def test_file_is_that_of_a_checkpoint_with_this_iou(made: Checkpoint, tmp_path: Path) -> None:
    out, same, other = (tmp_path / f"{name}.onnx" for name in ("out", "same", "other"))
    report = export_onnx(made, out, ExportOptions(rival_iou=0.7))
    assert report.parity.passed
    assert report.spec.provenance["deployed_rival_iou"] == "0.7"
    model = dataclasses.replace(made.model, deployed_rival_iou=0.7)
    export_onnx(dataclasses.replace(made, model=model), same)
    export_onnx(made, other, ExportOptions(rival_iou=0.8))  # its own: nothing changes
    assert made.model.deployed_rival_iou == 0
    images = load_images(None)[:2]
    asked, wanted, usual = (OnnxRuntimeBackend(path) for path in (out, same, other))
    assert compare(asked, wanted, images).score_difference == 0
    assert not compare(asked, usual, images).passed
    assert "deployed_rival_iou" not in usual.spec.provenance


def test_verify_runs_the_checkpoint_as_exported(made: Checkpoint, tmp_path: Path) -> None:
    weights, out = tmp_path / "model.safetensors", tmp_path / "model.onnx"
    save_checkpoint(made, weights)
    report = export_onnx(made, out, ExportOptions(rival_iou=0.7))
    first, second = open_pair(Side(weights), Side(out))
    assert compare(first, second, load_images(None)[:1]).passed
    # The layers of both are compared after this.
    assert deployed_like(made, first.spec).model.deployed_rival_iou == 0.7
    assert first.spec.provenance == report.spec.provenance


def test_thresholds_say_how_they_were_measured(made: Checkpoint) -> None:
    measured = Thresholds(
        best_f1=0.4,
        best_f1_per_class=(0.4,) * 7,
        at_precision=None,
        at_precision_per_class=(None,) * 7,
        recall_at_precision=None,
        recall_at_precision_per_class=(None,) * 7,
        measured_on="toys val",
    )
    changed = with_rival_iou(dataclasses.replace(made, thresholds=measured), 0.5)
    assert changed.thresholds is not None
    assert changed.thresholds.measured_on == "toys val, with rival IoU 0.8"
    assert changed.thresholds.best_f1 == 0.4


@pytest.mark.parametrize("iou", [0.0, -0.1, 1.1, float("nan")])
def test_no_iou(made: Checkpoint, iou: float) -> None:
    with pytest.raises(InputError, match=r"rival IoU is .*, expected more than 0, up to 1"):
        with_rival_iou(made, iou)


def test_network_without_the_filter(make_checkpoint: Make) -> None:
    plain = make_checkpoint(config(training=0.0), SIZE)
    with pytest.raises(InputError, match="trained without a rival filter: leave it out"):
        with_rival_iou(plain, 0.7)


def test_command(made: Checkpoint, tmp_path: Path) -> None:
    weights, out = tmp_path / "model.safetensors", tmp_path / "model.onnx"
    save_checkpoint(made, weights)
    app = typer.Typer()
    app.command()(export_command)
    done = CliRunner().invoke(app, [str(weights), "-o", str(out), "--rival-iou", "0.7"])
    assert done.exit_code == 0
    assert "rival IoU 0.7" in done.stderr
    done = CliRunner().invoke(
        app, [str(weights), "-o", str(out), "--rival-iou", "0.7", "--head", "o2m"]
    )
    assert isinstance(done.exception, InputError)
    assert str(done.exception) == (
        "rival IoU is for the one-to-one head, but head is o2m: leave it out"
    )
