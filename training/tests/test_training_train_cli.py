"""`nmsfree train` as a user runs it."""

import json
import shutil
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from nmsfree.errors import CheckpointError, DataError, InputError, NmsfreeError
from nmsfree_training.checkpoint import load_checkpoint
from nmsfree_training.cli import train

runner = CliRunner()
app = typer.Typer()
app.command()(train)


def run(*arguments: object) -> Result:
    return runner.invoke(app, [str(a) for a in arguments])


def complaint(kind: type[NmsfreeError], *arguments: object) -> str:
    error = run(*arguments).exception
    assert isinstance(error, kind), error
    assert "\n" not in str(error)
    return str(error)


@pytest.fixture(scope="module")
def finished(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "run"
    small = ("--epochs", 1, "--batch-size", 6, "--workers", 0, "--seed", 4)
    result = run("--data", digits, "--model", "fcos_o2o_nano", "--out", out, *small)
    assert result.exit_code == 0, result.output
    assert "fcos_o2o_nano: 12 images, 10 classes, 1 epochs of batch 6 on cpu, fp32" in result.stderr
    assert "best.safetensors" in result.stderr and result.stdout == ""
    return out


def test_a_run_leaves_a_checkpoint_that_says_how_it_was_made(finished: Path) -> None:
    loaded = load_checkpoint(finished / "best.safetensors")
    assert loaded.model.name == "fcos_o2o_nano"
    assert loaded.provenance["seed"] == "4"
    assert loaded.provenance["command"].startswith("nmsfree")
    assert {"machine", "torch", "epoch", "AP"} <= loaded.provenance.keys()
    assert len((finished / "metrics.jsonl").read_text().splitlines()) == 1


def test_an_occupied_folder_is_left_alone(finished: Path, digits: Path) -> None:
    before = (finished / "last.safetensors").read_bytes()
    message = complaint(InputError, "--data", digits, "--out", finished)
    assert "go on with --resume, or choose --out" in message
    assert (finished / "last.safetensors").read_bytes() == before


def test_resume_adds_epochs(finished: Path, digits: Path, tmp_path: Path) -> None:
    out = shutil.copytree(finished, tmp_path / "run")
    options = ("--data", digits, "--out", out, "--batch-size", 6, "--workers", 0, "--seed", 4)
    more = run(*options, "--model", "fcos_o2o_nano", "--epochs", 2, "--val", "", "--resume")
    assert more.exit_code == 0, more.output
    lines = (out / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    assert "other settings" in complaint(CheckpointError, *options, "--resume")


def test_wrong_options(digits: Path, tmp_path: Path) -> None:
    def refused(*arguments: object) -> str:
        out = tmp_path / "run"
        message = complaint(InputError, "--data", digits, "--out", out, *arguments)
        assert not out.exists()
        return message

    assert "'yolo' is unknown, expected one of: fcos_rt_r18_3x" in refused("--model", "yolo")
    assert "precision is 'fp8', expected fp32 or bf16" in refused("--precision", "fp8")
    assert "expected group, batch or batch_per_level" in refused("--head-norm", "layer")
    assert "runs on: cpu, cuda" in refused("--device", "tpu")
    for rate in ("0", "-1", "nan", "inf"):
        assert "expected a number above 0" in refused("--learning-rate", rate)
    assert "go on" not in refused("--model", "")
    assert run("--data", digits, "--epochs", 0).exit_code == 2
    assert run("--model", "fcos_rt_nano").exit_code == 2  # no --data


def test_missing_files(digits: Path, tmp_path: Path) -> None:
    assert "is not a folder" in complaint(DataError, "--data", tmp_path / "none")
    message = complaint(DataError, "--data", digits, "--split", "test")
    assert "splits found" in message and "crowd, train, val" in message
    assert "instances_other.json is missing" in complaint(
        DataError, "--data", digits, "--val", "other"
    )
    out = ("--out", tmp_path / "run")
    imagenet = ("--imagenet", tmp_path / "resnet18.pth")
    message = complaint(CheckpointError, "--data", digits, *out, *imagenet)
    assert "no such file" in message
    assert "no such file" in complaint(CheckpointError, "--data", digits, *out, "--resume")
    assert not (tmp_path / "run").exists()


def test_overrides_reach_the_run(digits: Path, tmp_path: Path) -> None:
    options = ("--workers", 0, "--val", "", "--epochs", 1, "--batch-size", 12)
    changes = ("--head-norm", "batch", "--learning-rate", 1e-4, "--precision", "bf16")
    result = run("--data", digits, "--out", tmp_path / "run", *options, *changes)
    assert result.exit_code == 0, result.output
    loaded = load_checkpoint(tmp_path / "run" / "last.safetensors")
    assert loaded.model.head_norm == "batch"
    record = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert record["lr"] == pytest.approx(1e-4 * 0.01)  # first iteration of the warm-up
    assert "AP" not in record
