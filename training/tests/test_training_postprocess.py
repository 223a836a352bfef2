"""Post-processing: NMS against plain loops, exactness of the selection, the backend's rows."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from nmsfree.errors import CheckpointError, EngineError, InputError
from nmsfree.nms import greedy_nms, suppress
from nmsfree_training.config import STRIDES, preset
from nmsfree_training.model.boxes import anchor_points, decode
from nmsfree_training.model.detector import Fcos, Prediction
from nmsfree_training.weights.checkpoint import Checkpoint, save_checkpoint
from nmsfree_training.weights.predict import (
    PostprocessConfig,
    TorchBackend,
    make_spec,
    open_checkpoint,
    postprocess,
    torch_device,
)

CLASSES = 6
SHAPES = [(16, 16), (8, 8), (4, 4)]  # levels of a 128 × 128 input


def make_prediction(images: int = 1, seed: int = 0) -> Prediction:
    random = torch.Generator().manual_seed(seed)
    points, strides = anchor_points(SHAPES, STRIDES)
    logits = 2 * torch.randn(images, len(points), CLASSES, generator=random)
    deltas = 0.5 * torch.randn(images, len(points), 4, generator=random) + 0.7
    return Prediction(logits, decode(deltas, points, strides), points, strides, SHAPES)


def overlap(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    inner = max(0.0, float(width)) * max(0.0, float(height))
    areas = [float((box[2] - box[0]) * (box[3] - box[1])) for box in (a, b)]
    return inner / (sum(areas) - inner)


@pytest.mark.parametrize("iou", [0.3, 0.6])
def test_greedy_nms_equals_plain_loops(iou: float) -> None:
    random = np.random.default_rng(0)
    corner = random.uniform(0, 60, (80, 2))
    boxes = np.hstack([corner, corner + random.uniform(5, 40, (80, 2))]).astype(np.float32)
    scores = random.permutation(80).astype(np.float32)
    kept: list[int] = []
    for i in np.argsort(-scores):
        if all(overlap(boxes[i], boxes[j]) <= iou for j in kept):
            kept.append(int(i))
    assert greedy_nms(boxes, scores, iou).tolist() == kept
    assert 5 < len(kept) < 75


def test_suppress_by_class_is_nms_of_every_class_alone() -> None:
    boxes, scores, labels = postprocess(make_prediction(), PostprocessConfig(300))[0]
    kept = suppress(boxes, scores, labels, 0.5)
    for label in range(CLASSES):
        own = np.flatnonzero(labels == label)
        alone = own[greedy_nms(boxes[own], scores[own], 0.5)]
        assert sorted(kept[labels[kept] == label].tolist()) == sorted(alone.tolist())
    assert (np.diff(scores[kept]) <= 0).all()
    agnostic = suppress(boxes, scores, labels, 0.5, class_aware=False)
    assert len(agnostic) < len(kept)


def test_only_the_best_of_all_levels_enter_nms() -> None:
    every = PostprocessConfig(300, nms_iou=0.1)
    boxes, scores, labels = postprocess(make_prediction(), replace(every, nms_iou=None))[0]
    best = np.argsort(-scores, kind="stable")[:40]
    kept = best[suppress(boxes[best], scores[best], labels[best], 0.1)]
    found = postprocess(make_prediction(), replace(every, most=40))[0]
    for value, all_values in zip(found, (boxes, scores, labels), strict=True):
        np.testing.assert_array_equal(value, all_values[kept])
    assert len(kept) < 40 < len(scores)


def test_nothing_above_the_floor() -> None:
    for iou in (None, 0.6):
        boxes, scores, labels = postprocess(
            make_prediction(), PostprocessConfig(100, score_floor=1.0, nms_iou=iou)
        )[0]
        assert boxes.shape == (0, 4) and scores.shape == labels.shape == (0,)


def test_levels_are_cut_at_their_cells_as_published() -> None:
    counts = {}
    for cap in (True, False):
        settings = PostprocessConfig(100, score_floor=-1, cap_at_cells=cap)
        counts[cap] = len(postprocess(make_prediction(), settings)[0][1])
    assert counts == {True: 100 + 64 + 16, False: 100 + 100 + 96}  # P5: 16 cells, 96 pairs


def test_uncapped_lists_hold_the_best_of_all_levels() -> None:
    prediction = make_prediction()
    settings = PostprocessConfig(50, score_floor=-1, cap_at_cells=False)
    boxes, scores, labels = postprocess(prediction, settings)[0]
    order = np.argsort(-scores, kind="stable")[:50]
    best, index = prediction.logits[0].flatten().sort(descending=True)
    np.testing.assert_array_equal(scores[order], best[:50].sigmoid())
    np.testing.assert_array_equal(labels[order], index[:50] % CLASSES)
    np.testing.assert_array_equal(boxes[order], prediction.boxes[0][index[:50] // CLASSES])


def test_batch_equals_each_image_alone() -> None:
    prediction = make_prediction(3)
    settings = PostprocessConfig(100, nms_iou=0.6)
    p = prediction
    for i, together in enumerate(postprocess(prediction, settings)):
        rows = slice(i, i + 1)
        one = Prediction(p.logits[rows], p.boxes[rows], p.points, p.strides, p.shapes)
        for a, b in zip(together, postprocess(one, settings)[0], strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    """An untrained two-headed network whose scores are spread out."""
    chosen = preset("fcos_e2e_nano", CLASSES)
    torch.manual_seed(0)
    network = Fcos(chosen.model)
    for head in network.heads.values():
        torch.nn.init.normal_(head.cls_pred.weight, std=2.0)
    names = tuple("abcdef")
    return Checkpoint(chosen.model, (128, 128), names, tuple(range(CLASSES)), network.state_dict())


@pytest.mark.parametrize("head", ["o2o", "o2m"])
def test_backend_rows_keep_the_contract(checkpoint: Checkpoint, head: str) -> None:
    spec = make_spec(checkpoint, head)  # type: ignore[arg-type]
    assert (spec.nms is None) == (head == "o2o")
    backend = TorchBackend(checkpoint.build(), spec)
    images = np.random.default_rng(1).integers(0, 256, (2, 128, 128, 3), dtype=np.uint8)
    raw = backend.run(images)
    assert raw.detection_boxes.shape == (2, 100, 4)
    assert raw.num_detections.dtype == raw.detection_classes.dtype == np.int32
    assert raw.detection_boxes.min() >= 0 and raw.detection_boxes.max() <= 128
    assert (np.diff(raw.detection_scores, axis=1) <= 0).all()
    for i in range(2):
        above = int((raw.detection_scores[i] > spec.score_floor).sum())
        assert raw.num_detections[i, 0] == above > 0
        alone = backend.run(images[i : i + 1])
        np.testing.assert_allclose(alone.detection_scores[0], raw.detection_scores[i], atol=1e-5)


def test_o2o_rows_below_the_floor_are_candidates(checkpoint: Checkpoint) -> None:
    """An untrained network gives 0.01 everywhere: nothing detected, all rows filled."""
    raw = TorchBackend(Fcos(checkpoint.model).eval(), make_spec(checkpoint, "o2o")).run(
        np.zeros((1, 128, 128, 3), np.uint8)
    )
    assert raw.num_detections.tolist() == [[0]]
    assert (raw.detection_scores > 0.005).all() and (raw.detection_scores < 0.05).all()


def test_open_checkpoint(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(checkpoint, path)
    with pytest.raises(InputError, match="runs on one of: cpu, cuda"):
        open_checkpoint(path, device="tpu")
    deployed = open_checkpoint(path)
    assert (deployed.spec.head, deployed.spec.height) == ("o2o", 128)
    like = make_spec(checkpoint, "o2m", input_size=(64, 96))
    assert open_checkpoint(path, like=like).spec == like
    single = preset("fcos_o2o_nano", CLASSES).model
    state = Fcos(single).state_dict()
    save_checkpoint(Checkpoint(single, (64, 64), checkpoint.class_names, (0,) * 6, state), path)
    with pytest.raises(CheckpointError, match="has the heads o2o, expected o2m"):
        open_checkpoint(path, like=like)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
def test_missing_gpu_is_said() -> None:
    with pytest.raises(EngineError, match="sees no GPU"):  # exit status 3, as of other engines
        torch_device("cuda")
