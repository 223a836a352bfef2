"""The eager baselines: two-stage top-k against the full sort, published settings, stages."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nmsfree.detector import Detector
from nmsfree_benchmarks.harness.timer import Image, Stopwatch
from nmsfree_benchmarks.harness.weights import Weights, open_weights
from nmsfree_benchmarks.questions.models.eager import (
    SETTINGS,
    EagerBackend,
    Found,
    eager_backends,
    nms_load,
    two_stage,
)
from nmsfree_training.config import HeadName
from nmsfree_training.model.boxes import anchor_points, decode
from nmsfree_training.model.detector import Prediction
from nmsfree_training.weights.predict import PostprocessConfig, postprocess

SHAPES = [(16, 16), (8, 8), (4, 4)]
STRIDES = (8, 16, 32)
CLASSES = 7


def random_prediction(seed: int, scale: float) -> Prediction:
    """Two images of random logits and boxes, crowded enough for NMS to remove some."""
    random = torch.Generator().manual_seed(seed)
    points, strides = anchor_points(SHAPES, STRIDES)
    logits = scale * torch.randn(2, len(points), CLASSES, generator=random) - 2
    deltas = torch.randn(2, len(points), 4, generator=random) * 0.3 + torch.tensor([0, 0, 1, 1.0])
    return Prediction(logits, decode(deltas, points, strides), points, strides, SHAPES)


def best_first(found: Found, k: int) -> Found:
    """The best k of each image, by score."""
    orders = [np.argsort(-scores, kind="stable")[:k] for _, scores, _ in found]
    return [(b[o], s[o], c[o]) for (b, s, c), o in zip(found, orders, strict=True)]


def assert_same(a: Found, b: Found) -> None:
    assert len(a) == len(b)
    for (boxes, scores, labels), (boxes_b, scores_b, labels_b) in zip(a, b, strict=True):
        np.testing.assert_allclose(scores, scores_b, atol=1e-6)
        np.testing.assert_array_equal(labels, labels_b)
        np.testing.assert_allclose(boxes, boxes_b, atol=1e-4)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("per_level", [3, 40, 1000])
def test_two_stage_is_the_full_sort_with_nms(seed: int, per_level: int) -> None:
    prediction = random_prediction(seed, scale=2)
    config = PostprocessConfig(per_level, score_floor=0.05, nms_iou=0.6)
    found = two_stage(prediction, config)
    assert_same(found, postprocess(prediction, config))
    assert all(len(scores) for _, scores, _ in found)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [1, 17, 100])
def test_two_stage_is_the_full_sort_without_nms(seed: int, k: int) -> None:
    prediction = random_prediction(seed, scale=2)
    config = PostprocessConfig(k, score_floor=0.05, cap_at_cells=False)
    assert_same(two_stage(prediction, config), best_first(postprocess(prediction, config), k))


def test_two_stage_finds_nothing_below_the_floor() -> None:
    prediction = random_prediction(0, scale=0)
    for iou in (None, 0.6):
        found = two_stage(prediction, PostprocessConfig(10, score_floor=0.5, nms_iou=iou))
        assert [len(scores) for _, scores, _ in found] == [0, 0]


Source = Callable[[str], Weights]


@pytest.fixture(scope="module")
def source(pair: Path) -> Source:
    return lambda name: open_weights(pair / "weights" / f"{name}.safetensors", "digits")


@pytest.fixture
def image() -> Image:
    return np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)


@pytest.mark.parametrize(("model", "head"), [("fcos_rt_nano", "o2m"), ("fcos_e2e_nano", "o2o")])
def test_published_settings(source: Source, model: str, head: HeadName) -> None:
    backends = eager_backends(source(model), Stopwatch())
    assert tuple(backends) == tuple(setting.key for setting in SETTINGS)
    found = {key: (b.spec.head, b.config, b.spec.score_floor) for key, b in backends.items()}
    if head == "o2m":
        timing = PostprocessConfig(per_level=100, score_floor=0.3, nms_iou=0.45)
        evaluation = PostprocessConfig(per_level=1000, score_floor=0.05, nms_iou=0.6)
    else:
        timing = PostprocessConfig(per_level=100, score_floor=0.3)
        evaluation = PostprocessConfig(per_level=100, score_floor=0.05)
    assert found == {
        "eager_timing": (head, timing, 0.3),
        "eager_evaluation": (head, evaluation, 0.05),
        "eager_two_stage": (head, evaluation, 0.05),
    }
    nms = backends["eager_timing"].spec.nms
    assert (nms is None) == (head == "o2o")
    assert nms is None or (nms.iou, nms.candidates_per_level) == (0.45, 100)


@pytest.mark.parametrize("model", ["fcos_rt_nano", "fcos_e2e_nano"])
def test_a_backend_does_what_its_settings_say(source: Source, model: str, image: Image) -> None:
    backends = eager_backends(source(model), Stopwatch())
    detections = {
        key: Detector(b)(image, threshold=b.spec.score_floor) for key, b in backends.items()
    }
    few, many, same = detections.values()
    assert 0 < len(few) < len(many)
    assert few.confidence.min() > 0.3 > many.confidence.min() > 0.05
    if model == "fcos_rt_nano":  # of the other the published code keeps only the best of a level
        np.testing.assert_allclose(many.confidence, same.confidence, atol=1e-6)
        np.testing.assert_allclose(many.xyxy, same.xyxy, atol=1e-3)


def test_the_network_marks_its_stages(source: Source, image: Image) -> None:
    watch = Stopwatch()
    for backend in eager_backends(source("fcos_e2e_nano"), watch).values():
        watch.start()
        Detector(backend)(image)
        watch.mark()
        assert len(watch.laps()) == 3


def test_load_is_what_enters_nms(source: Source, image: Image) -> None:
    backends = eager_backends(source("fcos_rt_nano"), Stopwatch())
    pixels = Detector(backends["eager_timing"]).preprocess([image])[0]
    load = nms_load(backends, [pixels])
    for key, backend in backends.items():
        # Without suppression everything that entered comes out.
        config = replace(backend.config, nms_iou=None)
        (found,) = postprocess(backend.predict(pixels), config)
        assert load[key] == len(found[1])
    assert load["eager_timing"] < load["eager_evaluation"] == load["eager_two_stage"]


def test_the_network_is_not_folded(source: Source) -> None:
    backend = eager_backends(source("fcos_rt_nano"), Stopwatch())["eager_timing"]
    assert isinstance(backend, EagerBackend)
    kept = [m for m in backend._network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(kept) > 10
