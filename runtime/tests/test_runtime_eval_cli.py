"""`nmsfree eval` as a user runs it, on an ONNX file and without torch."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import typer
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner, Result

from nmsfree.cli.eval import Request, eval_command, run_name
from nmsfree.datasets.digits.scenes import CLASS_NAMES, write_digits
from nmsfree.datasets.formats.coco import load_coco
from nmsfree.errors import DataError, InputError, MissingExtraError
from nmsfree.spec import METADATA_KEY, ModelSpec, Thresholds
from nmsfree.tiles import Tiling

app = typer.Typer()
app.command()(eval_command)

# Runs the command where nothing of ours but the runtime, and no torch, can be imported.
WITHOUT_TORCH = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "nmsfree_training", "nmsfree_export"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
import typer
from nmsfree.cli.eval import eval_command
app = typer.Typer()
app.command()(eval_command)
app(standalone_mode=False)
assert "torch" not in sys.modules
"""


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "digits"
    write_digits(folder, train=0, val=1, overlap=2)
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


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs write to runs/eval of the current folder."""
    monkeypatch.chdir(tmp_path)


def run(model: Path, digits: Path, *options: str) -> Result:
    return CliRunner().invoke(app, [str(model), "--data", str(digits), *options])


def refused(model: Path, digits: Path, *options: str) -> Exception:
    outcome = run(model, digits, *options)
    assert isinstance(outcome.exception, Exception)
    assert outcome.exit_code != 0
    assert "\n" not in str(outcome.exception)
    return outcome.exception


def test_tables_and_sentences_are_printed(digits: Path, constant_model: Path) -> None:
    outcome = run(constant_model, digits, "--no-plots")
    assert outcome.exit_code == 0, outcome.output
    lines = outcome.stdout.splitlines()
    objects = len(load_coco(digits, "val").samples[0].labels)
    assert lines[0] == f"constant.onnx on val: 1 images, {objects} objects"
    assert "100.0   100.0   100.0" in outcome.stdout
    subjects = [line.split("  ")[0] for line in lines[-14:]]
    wanted = ["NMS", "Duplicates", "Threshold", "Calibration", "Rows"]
    assert [subject for subject in subjects if subject in wanted] == wanted
    assert not Path("runs").exists()


def test_tiles_are_measured_and_named(digits: Path, constant_model: Path) -> None:
    """The only picture is as large as a tile of 256; smaller tiles get wrong answers."""
    for tile, ap in ((256, 1.0), (128, 0.0)):
        options = ("--tile", str(tile), "--no-plots", "--json", "report.json")
        outcome = run(constant_model, digits, *options)
        assert outcome.exit_code == 0, outcome.output
        report = json.loads(Path("report.json").read_text(encoding="utf-8"))
        assert report["AP"] == pytest.approx(ap, abs=0.2)
        assert (report["tile"], report["overlap"], report["cap_hits"]) == (tile, None, None)
        assert f"on val, tiles of {tile} pixels: 1 images" in outcome.stdout
    error = refused(constant_model.with_suffix(".pth"), digits, "--protocol=published", "--tile=64")
    assert isinstance(error, InputError) and "--tile and --size are for one" in str(error)


def test_pictures_and_summary_land_in_a_folder_of_their_own(
    digits: Path, constant_model: Path
) -> None:
    options = ("--split", "overlap", "--json", "new/report.json", "--precision", "0.25")
    outcome = run(constant_model, digits, *options)
    folder = Path(f"runs/eval/{constant_model.parent.name}-constant-onnx-digits-overlap")
    assert "on overlap" in outcome.stdout
    assert f"pictures and summary: {folder}" in outcome.stderr
    names = {"confusion_matrix.png", "pr_curve.png", "f1_curve.png", "calibration.png"}
    assert {p.name for p in folder.iterdir()} == names | {"summary.md", "summary.json"}
    assert (folder / "summary.json").read_bytes() == Path("new/report.json").read_bytes()
    assert "constant.onnx on overlap" in (folder / "summary.md").read_text("utf-8")
    report = json.loads((folder / "summary.json").read_text("utf-8"))
    assert report["images"] == 2
    assert report["AP"] < 0.5  # the answers to another picture
    assert report["thresholds"]["target_precision"] == 0.25


def test_json_alone_goes_to_stdout(digits: Path, constant_model: Path) -> None:
    outcome = run(constant_model, digits, "--split", "val", "--json", "-", "--no-plots")
    report = json.loads(outcome.stdout)
    assert report["AP"] == report["AP_with_nms"] == pytest.approx(1)
    assert (report["split"], report["images"], report["protocol"]) == ("val", 1, "deployed")
    assert (report["model"], report["head"]) == ("constant", "o2o")
    assert report["cap_hits"] == 1
    assert report["sha256"] == hashlib.sha256(constant_model.read_bytes()).hexdigest()
    assert report["seconds"] > 0
    thresholds = msgspec.convert(report["thresholds"], Thresholds)
    assert thresholds.measured_on == "digits val, 1 images, IoU 0.5"
    assert len(thresholds.best_f1_per_class) == len(report["class_names"]) == 10


@pytest.mark.slow
def test_an_onnx_file_needs_no_torch(digits: Path, constant_model: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, str(constant_model), "--data", str(digits)]
    done = subprocess.run(
        [*command, "--json", "r.json"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(Path("r.json").read_text("utf-8"))["AP"] == pytest.approx(1)
    name = f"{constant_model.parent.name}-constant-onnx-digits-val"
    assert Path(f"runs/eval/{name}/pr_curve.png").is_file()


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ("--protocol mine", InputError, "protocol is 'mine', expected deployed or published"),
        ("--protocol published", InputError, "an ONNX file has one input size.* deployed"),
        ("--plots a --no-plots", InputError, "exclude one another"),
        ("--split train", DataError, "overlap, val"),
    ],
)
def test_wrong_options(
    digits: Path, constant_model: Path, options: str, kind: type[Exception], message: str
) -> None:
    error = refused(constant_model, digits, *options.split())
    assert isinstance(error, kind) and re.search(message, str(error))


def test_what_is_not_installed_is_told_before_the_work(
    digits: Path, constant_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    error = refused(constant_model, digits)
    assert isinstance(error, MissingExtraError)
    assert 'pip install "nmsfree[eval]"' in str(error)
    assert run(constant_model, digits, "--no-plots").exit_code == 0
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    assert isinstance(refused(constant_model, digits, "--no-plots"), MissingExtraError)


def test_no_run_writes_over_another(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of one name in two folders, named from anywhere; two datasets, splits, protocols."""
    (tmp_path / "runs/first").mkdir(parents=True)
    for file, data, options, name in (
        ("runs/first/best.onnx", "digits", {}, "first-best-onnx-digits-val"),
        ("runs/second/best.onnx", "digits", {}, "second-best-onnx-digits-val"),
        ("runs/first/best.onnx", "copy", {"split": "test"}, "first-best-onnx-copy-test"),
        ("runs/first/a.pth", "a", {"protocol": "published"}, "first-a-pth-a-val-published"),
        ("runs/first/a.onnx", "a", {"tiling": Tiling(64)}, "first-a-onnx-a-val-tile64"),
    ):
        assert run_name(Request(file=Path(file), data=digits, **options), data) == name
    monkeypatch.chdir("runs/first")
    request = Request(file=Path("best.onnx"), data=digits)
    assert run_name(request, "digits") == "first-best-onnx-digits-val"


def test_outputs_never_replace_an_input(digits: Path, constant_model: Path) -> None:
    annotations = digits / "annotations/instances_val.json"
    for target in (constant_model, annotations, load_coco(digits, "val").samples[0].path):
        before = target.read_bytes()
        assert "is an input" in str(refused(constant_model, digits, "--json", str(target)))
        assert target.read_bytes() == before
    assert "empty name" in str(refused(constant_model, digits, "--json", ""))
    Path("file").touch()
    assert "is no folder" in str(refused(constant_model, digits, "--plots", "file/x"))


def test_plots_that_cannot_be_written_do_not_cost_the_figures(
    digits: Path, constant_model: Path
) -> None:
    Path("here/it is/pr_curve.png").mkdir(parents=True)
    outcome = run(constant_model, digits, "--plots", "here/it is", "--json", "figures.json")
    assert outcome.exit_code == 1
    assert "100.0   100.0   100.0" in outcome.stdout
    assert "error: here/it is/pr_curve.png: cannot be written" in outcome.stderr
    assert json.loads(Path("figures.json").read_text())["AP"] == pytest.approx(1)
    assert not Path("runs").exists()
