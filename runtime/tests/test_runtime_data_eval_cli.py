"""`nmsfree data digits` and `nmsfree eval` as a user runs them."""

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import typer
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from nmsfree.data.coco import load_coco
from nmsfree.data.digits import CLASS_NAMES
from nmsfree.data_cli import app as data_app
from nmsfree.errors import DataError, InputError
from nmsfree.eval_cli import eval_command
from nmsfree.images import read_image
from nmsfree.spec import METADATA_KEY, ModelSpec

runner = CliRunner()
eval_app = typer.Typer()
eval_app.command()(eval_command)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "digits"
    arguments = ["digits", "--out", str(folder), "--train", "0", "--val", "1", "--crowd", "2"]
    outcome = runner.invoke(data_app, arguments)
    assert outcome.exit_code == 0, outcome.output
    assert outcome.stdout == ""
    assert "wrote val, crowd" in outcome.stderr
    return folder


@pytest.fixture(scope="module")
def constant_model(digits: Path) -> Path:
    """An ONNX file that always gives the right answer for the only picture of `val`."""
    sample = load_coco(digits, "val").samples[0]
    count = len(sample.labels)
    outputs = {
        "num_detections": np.array([[count]], np.int32),
        "detection_boxes": sample.boxes[None],
        "detection_scores": np.linspace(0.9, 0.5, count, dtype=np.float32)[None],
        "detection_classes": sample.labels[None].astype(np.int32),
    }
    nodes = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))
        for name, value in outputs.items()
    ]
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for name, v in outputs.items()
    ]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, [1, 256, 256, 3])
    graph = helper.make_graph(nodes, "constant", [images], infos)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    spec = ModelSpec("constant", "o2o", 256, 256, 1, CLASS_NAMES, tuple(range(10)), top_k=count)
    helper.set_model_props(model, {METADATA_KEY: spec.to_json()})
    path = digits.parent / "constant.onnx"
    onnx.save(model, path)
    return path


def test_complete_set_is_recognised(digits: Path) -> None:
    arguments = ["digits", "--out", str(digits), "--train", "0", "--val", "1", "--crowd", "2"]
    outcome = runner.invoke(data_app, arguments)
    assert outcome.exit_code == 0
    assert "complete already" in outcome.stderr


def test_preview_shows_the_scenes(tmp_path: Path) -> None:
    outcome = runner.invoke(data_app, ["digits", "--preview", str(tmp_path / "new/sheet.png")])
    assert outcome.exit_code == 0
    picture = read_image(tmp_path / "new/sheet.png")
    assert picture.shape == (1536, 2048, 3)
    assert picture.std() > 20


@pytest.mark.parametrize("name", ["sheet", "sheet.txt"])
def test_preview_needs_a_picture_format(tmp_path: Path, name: str) -> None:
    outcome = runner.invoke(data_app, ["digits", "--preview", str(tmp_path / name)])
    assert isinstance(outcome.exception, InputError)
    assert "expected .png or .jpg" in str(outcome.exception)


def test_nothing_to_do_and_wrong_numbers() -> None:
    assert isinstance(runner.invoke(data_app, ["digits"]).exception, InputError)
    outcome = runner.invoke(data_app, ["digits", "--out", "unused", "--train", "-1"])
    assert outcome.exit_code == 2
    assert not Path("unused").exists()


def test_eval_prints_a_table(digits: Path, constant_model: Path) -> None:
    outcome = runner.invoke(eval_app, [str(constant_model), "--data", str(digits)])
    assert outcome.exit_code == 0, outcome.output
    assert "constant.onnx on val, 1 images" in outcome.stdout
    assert "100.0" in outcome.stdout


def test_eval_writes_json_to_stdout_alone(digits: Path, constant_model: Path) -> None:
    outcome = runner.invoke(
        eval_app, [str(constant_model), "--data", str(digits), "--split", "val", "--json", "-"]
    )
    report = json.loads(outcome.stdout)
    assert report["AP"] == pytest.approx(1)
    assert (report["split"], report["images"]) == ("val", 1)
    assert report["sha256"] == hashlib.sha256(constant_model.read_bytes()).hexdigest()
    assert report["seconds"] > 0


def test_eval_writes_a_json_file_beside_the_table(
    digits: Path, constant_model: Path, tmp_path: Path
) -> None:
    target = tmp_path / "new" / "report.json"
    arguments = [str(constant_model), "--data", str(digits), "--split", "crowd"]
    outcome = runner.invoke(eval_app, [*arguments, "--json", str(target)])
    assert "on crowd" in outcome.stdout
    report = json.loads(target.read_text(encoding="utf-8"))
    assert report["images"] == 2
    assert report["AP"] < 0.5  # the answers to another picture


def test_eval_names_the_splits_there_are(digits: Path, constant_model: Path) -> None:
    arguments = [str(constant_model), "--data", str(digits), "--split", "train"]
    outcome = runner.invoke(eval_app, arguments)
    assert isinstance(outcome.exception, DataError)
    assert "crowd, val" in str(outcome.exception)


def test_eval_refuses_a_model_of_other_classes(
    digits: Path, constant_model: Path, tmp_path: Path
) -> None:
    model = onnx.load(constant_model)
    spec = ModelSpec.from_json(model.metadata_props[0].value)
    other = dataclasses.replace(spec, class_names=tuple("abcdefghij"))
    model.metadata_props[0].value = other.to_json()
    onnx.save(model, tmp_path / "other.onnx")
    outcome = runner.invoke(eval_app, [str(tmp_path / "other.onnx"), "--data", str(digits)])
    assert isinstance(outcome.exception, DataError)
    assert "only in the model: a, b, c, d, e, …" in str(outcome.exception)
