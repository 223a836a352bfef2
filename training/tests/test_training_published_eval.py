"""The published networks and their evaluation against their authors' numbers."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from nmsfree.cli.eval import eval_command
from nmsfree.datasets.digits.scenes import write_digits
from nmsfree.datasets.formats.coco import DetectionDataset, load_coco
from nmsfree.detector import Detector
from nmsfree.errors import CheckpointError, DataError, InputError
from nmsfree.evaluation.evaluate import coco_metrics, predict
from nmsfree_training.config import preset
from nmsfree_training.model.detector import Fcos, Prediction
from nmsfree_training.model.norms import MEAN_RGB, STD_RGB
from nmsfree_training.weights.published_eval import SETTINGS, detect, predict_published, prepare

from .runs import WEIGHTS, save_network

MODELS = ("fcos_rt_r18_3x", "fcos_e2e_r18_3x")
SIZES = ((128, 160), (224, 192))  # (height, width)
CASES = pytest.mark.parametrize(("name", "size"), [(m, s) for m in MODELS for s in SIZES])

Arrays = dict[str, NDArray[np.generic]]
Reference = Callable[[str], Arrays]


def make_image(height: int, width: int) -> torch.Tensor:
    """Blocks of 16 pixels plus fine noise, float32 [1, 3, height, width], as the fixtures used."""
    random = np.random.RandomState(1000)
    blocks = random.standard_normal((1, 3, (height + 15) // 16, (width + 15) // 16))
    image = np.kron(blocks, np.ones((1, 1, 16, 16)))[..., :height, :width]
    image = image + 0.3 * random.standard_normal(image.shape)
    return torch.from_numpy(image.astype(np.float32))


def run(network: Fcos, size: tuple[int, int]) -> dict[str, Prediction]:
    with torch.inference_mode():
        predictions: dict[str, Prediction] = network(make_image(*size))
    return predictions


def expected(reference: Reference, name: str, size: tuple[int, int]) -> Arrays:
    prefix = f"{size[0]}x{size[1]}/"
    arrays = reference(f"forward_{name}").items()
    return {key.removeprefix(prefix): a for key, a in arrays if key.startswith(prefix)}


def assert_same_detections(
    found: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]],
    want: tuple[NDArray[np.generic], NDArray[np.generic], NDArray[np.generic]],
) -> None:
    """Compare as sets: rows of nearly equal score may stand in another order."""
    boxes, scores, labels = found
    assert len(boxes) == len(want[0])
    free = np.ones(len(boxes), bool)
    for box, score, label in zip(*want, strict=True):
        distance = np.abs(boxes - box).max(axis=1) + np.abs(scores - score)
        distance[~free | (labels != label)] = np.inf
        nearest = int(distance.argmin())
        assert distance[nearest] < 1e-4, f"no detection like {label} {score} {box}"
        free[nearest] = False


@CASES
def test_logits_and_boxes(
    name: str, size: tuple[int, int], random_network: Callable[[str], Fcos], reference: Reference
) -> None:
    network, want = random_network(name), expected(reference, name, size)
    cells = torch.from_numpy(want["anchor_index"])
    predictions = run(network, size)
    deployed = predictions[network.config.deployed_head]
    np.testing.assert_allclose(deployed.logits[0, cells], want["logits"], rtol=0, atol=1e-3)
    np.testing.assert_allclose(deployed.boxes[0, cells], want["boxes"], rtol=0, atol=1e-3)
    if "o2m" in predictions and name == "fcos_e2e_r18_3x":
        o2m = predictions["o2m"].logits[0, cells]
        np.testing.assert_allclose(o2m, want["o2m_logits"], rtol=0, atol=1e-3)


@CASES
def test_pyramid_statistics(
    name: str, size: tuple[int, int], random_network: Callable[[str], Fcos], reference: Reference
) -> None:
    want = expected(reference, name, size)
    with torch.inference_mode():
        network = random_network(name)
        pyramid = network.fpn(network.backbone(make_image(*size)))
    for level, features in zip((3, 4, 5), pyramid, strict=True):
        mean_std = [float(features.mean()), float(features.std())]
        np.testing.assert_allclose(mean_std, want[f"p{level}_mean_std"], rtol=0, atol=1e-3)


@pytest.mark.parametrize("size", SIZES)
def test_class_agnostic_nms(
    size: tuple[int, int],
    random_network: Callable[[str], Fcos],
    reference: Reference,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    want = expected(reference, "fcos_rt_r18_3x", size)
    monkeypatch.setitem(SETTINGS, "o2m", replace(SETTINGS["o2m"], class_aware=False))
    found = detect(random_network("fcos_rt_r18_3x"), make_image(*size))
    rows = (want["agnostic_boxes"], want["agnostic_scores"], want["agnostic_labels"])
    assert_same_detections(found, rows)


# The published evaluation: its resize, its lists, and its AP beside the deployed protocol's


NANO = pytest.mark.parametrize("name", ["fcos_rt_nano", "fcos_o2o_nano", "fcos_e2e_nano"])


def random_picture(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_input_of_the_right_size_is_the_normalised_picture() -> None:
    pixels = random_picture(64, 96)
    found = prepare(Image.fromarray(pixels), (64, 96)).numpy()
    assert found.shape == (1, 3, 64, 96) and found.dtype == np.float32
    want = (pixels / 255 - np.array(MEAN_RGB)) / np.array(STD_RGB)
    np.testing.assert_allclose(found[0], want.transpose(2, 0, 1), atol=1e-5)


def test_shrinking_is_antialiased_on_bytes() -> None:
    """Half the size: weights 1 3 3 1 of 8 in each direction, rounded to bytes after each."""
    pixels = random_picture(128, 128)
    found = prepare(Image.fromarray(pixels), (64, 64))[0].numpy().transpose(1, 2, 0)
    small = np.rint((found * np.array(STD_RGB) + np.array(MEAN_RGB)) * 255)

    def halve(rows: NDArray[np.float64]) -> NDArray[np.float64]:
        inner = rows[1:-1]  # the outermost rows lack a neighbour: compared without them
        a, b, c, d = inner[0:-3:2], inner[1:-2:2], inner[2:-1:2], inner[3::2]
        return np.floor((a + 3 * b + 3 * c + d) / 8 + 0.5)

    across = halve(pixels.astype(float).transpose(1, 0, 2)).transpose(1, 0, 2)
    want = halve(across)
    assert want.shape == (62, 62, 3)
    np.testing.assert_array_equal(small[1:-1, 1:-1], want)


@CASES
def test_detections_are_those_of_the_authors(
    name: str, size: tuple[int, int], random_network: Callable[[str], Fcos], reference: Reference
) -> None:
    """At the network's own size there is nothing to resize: all the rest, to their figures."""
    want = expected(reference, name, size)
    rows = (want["final_boxes"], want["final_scores"], want["final_labels"])
    found = detect(random_network(name), make_image(*size))
    assert len(found[0]) > 0
    assert_same_detections(found, rows)


@pytest.mark.parametrize("size", [(96, 130), (491, 735), (33, 65), (8, 40), (1, 7)])
def test_sizes_that_no_stride_divides(size: tuple[int, int]) -> None:
    network = Fcos(preset("fcos_o2o_nano", 3).model).eval()
    predictions = network(torch.zeros(1, 3, *size))["o2o"]
    shapes = [(-(-size[0] // s), -(-size[1] // s)) for s in (8, 16, 32)]
    assert predictions.shapes == shapes
    boxes, scores, labels = detect(network, torch.zeros(1, 3, *size))
    assert len(boxes) == len(scores) == len(labels)


@pytest.fixture(scope="module")
def small_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "digits"
    write_digits(folder, train=0, val=16, overlap=0)
    return folder


@pytest.fixture(scope="module")
def large_digits(small_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures at 1.75 times the size, so that both protocols must shrink them."""
    folder, scale = tmp_path_factory.mktemp("published") / "large", 1.75
    (folder / "val").mkdir(parents=True)
    (folder / "annotations").mkdir()
    content = json.loads((small_digits / "annotations/instances_val.json").read_text())
    for image in content["images"]:
        with Image.open(small_digits / "val" / image["file_name"]) as picture:
            size = int(picture.width * scale), int(picture.height * scale)
            picture.resize(size, Image.Resampling.BICUBIC).save(folder / "val" / image["file_name"])
        image["width"], image["height"] = size
    for annotation in content["annotations"]:
        annotation["bbox"] = [scale * v for v in annotation["bbox"]]
        annotation["area"] *= scale**2
    (folder / "annotations/instances_val.json").write_text(json.dumps(content))
    return folder


def both_protocols(name: str, dataset: DetectionDataset) -> tuple[float, float]:
    path = WEIGHTS / f"{name}.safetensors"
    _, published = predict_published(path, dataset)
    with Detector(path) as detector:
        deployed = predict(detector, dataset)
    return coco_metrics(dataset, published).ap, coco_metrics(dataset, deployed).ap


@NANO
def test_ap_beside_the_deployed_protocol(name: str, small_digits: Path) -> None:
    """The same pixels, since the pictures have the input's size: only the lists differ."""
    published, deployed = both_protocols(name, load_coco(small_digits, "val"))
    assert published > 0.6
    assert published == pytest.approx(deployed, abs=0.005)


@NANO
def test_ap_of_resized_pictures(name: str, large_digits: Path) -> None:
    published, deployed = both_protocols(name, load_coco(large_digits, "val"))
    assert published > 0.6
    assert published == pytest.approx(deployed, abs=0.03)


def test_results_and_progress(small_digits: Path) -> None:
    dataset = load_coco(small_digits, "val")
    seen: list[tuple[int, int]] = []
    path = WEIGHTS / "fcos_rt_nano.safetensors"
    spec, results = predict_published(
        path, dataset, threads=1, progress=lambda done, total: seen.append((done, total))
    )
    assert (spec.name, spec.head, spec.height) == ("fcos_rt_nano", "o2m", 256)
    assert seen == [(i, 16) for i in range(1, 17)]
    assert {r["image_id"] for r in results} <= {s.image_id for s in dataset.samples}
    assert all(0.05 < r["score"] <= 1 for r in results)
    boxes = np.array([r["bbox"] for r in results])
    assert boxes.min() >= 0 and (boxes[:, :2] + boxes[:, 2:]).max() <= 256 + 1e-3
    for sample in dataset.samples:  # every object has a detection of its class on it
        own = [r for r in results if r["image_id"] == sample.image_id]
        assert len(own) >= len(sample.boxes) // 2


def test_the_command_tells_nothing_of_rows_that_are_not_there(
    small_digits: Path, tmp_path: Path
) -> None:
    app = typer.Typer()
    app.command()(eval_command)
    report = tmp_path / "report.json"
    model = [str(WEIGHTS / "fcos_e2e_nano.safetensors"), "--data", str(small_digits)]
    options = ["--no-plots", "--threads", "1", "--json", str(report)]
    for protocol in ("deployed", "published"):
        outcome = CliRunner().invoke(app, [*model, "--protocol", protocol, *options])
        assert outcome.exit_code == 0, (outcome.output, outcome.exception)
        hits = json.loads(report.read_text("utf-8"))["cap_hits"]
        deployed = protocol == "deployed"
        assert isinstance(hits, int) if deployed else hits is None
        assert ("rows of the output" in outcome.output) == deployed


def untrained(tmp_path: Path, names: Sequence[str]) -> Path:
    network = Fcos(preset("fcos_o2o_nano", len(names)).model)
    return save_network(network, tmp_path / "model.safetensors", names)


def test_other_classes_are_refused(small_digits: Path, tmp_path: Path) -> None:
    dataset = load_coco(small_digits, "val")
    with pytest.raises(DataError, match="classes differ: the model has 3"):
        predict_published(untrained(tmp_path, "012"), dataset)
    with pytest.raises(DataError, match="only in the model: x"):
        predict_published(untrained(tmp_path, "012345678x"), dataset)
    with pytest.raises(InputError, match="runs on one of: cpu, cuda"):
        predict_published(untrained(tmp_path, "0123456789"), dataset, device="tpu")
    with pytest.raises(CheckpointError, match="no such file"):
        predict_published(tmp_path / "nothing.safetensors", dataset)


def one_picture(folder: Path, width: int, height: int) -> DetectionDataset:
    (folder / "annotations").mkdir(parents=True)
    (folder / "val").mkdir()
    content = {
        "images": [{"id": 7, "file_name": "a.png", "width": width, "height": height}],
        "categories": [{"id": 3, "name": "it"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 1, 20, 20], "area": 400,
             "iscrowd": 0}
        ],
    }  # fmt: skip
    (folder / "annotations/instances_val.json").write_text(json.dumps(content))
    return load_coco(folder, "val")


def test_pictures_that_do_not_fit(tmp_path: Path) -> None:
    dataset = one_picture(tmp_path / "set", 40, 30)
    model, picture = untrained(tmp_path, ("it",)), tmp_path / "set/val/a.png"
    with pytest.raises(InputError, match=r"a\.png: no such file"):
        predict_published(model, dataset)
    picture.write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"a\.png: not an image that can be decoded"):
        predict_published(model, dataset)
    Image.new("RGB", (30, 40)).save(picture)
    with pytest.raises(DataError, match="30 × 40 pixels, its annotations say 40 × 30"):
        predict_published(model, dataset)
    for mode in ("RGB", "L", "P", "RGBA", "1", "I;16"):
        Image.new(mode, (40, 30)).save(picture)
        assert predict_published(model, dataset)[1] == []  # untrained: nothing above the floor


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    dataset = one_picture(tmp_path / "set", 40, 30)
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees
    Image.new("RGB", (30, 40)).save(tmp_path / "set/val/a.png", exif=exif)
    assert predict_published(untrained(tmp_path, ("it",)), dataset)[1] == []
