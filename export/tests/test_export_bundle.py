"""Folders for other hosts, read by the hosts' own definitions and held against the real files."""

import configparser
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import export_foreign as foreign
import pytest
import typer
from onnx import ModelProto
from typer.testing import CliRunner

from nmsfree import GateError, InputError
from nmsfree.testing.tensorrt import write_fake_engine
from nmsfree_export.adopt.adopt import adopt_onnx
from nmsfree_export.bundle.deepstream import bundle_deepstream
from nmsfree_export.bundle.model import read_model
from nmsfree_export.bundle.triton import CONFIG, bundle_triton, check
from nmsfree_export.cli.bundle import bundle
from nmsfree_export.convert import convert_onnx
from nmsfree_export.export import ExportOptions, export_onnx
from nmsfree_export.graph.contract import content_of, read_description
from nmsfree_export.graph.inputs import with_input
from nmsfree_export.options import PrecisionOptions
from nmsfree_training.weights.checkpoint import Checkpoint


@pytest.fixture(scope="module")
def files(
    nano: Checkpoint,
    checkpoint: Checkpoint,
    published: Checkpoint,
    digits: Path,
    trace: Callable[..., ModelProto],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """Files of every kind of input and batch, an adopted one, and an engine."""
    folder = tmp_path_factory.mktemp("hosts")
    models = {"nano": trace(nano), "dynamic": trace(checkpoint, batch=None)}
    models["r18"] = trace(published)
    for name, fields in (
        ("any", {"input": "any"}),
        ("source", {"input": "any", "source": (90, 160)}),
        ("floats", {"input": "nchw-float"}),
    ):
        spec = replace(read_description(name, models["nano"]), **fields)  # type: ignore[arg-type]
        models[name] = ModelProto.FromString(content_of(with_input(models["nano"], spec), spec))
    found = {name: folder / f"{name}.onnx" for name in models}
    for name, model in models.items():
        found[name].write_bytes(model.SerializeToString())
    theirs = foreign.save(foreign.yolo26(), folder / "theirs.onnx")
    found["adopted"] = adopt_onnx(theirs, folder / "adopted.onnx").path
    half = convert_onnx(found["adopted"], folder / "half.onnx", PrecisionOptions("fp16"))
    found["half"] = half.path
    options = ExportOptions(precision="int8", target="tensorrt", calibrate=digits)
    found["int8"] = export_onnx(nano, folder / "int8.onnx", options).path
    for name, batch in (("engine", (1, 1, 1)), ("engines", (1, 4, 8))):
        found[name] = folder / f"{name}.engine"
        spec = read_description(name, models["nano"])
        spec = spec if name == "engine" else replace(spec, batch=None)
        write_fake_engine(found[name], spec, batch=batch, builder="tensorrt")
    return found


TRITON = ["nano", "r18", "dynamic", "any", "source", "floats", "adopted", "half", "int8"]
TRITON += ["engine", "engines"]


@pytest.mark.parametrize("name", TRITON)
def test_triton(name: str, files: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("tritonclient.grpc")
    model = read_model(files[name])
    folder = bundle_triton(model, tmp_path, gpu=False, instances=2)
    check(folder, model)
    text = (folder / CONFIG).read_text()
    assert ("dynamic_batching" in text) == (name in ("dynamic", "engines"))
    assert ("KIND_GPU" in text) == name.startswith("engine")
    file = "model.plan" if name.startswith("engine") else "model.onnx"
    assert (folder / "1" / file).read_bytes() == files[name].read_bytes()
    assert (folder / "labels.txt").read_text().split("\n")[:-1] == [*model.spec.class_names]
    compile((tmp_path / "client.py").read_text(), "client.py", "exec")
    other = read_model(files["nano" if name == "floats" else "floats"])
    with pytest.raises(GateError, match=r"max_batch_size is|input is"):
        check(folder, other)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("TYPE_UINT8 dims", "TYPE_FP32 dims", r"input is .*TYPE_FP32"),
        ("max_batch_size: 0", "max_batch_size: 8", r"max_batch_size is 8, the file takes 1"),
        ("100, 4]", "99, 4]", r"output is .*99, 4"),
        ("name: ", "nome: ", r"no configuration of Triton"),
        ('input_data_file: "canary"', 'input_data_file: "../labels.txt"', r"its warm-up is"),
    ],
)
def test_a_wrong_configuration_is_refused(
    old: str, new: str, message: str, files: dict[str, Path], tmp_path: Path
) -> None:
    pytest.importorskip("tritonclient.grpc")
    model = read_model(files["nano"])
    folder = bundle_triton(model, tmp_path, gpu=False, instances=1)
    text = (folder / CONFIG).read_text()
    assert old in text
    (folder / CONFIG).write_text(text.replace(old, new))
    with pytest.raises(GateError, match=message):
        check(folder, model)


def test_the_client_of_triton_answers(files: dict[str, Path], tmp_path: Path) -> None:
    """With a server's place taken by the file itself."""
    cv2 = pytest.importorskip("cv2")
    from nmsfree.datasets.digits.scenes import make_scene

    cv2.imwrite(str(tmp_path / "scene.png"), make_scene("val", 0).image)
    answers = []
    for name in ("nano", "any", "floats"):
        bundle_triton(read_model(files[name]), tmp_path / name, gpu=False, instances=1)
        package = tmp_path / name / "tritonclient"
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "http.py").write_text(SERVER.format(path=str(files[name])))
        words = [sys.executable, str(tmp_path / name / "client.py"), str(tmp_path / "scene.png")]
        done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=60)
        answers.append(done.stdout)
    assert len(answers[0].splitlines()) >= 3 and answers == answers[:1] * 3


SERVER = """
import onnxruntime
class InferInput:
    def __init__(self, name, shape, kind): self.shape = shape
    def set_data_from_numpy(self, value): self.value = value
class InferenceServerClient:
    def __init__(self, url): pass
    def infer(self, model, inputs):
        session = onnxruntime.InferenceSession({path!r})
        names = [o.name for o in session.get_outputs()]
        values = session.run(names, {{"images": inputs[0].value}})
        class Answer:
            as_numpy = staticmethod(dict(zip(names, values)).__getitem__)
        return Answer
"""


def test_deepstream(files: dict[str, Path], tmp_path: Path) -> None:
    config = configparser.ConfigParser()
    config.read(bundle_deepstream(read_model(files["floats"]), tmp_path))
    keys = dict(config["property"])
    spec = read_model(files["floats"]).spec
    assert keys["infer-dims"] == f"3;{spec.height};{spec.width}"
    assert keys["parse-bbox-func-name"].endswith("EfficientNMS") and keys["cluster-mode"] == "4"
    assert (keys["maintain-aspect-ratio"], keys["symmetric-padding"]) == ("1", "0")
    assert (tmp_path / keys["onnx-file"]).read_bytes() == files["floats"].read_bytes()
    assert float(keys["net-scale-factor"]) == 1 / 255
    for name, message in (("nano", "its input is model"), ("engine", "is an engine")):
        with pytest.raises(InputError, match=rf"{message}, DeepStream gives planar floats: .*nchw"):
            bundle_deepstream(read_model(files[name]), tmp_path / name)
    assert not (tmp_path / "nano").exists()


def test_an_engine_of_tensorrt_rtx_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    spec = read_model(files["nano"]).spec
    write_fake_engine(tmp_path / "rtx.engine", spec, batch=(1, 1, 1))
    with pytest.raises(InputError, match=r"--with tensorrt`, or give the ONNX file"):
        read_model(tmp_path / "rtx.engine")


def test_the_command(files: dict[str, Path], tmp_path: Path) -> None:
    app = typer.Typer()
    app.command("bundle")(bundle)
    words: list[Any] = ["triton", files["any"], "-o", tmp_path / "repository"]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.exception
    assert "config.pbtxt" in done.stderr and "client.py" in done.stderr
    words = ["deepstream", files["floats"], "-o", tmp_path / "stream", "--gpu"]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert isinstance(done.exception, InputError) and "are for triton" in str(done.exception)
