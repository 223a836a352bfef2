"""Metrics and matching are those of pycocotools, on annotations as awkward as real ones."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from runtime_helpers import Make, result

from nmsfree.datasets.digits.scenes import write_digits
from nmsfree.datasets.formats.coco import DetectionDataset, load_coco
from nmsfree.evaluation.analysis import analyse
from nmsfree.evaluation.boxes import best_first, objects_of, read_boxes
from nmsfree.evaluation.curves import Curve
from nmsfree.evaluation.evaluate import coco_metrics
from nmsfree.evaluation.matching import match
from nmsfree.evaluation.scores import CocoScorer, Result
from nmsfree.spec import ModelSpec

STATS = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
SCENES = ["digits", "awkward"]


def awkward(folder: Path) -> DetectionDataset:
    """Sparse ids, crowds, an image without objects, a class without any, areas not width·height,
    objects that are there twice, and sizes from 6 to 300 pixels.
    """
    rng = np.random.default_rng(3)
    categories = [{"id": i, "name": f"class {i}"} for i in (2, 5, 17, 90)]
    images = [
        {"id": 1000 + 37 * i, "file_name": f"{i}.png", "width": 640, "height": 480}
        for i in range(30)
    ]
    annotations: list[dict[str, Any]] = []
    for number, image in enumerate(images[:-1]):
        for _ in range(rng.integers(1, 9)):
            w, h = np.exp(rng.uniform(np.log(6), np.log(300), 2))
            box = [rng.uniform(0, 640 - w), rng.uniform(0, 480 - h), w, h]
            annotations.append({
                "id": len(annotations) + 1,
                "image_id": image["id"],
                "category_id": int(rng.choice([2, 5, 17])),
                "bbox": np.round(box, 2).tolist(),
                "area": float(w * h * rng.uniform(0.3, 1)),
                "iscrowd": int(number % 3 == 0 and rng.random() < 0.3),
            })  # fmt: skip
    twins = [a | {"id": len(annotations) + 1 + i} for i, a in enumerate(annotations[::9])]
    annotations += twins
    (folder / "annotations").mkdir(parents=True)
    (folder / "val").mkdir()
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations/instances_val.json").write_text(json.dumps(content), "utf-8")
    return load_coco(folder, "val")


def random_results(dataset: DetectionDataset, seed: int) -> list[Result]:
    """Detections near objects and nowhere, with duplicates, wrong classes and equal scores."""
    rng = np.random.default_rng(seed)
    results: list[Result] = []
    for sample in dataset.samples:
        near = np.repeat(sample.xywh, 4, axis=0)
        near = near + rng.normal(0, 0.12, near.shape) * near[:, [2, 3, 2, 3]]
        near[:, 2:] = np.maximum(near[:, 2:], 1)
        nowhere = np.hstack([rng.uniform(0, 300, (5, 2)), rng.uniform(5, 200, (5, 2))])
        for box in [*near, *nowhere]:
            category = int(rng.choice(dataset.category_ids))
            score = float(rng.integers(50, 1000) / 1000)
            results.append(result(box.tolist(), score, category, sample.image_id))
        for box, label in zip(sample.xywh, sample.labels, strict=True):
            if rng.random() < 0.8:  # and one of the right class for most
                close = box + rng.normal(0, 0.06, 4) * np.tile(box[2:], 2)
                score, category = float(rng.uniform(0.2, 1)), dataset.category_ids[label]
                results.append(result(close.tolist(), score, category, sample.image_id))
    return results


@pytest.fixture(scope="module", params=SCENES)
def scene(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> DetectionDataset:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "awkward":
        dataset = awkward(folder / "set")
        counts = [len(sample.labels) for sample in dataset.samples]
        assert min(counts) == 0 and crowds(dataset) >= 5, "as awkward as it should be"
        return dataset
    write_digits(folder, train=0, val=25, overlap=0)
    return load_coco(folder, "val")


def official(dataset: DetectionDataset, results: list[Result]) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(dataset.annotation_file))
        # Of equal scores pycocotools takes the first; ours are put in this order.
        ordered = sorted(
            results, key=lambda r: (r["image_id"], -r["score"], r["category_id"], r["bbox"])
        )
        found = truth.loadRes([dict(r) for r in ordered])
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("seed", [0, 1])
def test_metrics_equal_pycocotools(scene: DetectionDataset, seed: int) -> None:
    results = random_results(scene, seed)
    ours = coco_metrics(scene, results).to_json()
    theirs = official(scene, results).stats
    assert 0.05 < theirs[0] < 0.95, "there is something to measure"
    for name, value in zip(STATS, theirs, strict=True):
        expected = None if value == -1 else pytest.approx(value, abs=1e-6)
        assert ours[name] == expected, name


def dense(make_dataset: Make, objects: int, seed: int = 0) -> tuple[DetectionDataset, list[Result]]:
    """An image with many objects of a class, and detections of them, some wrong or moved."""
    rng = np.random.default_rng(seed)
    boxes = [[16 * x, 16 * y, 12, 12] for x in range(20) for y in range(20)][:objects]
    more = {"area": 144, "iscrowd": 0}
    annotations = [{"id": n, "bbox": box, **more} for n, box in enumerate(boxes, start=1)]
    results: list[Result] = []
    for box in [*boxes, *([[300, 300, 9, 9]] * 30)]:
        moved, score = np.array(box) + rng.normal(0, 0.4, 4), float(rng.uniform(0.1, 0.9))
        results.append(result(moved.tolist(), score, 9))
    return make_dataset(*annotations, classes={"a": 9}), results


@pytest.mark.parametrize("objects", [20, 90, 100])
def test_up_to_100_objects_of_a_class_ap_is_the_official_one(
    make_dataset: Make, objects: int
) -> None:
    """Also where more than 100 detections of the class compete."""
    dataset, results = dense(make_dataset, objects)
    ours = coco_metrics(dataset, results)
    assert ours.max_detections == 100
    theirs = official(dataset, results).stats
    assert ours.ap == pytest.approx(theirs[0], abs=1e-9)
    assert ours.ar100 == pytest.approx(theirs[8], abs=1e-9)
    every = CocoScorer(dataset, tiled=True).score(results).metrics
    assert every.max_detections == max(100, len(results)) and every.ar100 == ours.ar100
    assert (every.ap > ours.ap) == (len(results) > 100), "late ones are right, too"


@pytest.mark.slow
@pytest.mark.parametrize("objects", [101, 150])
def test_beyond_100_objects_of_a_class_ap_takes_all_detections(
    make_dataset: Make, caplog: pytest.LogCaptureFixture, objects: int
) -> None:
    dataset, results = dense(make_dataset, objects)
    ours = coco_metrics(dataset, results)
    assert f"holds {objects} objects of one class, more than COCO's 100 detections" in caplog.text
    assert ours.max_detections == len(results)
    theirs = official(dataset, results)
    assert ours.ar100 == pytest.approx(theirs.stats[8], abs=1e-9)  # still COCO's
    with contextlib.redirect_stdout(io.StringIO()):
        theirs.params.maxDets = [1, 10, len(results)]
        theirs.evaluate()
        theirs.accumulate()
    precision = theirs.eval["precision"][:, :, :, 0, -1]
    assert ours.ap == pytest.approx(precision[precision > -1].mean(), abs=1e-9)
    perfect = [
        r | {"bbox": s.tolist()} for r, s in zip(results, dataset.samples[0].xywh, strict=False)
    ]
    assert coco_metrics(dataset, perfect).ap == pytest.approx(1)


@pytest.mark.parametrize("seed", [0, 1])
def test_matches_equal_pycocotools(scene: DetectionDataset, seed: int) -> None:
    """Every detection: right, wrong or ignored, and which object it hits."""
    results = random_results(scene, seed)
    expected = {}
    evaluation = official(scene, results)
    annotations = json.loads(scene.annotation_file.read_text())["annotations"]
    order = [sample.image_id for sample in scene.samples]
    annotations.sort(key=lambda a: order.index(a["image_id"]))  # as `objects_of` has them
    row_of = {0: -1} | {a["id"]: row for row, a in enumerate(annotations)}
    for piece in evaluation.evalImgs:
        if piece is None or piece["aRng"] != evaluation.params.areaRng[0]:
            continue
        rows = zip(piece["dtScores"], piece["dtMatches"][0], piece["dtIgnore"][0], strict=True)
        for rank, (score, truth, ignored) in enumerate(rows):
            key = (piece["image_id"], piece["category_id"], rank)
            expected[key] = (score, -1 if ignored else row_of[int(truth)], bool(ignored))
    found, matches = matched(scene, results)
    ids = [sample.image_id for sample in scene.samples]
    ranks: dict[tuple[int, int], int] = {}
    ours = {}
    for row in range(len(found)):
        image, category = ids[found.image[row]], scene.category_ids[found.label[row]]
        rank = ranks[image, category] = ranks.get((image, category), -1) + 1
        outcome = (found.score[row], int(matches.truth[row]), bool(matches.ignored[row]))
        ours[image, category, rank] = outcome
    assert ours == expected
    assert {True, False} == {ignored for _, _, ignored in ours.values()} or not crowds(scene)


def crowds(dataset: DetectionDataset) -> int:
    return sum(int(sample.iscrowd.sum()) for sample in dataset.samples)


def matched(dataset: DetectionDataset, results: list[Result]) -> Any:
    ids = [sample.image_id for sample in dataset.samples]
    labels = {category: label for label, category in enumerate(dataset.category_ids)}
    found = best_first(read_boxes(results, ids, labels))
    return found, match(found, objects_of(dataset, labels))


def test_own_curves_integrate_to_the_official_ap50(scene: DetectionDataset) -> None:
    """Thresholds and pictures come from the very curve that COCO averages."""
    results = random_results(scene, 4)
    spec = ModelSpec("random", "o2o", 64, 64, 1, scene.class_names, scene.category_ids)
    analysis = analyse(scene, results, spec)
    ap50 = {report.category_id: report.ap50 for report in analysis.per_class}
    official_ap50 = official(scene, results).eval["precision"][0, :, :, 0, -1].mean(axis=0)
    curves: tuple[Curve, ...] = analysis.curves
    for category, curve, theirs in zip(scene.category_ids, curves, official_ap50, strict=True):
        if theirs < 0:
            assert (ap50[category], curve.objects) == (None, 0)
            continue
        assert ap50[category] == pytest.approx(theirs, abs=1e-6)
        assert curve.precision_at_recalls().mean() == pytest.approx(theirs, abs=1e-6)
