"""The published networks against numbers computed by their authors' implementation."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from nmsfree_training.model.detector import Fcos, Prediction
from nmsfree_training.weights.predict import (
    EVALUATE_O2M,
    EVALUATE_O2O,
    PostprocessConfig,
    postprocess,
)

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
    size: tuple[int, int],
) -> None:
    """Compare as sets: rows of nearly equal score may stand in another order."""
    height, width = size
    boxes = np.clip(found[0] / np.array([width, height] * 2, np.float32), 0, 1)
    assert len(boxes) == len(want[0])
    free = np.ones(len(boxes), bool)
    for box, score, label in zip(*want, strict=True):
        distance = np.abs(boxes - box).max(axis=1) + np.abs(found[1] - score)
        distance[~free | (found[2] != label)] = np.inf
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
    deployed = predictions[network.deployed_head]
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
        pyramid = random_network(name).features(make_image(*size))
    for level, features in zip((3, 4, 5), pyramid, strict=True):
        mean_std = [float(features.mean()), float(features.std())]
        np.testing.assert_allclose(mean_std, want[f"p{level}_mean_std"], rtol=0, atol=1e-3)


@CASES
def test_final_detections(
    name: str, size: tuple[int, int], random_network: Callable[[str], Fcos], reference: Reference
) -> None:
    network, want = random_network(name), expected(reference, name, size)
    settings = EVALUATE_O2M if network.deployed_head == "o2m" else EVALUATE_O2O
    found = postprocess(run(network, size)[network.deployed_head], settings)[0]
    rows = (want["final_boxes"], want["final_scores"], want["final_labels"])
    assert_same_detections(found, rows, size)


@pytest.mark.parametrize("size", SIZES)
def test_class_agnostic_nms(
    size: tuple[int, int], random_network: Callable[[str], Fcos], reference: Reference
) -> None:
    want = expected(reference, "fcos_rt_r18_3x", size)
    settings = PostprocessConfig(per_level=1000, nms_iou=0.6, class_aware=False)
    found = postprocess(run(random_network("fcos_rt_r18_3x"), size)["o2m"], settings)[0]
    rows = (want["agnostic_boxes"], want["agnostic_scores"], want["agnostic_labels"])
    assert_same_detections(found, rows, size)
