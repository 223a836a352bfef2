"""Files like those of other projects, adopted: recognised, the same rows, and refused when not."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import export_foreign as foreign
import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from nmsfree import Detector, GateError, InputError, ModelError
from nmsfree.cli.options import command
from nmsfree.datasets.dataset import DetectionDataset
from nmsfree.datasets.digits.scenes import write_digits
from nmsfree.datasets.formats.folder import load_dataset
from nmsfree_export.adopt import adopt as adopting
from nmsfree_export.adopt.adopt import ADOPT_DEFAULTS, AdoptOptions, adopt_onnx
from nmsfree_export.cli.adopt import AdoptCommand, run_adopt
from nmsfree_export.verify.parity import bundled_pictures

NAMES = ",".join(foreign.NAMES)
LAST = AdoptOptions(names=NAMES, background="last")
TOLD = AdoptOptions(
    names=NAMES, resize="stretch-antialiased", normalize="unit", boxes="cxcywh-share"
)
# Each with the options that must be told, and what is concluded: family, resize, boxes, kind.
FAMILIES: dict[str, tuple[Callable[[], ModelProto], AdoptOptions, str]] = {
    "A": (foreign.yolo_rows, AdoptOptions(), "Ultralytics YOLO letterbox center unit"),
    "D": (foreign.rtdetr_rows, AdoptOptions(), "Ultralytics RT-DETR stretch unit"),
    "E": (foreign.rtdetr_dense, AdoptOptions(), "Ultralytics RT-DETR stretch unit"),
    "G": (foreign.sorted_triple, AdoptOptions(names=NAMES), "D-FINE stretch antialias unit"),
    "J": (foreign.logits, LAST, "RF-DETR stretch imagenet"),
    "K": (foreign.libreyolo_logits, AdoptOptions(), "LibreYOLO dfine stretch antialias unit"),
    "P": (foreign.any_logits, TOLD, "transformer stretch antialias unit"),
    "M": (foreign.huggingface, AdoptOptions(), "Face d_fine stretch antialias unit"),
    "N": (foreign.lightlytrain, AdoptOptions(), "LightlyTrain stretch antialias imagenet"),
    "O": (foreign.paddle, AdoptOptions(names=NAMES), "Paddle stretch cubic unit"),
    "L": (foreign.libreyolo_yolo9, AdoptOptions(), "LibreYOLO yolo9_e2e letterbox top-left unit"),
}


def adopt(
    model: ModelProto, folder: Path, options: AdoptOptions = ADOPT_DEFAULTS
) -> adopting.AdoptReport:
    path = foreign.save(model, folder / "theirs.onnx")
    return adopt_onnx(path, folder / "ours.onnx", options)


@pytest.mark.parametrize("letter", FAMILIES)
def test_a_family_is_recognised_and_says_the_same(letter: str, tmp_path: Path) -> None:
    make, options, concluded = FAMILIES[letter]
    foreign.huggingface_files(tmp_path)
    report = adopt(make(), tmp_path, options)
    found, resize = report.foreign, report.spec.resize
    said = [found.family, resize.kind, resize.interpolation, found.normalize]
    said += ["antialias"] * resize.antialias
    said += [resize.place] * (resize.kind == "letterbox")
    assert all(word in " ".join(said) for word in concluded.split()), said
    assert report.adoption.unmatched == 0 and report.adoption.rows >= 200
    assert report.adoption.score_difference < 1e-5
    assert report.spec.class_names == foreign.NAMES
    with Detector(report.path) as detector:
        rows = detector(bundled_pictures()[2][1], threshold=0.05)
    for device in ("cpu", "openvino"):
        with Detector(report.path, device=device) as detector:
            found = detector.self_check()
        assert found.ok and found.missing == 0, str(found)
    assert len(rows) > 20 and rows.confidence[0] > rows.confidence[-1]
    batch = onnx.load(report.path).graph.input[0].type.tensor_type.shape.dim[0]
    assert (batch.dim_param == "batch") == (letter in "DGJKMNP") == (report.spec.batch is None)


def test_classes_are_chosen_and_renamed(tmp_path: Path) -> None:
    wanted = AdoptOptions(classes="thing 3,thing 1", rename=("thing 1=car",), score_floor=0)
    for make in (foreign.yolo_rows, foreign.libreyolo_logits, foreign.sorted_triple):
        names = NAMES if make is foreign.sorted_triple else None
        report = adopt(make(), tmp_path, replace(wanted, names=names))
        assert report.spec.class_names == ("thing 3", "car")
        assert report.spec.category_ids == (3, 1)
        assert report.adoption.unmatched == 0


def test_more_queries_than_rows(tmp_path: Path) -> None:
    report = adopt(foreign.libreyolo_logits(), tmp_path, AdoptOptions(top_k=20))
    assert report.spec.top_k == 20 and report.adoption.unmatched == 0
    everything = adopt(foreign.libreyolo_logits(), tmp_path, AdoptOptions(top_k=64 * 5))
    assert everything.adoption.rows > 1500


def test_sparse_coco_columns_take_no_rows(tmp_path: Path) -> None:
    report = adopt(foreign.logits(columns=91), tmp_path)
    assert len(report.spec.class_names) == 80
    assert (report.spec.category_ids[0], report.spec.category_ids[-1]) == (1, 90)
    assert report.adoption.unmatched == 0


def test_half_precision_keeps_the_division_out_of_the_weights(tmp_path: Path) -> None:
    model = takes(foreign.HALF)
    report = adopt(model, tmp_path)
    assert report.adoption.score_difference < 0.01
    operators = [node.op_type for node in onnx.load(report.path).graph.node[:5]]
    assert operators == ["Cast", "Transpose", "Mul", "Gather", "Cast"]


def test_the_first_convolution_takes_colour_order_and_scale(tmp_path: Path) -> None:
    """And metadata reach the provenance."""
    report = adopt(foreign.yolo_rows(), tmp_path)
    said = report.spec.provenance
    assert (said["license"], said["source"]) == ("AGPL-3.0", "theirs.onnx")
    assert len(said["source sha256"]) == 64
    operators = [node.op_type for node in onnx.load(report.path).graph.node[:4]]
    assert operators == ["Cast", "Transpose", "Identity", "Conv"]


def test_options_that_are_told_win(tmp_path: Path) -> None:
    told = AdoptOptions(resize="letterbox", normalize="imagenet", order="bgr")
    report = adopt(foreign.libreyolo_logits(), tmp_path, told)
    assert (report.spec.resize.kind, report.foreign.normalize) == ("letterbox", "imagenet")
    assert report.foreign.bgr
    assert ("resize", "letterbox, as told") in report.foreign.concluded


def with_node(op: str) -> ModelProto:
    model = foreign.yolo_rows()
    scores = helper.make_node(op, ["nms boxes", "nms scores"], ["selected"])
    model.graph.node.insert(0, scores)
    for name, sizes in (("nms boxes", (1, 1, 4)), ("nms scores", (1, 1, 1))):
        model.graph.initializer.append(numpy_helper.from_array(np.ones(sizes, np.float32), name))
    return model


def own_file() -> ModelProto:
    model = foreign.yolo_rows()
    helper.set_model_props(model, {"nmsfree": "{}"})
    return model


def takes(kind: int) -> ModelProto:
    """A file whose pictures are of another type."""
    model = foreign.yolo_rows()
    model.graph.input[0].type.tensor_type.elem_type = kind
    model.graph.node[0].input[0] = "float images"
    cast = helper.make_node("Cast", ["images"], ["float images"], to=foreign.FLOAT)
    model.graph.node.insert(0, cast)
    return model


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda: with_node("NonMaxSuppression"), AdoptOptions(), "holds NonMaxSuppression"),
        (lambda: foreign.yolo_rows(task="segment"), AdoptOptions(), "expected detect"),
        (lambda: foreign.yolo_rows(names="__import__('os')"), AdoptOptions(), "give --names"),
        (lambda: foreign.sorted_triple(), AdoptOptions(), "carries no class names"),
        (lambda: foreign.logits(), AdoptOptions(names=NAMES), "give --background last"),
        (lambda: foreign.logits(), AdoptOptions(names="a,b"), "has 6 classes, found 2 names"),
        (lambda: foreign.logits("a", "b"), AdoptOptions(), "of no known NMS-free detector"),
        (
            lambda: foreign.any_logits(),
            AdoptOptions(names=NAMES, resize="stretch"),
            "give --normalize, --boxes, or labelled pictures",
        ),
        (lambda: foreign.yolo_rows(), AdoptOptions(top_k=51), "has 50 rows at most"),
        (lambda: foreign.yolo_rows(), AdoptOptions(size=(32, 32)), "--size says 32 × 32"),
        (lambda: foreign.yolo_rows(), AdoptOptions(classes="cat"), "no class 'cat'"),
        (lambda: foreign.yolo_rows(), AdoptOptions(names="a,b"), "has 5 classes, found 2 names"),
        (lambda: foreign.yolo_rows(), AdoptOptions(background="last"), "gives class numbers"),
        (lambda: foreign.yolo_rows(), AdoptOptions(rename=("thing 1",)), "expected OLD=NEW"),
        (lambda: foreign.yolo_rows(names="'abcde'"), AdoptOptions(), "give --names"),
        (lambda: foreign.sorted_triple(), AdoptOptions(names="a,b"), r"names are 2: give them all"),
        (
            lambda: foreign.libreyolo_logits(names='{"0": "a", "2": "b"}'),
            AdoptOptions(),
            "expected 0 to 1: give --names",
        ),
        (lambda: own_file(), AdoptOptions(), "is a file of nmsfree already"),
        (lambda: takes(TensorProto.DOUBLE), AdoptOptions(), "expected float pictures"),
        (
            lambda: foreign.lightlytrain(image_normalize='{"mean": [0, 0, 0], "std": [2, 2, 2]}'),
            AdoptOptions(),
            "expected ImageNet's, or 0 and 1",
        ),
    ],
)
def test_refusals(
    make: Callable[[], ModelProto], options: AdoptOptions, message: str, tmp_path: Path
) -> None:
    with pytest.raises((InputError, ModelError), match=message):
        adopt(make(), tmp_path, options)
    assert not (tmp_path / "ours.onnx").exists()


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"model_type": "detr"}, "detr has scores by softmax"),
        ({"size": {"shortest_edge": 800}}, "give --size and --resize"),
        ({"id2label": {"0": "a"}}, "has 5 classes, found 1 names"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor 0.00784314"),
        ({"id2label": "a"}, r"config\.json: .*id2label"),
        (None, r"has no config\.json beside it: put it there"),
    ],
)
def test_what_lies_beside_a_file(told: dict[str, Any] | None, message: str, tmp_path: Path) -> None:
    if told is not None:
        foreign.huggingface_files(tmp_path, **told)
    with pytest.raises(InputError, match=message):
        adopt(foreign.huggingface(), tmp_path)


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    for make in (foreign.yolo_rows, foreign.libreyolo_logits, foreign.sorted_triple):
        model = make()
        for tensor in model.graph.initializer:
            if list(tensor.dims) == [4 + foreign.CLASSES]:  # the last bias
                bias = numpy_helper.to_array(tensor).copy()
                bias[-1] = np.nan
                tensor.CopyFrom(numpy_helper.from_array(bias, tensor.name))
        with pytest.raises(ModelError, match="answers values that are not finite"):
            adopt(model, tmp_path, AdoptOptions(names=NAMES))


def test_boxes_that_are_shares_and_not_pixels(tmp_path: Path) -> None:
    graph = foreign.Graph()
    graph.rows(graph.corners(scale=1))
    with pytest.raises(GateError, match="give --boxes xyxy-share"):
        adopt(graph.model(foreign.ULTRALYTICS), tmp_path)


def test_markup_in_metadata_is_shown_as_it_is(tmp_path: Path) -> None:
    from rich.console import Console

    from nmsfree_export.cli.adopt import _show

    report = adopt(foreign.libreyolo_logits(model_family="[/red]"), tmp_path)
    console = Console(record=True, width=100)
    _show(report, console)
    assert "LibreYOLO [/red]" in console.export_text()


def test_a_batch_that_only_seems_dynamic_is_one(tmp_path: Path) -> None:
    """As DETRs are, whose trace holds the number of pictures that it was made with."""
    graph = foreign.Graph(batch="N")
    baked = graph.of([1, foreign.CELLS, foreign.CLASSES], np.int64)
    graph.output("pred_logits", graph.add("Reshape", graph.logits, baked), (64, 5))
    graph.output("pred_boxes", graph.boxes, (64, 4))
    report = adopt(graph.model(foreign.LIBREYOLO), tmp_path)
    assert report.spec.batch == 1
    assert dict(report.foreign.concluded)["batch"].startswith("1: said to be dynamic")


def test_a_box_for_every_cell_is_not_nms_free(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not NMS-free.*nms=False.*--nms plain"):
        adopt(foreign.yolo_cells(), tmp_path)


def test_outputs_that_are_not_what_the_file_says(tmp_path: Path) -> None:
    model = foreign.logits()
    model.graph.node[-2].input[0] = model.graph.node[-1].input[0]
    with pytest.raises(ModelError, match="which is no dense output"):
        adopt(model, tmp_path, LAST)


def test_what_is_no_onnx_file(tmp_path: Path) -> None:
    path = tmp_path / "theirs.onnx"
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(ModelError, match="is no ONNX file that can be read"):
        adopt_onnx(path, tmp_path / "ours.onnx")


def _constant(model: ModelProto, value: Any, change: Callable[[Any], Any]) -> None:
    """Change a constant that the rewriting added."""
    for tensor in model.graph.initializer:
        if tensor.name.startswith("out/"):
            found = numpy_helper.to_array(tensor)
            if np.array_equal(found, value):
                tensor.CopyFrom(numpy_helper.from_array(change(found), tensor.name))
                return
    raise AssertionError(f"no constant {value}")


def boxes_off(model: ModelProto) -> None:
    _constant(model, [64] * 4, lambda limit: limit + np.float32([1, 0, 1, 0]))


def classes_shifted(model: ModelProto) -> None:
    _constant(model, range(5), lambda columns: np.roll(columns, 1))


def background_kept(model: ModelProto) -> None:
    _constant(model, range(5), lambda columns: columns + 1)


def channels_swapped(model: ModelProto) -> None:
    first = next(n for n in model.graph.node if n.op_type == "Conv").input[1]
    tensor = next(t for t in model.graph.initializer if t.name == first)
    weight = np.ascontiguousarray(numpy_helper.to_array(tensor)[:, ::-1])
    tensor.CopyFrom(numpy_helper.from_array(weight, first))


def rows_permuted(model: ModelProto) -> None:
    """Scores in another order than their boxes."""
    node = next(n for n in model.graph.node if n.output[0] == "detection_scores")
    for name, value in {"start": -1, "end": -(2**62), "axis": 1, "step": -1}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array([value]), name))
    node.op_type = "Slice"
    node.input.extend(["start", "end", "axis", "step"])


@pytest.mark.parametrize(
    "damage", [boxes_off, classes_shifted, background_kept, channels_swapped, rows_permuted]
)
def test_a_faulty_rewriting_is_refused(
    damage: Callable[[ModelProto], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = adopting.rewrite

    def faulty(*arguments: Any) -> ModelProto:
        model = right(*arguments)
        damage(model)
        return model

    monkeypatch.setattr(adopting, "rewrite", faulty)
    with pytest.raises(GateError, match="does not say what the original says"):
        adopt(foreign.logits(), tmp_path, LAST)
    assert not (tmp_path / "ours.onnx").exists()


def test_too_little_to_compare_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GateError, match="are too few to judge, expected 100"):
        adopt(foreign.yolo_rows(), tmp_path, AdoptOptions(top_k=5))


def test_the_command(tmp_path: Path) -> None:
    import typer

    path = foreign.save(foreign.yolo_rows(), tmp_path / "theirs.onnx")
    app = typer.Typer()
    app.command()(command(run_adopt, AdoptCommand))
    out = tmp_path / "ours.onnx"
    done = CliRunner().invoke(app, [str(path), "-o", str(out), "--json", "-"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["adoption"]["unmatched"] == 0 and report["classes"] == 5
    assert report["canary_rows"] == report["top_k"]
    assert "licence of the weights: AGPL-3.0" in done.stderr
    assert out.is_file()


@pytest.mark.parametrize("letter", "ADGJK")
def test_our_own_detector_in_another_contract_finds_the_same(
    letter: str, nano: Any, trace: Any, digits: Path, tmp_path: Path
) -> None:
    """Its pictures are as large as its input, so that every resize is the same."""
    ours = trace(nano)
    theirs = foreign.save(foreign.wrapped(ours, letter), tmp_path / "theirs.onnx")
    told = {"G": AdoptOptions(names="0,1,2,3,4,5,6,7,8,9"), "J": AdoptOptions(background="last")}
    options = replace(told.get(letter, ADOPT_DEFAULTS), score_floor=0.05)
    if letter == "J":
        options = replace(options, names="0,1,2,3,4,5,6,7,8,9")
    report = adopt_onnx(theirs, tmp_path / "ours.onnx", options, digits / "val")
    with Detector(foreign.save(ours, tmp_path / "own.onnx")) as own, Detector(report.path) as other:
        for path in sorted((digits / "val").iterdir()):
            a, b = (detector(path, threshold=0.3) for detector in (own, other))
            np.testing.assert_allclose(a.xyxy, b.xyxy, atol=0.01)
            np.testing.assert_allclose(a.confidence, b.confidence, atol=1e-4)
            assert a.class_name == b.class_name and len(a) > 0


@pytest.fixture(scope="session")
def stretched(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """40 scenes of digits in another aspect: only a resize that stretches makes them good."""
    folder = tmp_path_factory.mktemp("stretched")
    write_digits(folder, train=1, val=40, overlap=0)
    file = folder / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    for image in content["images"]:
        path = folder / "val" / image["file_name"]
        scene = cv2.imread(str(path))
        assert scene is not None
        cv2.imwrite(str(path), cv2.resize(scene, (512, 192), interpolation=cv2.INTER_CUBIC))
        image |= {"width": 512, "height": 192}
    for row in content["annotations"]:
        row["bbox"] = [a * b for a, b in zip(row["bbox"], (2, 0.75, 2, 0.75), strict=True)]
    file.write_text(json.dumps(content))
    return load_dataset(folder, "val")


def test_the_preprocessing_is_found(
    nano: Any, trace: Any, stretched: DetectionDataset, tmp_path: Path
) -> None:
    """An RF-DETR's contract, of which neither names, background nor resize are told."""
    path = foreign.save(foreign.wrapped(trace(nano), "J"), tmp_path / "theirs.onnx")
    options = AdoptOptions(order="rgb", boxes="cxcywh-share")
    report = adopt_onnx(path, tmp_path / "ours.onnx", options, None, stretched)
    best = report.trials[0].options
    assert (best.background, best.normalize, best.resize) == ("last", "imagenet", "stretch")
    assert report.spec.class_names == stretched.class_names
    assert report.trials[0].as_good and 0.6 < report.trials[0].ap <= 1
    letterboxed = [t for t in report.trials if t.options.resize == "letterbox"]
    assert not any(trial.as_good for trial in letterboxed)
    json.dumps(report.to_json())


def test_no_preprocessing_helps_where_the_names_are_in_another_order(
    nano: Any, trace: Any, stretched: DetectionDataset, tmp_path: Path
) -> None:
    path = foreign.save(foreign.wrapped(trace(nano), "J"), tmp_path / "theirs.onnx")
    told = replace(LAST, names="1,2,3,4,5,6,7,8,9,0", boxes="cxcywh-share", order="rgb")
    told = replace(told, resize="stretch", normalize="imagenet")
    with pytest.raises(GateError, match="class names are in another order"):
        adopt_onnx(path, tmp_path / "ours.onnx", told, None, stretched)
