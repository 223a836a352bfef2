"""`Detections.to_supervision`, and the recipe of docs/streams.md for tracking."""

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from test_runtime_streams import write_video

from nmsfree import CallableBackend, Detector, ModelSpec, RawDetections

PAGE = Path(__file__).parents[2] / "docs/streams.md"
SIDE, SPEED = 14, 3  # pixels of a square, and a frame


def scene(number: int) -> NDArray[np.uint8]:
    """A blue square that goes right, and a red one that goes left below it."""
    picture = np.zeros((64, 96, 3), np.uint8)
    x = 4 + SPEED * number
    picture[4 : 4 + SIDE, x : x + SIDE, 0] = 255
    picture[40 : 40 + SIDE, 92 - x - SIDE : 92 - x, 2] = 255
    return picture


@pytest.fixture
def detector(make_spec: Any) -> Detector:
    spec: ModelSpec = make_spec(top_k=2)

    def squares(images: NDArray[np.uint8]) -> RawDetections:
        boxes = np.zeros((len(images), 2, 4), np.float32)
        for row, image in zip(boxes, images, strict=True):
            for box, channel in zip(row, (0, 2), strict=True):
                mask = (image[:, :, channel] > 128) & (image[:, :, 1] < 90)
                ys, xs = np.nonzero(mask)
                box[:] = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
        shape = len(images), 2
        scores = np.broadcast_to(np.float32([0.9, 0.8]), shape)
        classes = np.broadcast_to(np.int32([0, 2]), shape)
        return RawDetections(np.full((len(images), 1), 2, np.int32), boxes, scores, classes)

    return Detector(CallableBackend(squares, spec))


def test_detections_become_those_of_supervision(detector: Detector) -> None:
    pytest.importorskip("supervision")
    found = detector(scene(2))
    theirs = found.to_supervision()
    np.testing.assert_array_equal(theirs.xyxy, found.xyxy)
    np.testing.assert_array_equal(theirs.confidence, found.confidence)
    assert theirs.class_id.tolist() == [0, 2]
    assert theirs["class_name"].tolist() == ["blue", "red"]
    empty = found[[]].to_supervision()
    assert len(empty) == 0 and empty["class_name"].tolist() == []


def test_the_recipe_for_tracking_keeps_numbers(
    detector: Detector, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("trackers")
    clip = write_video(tmp_path / "clip.mp4", [scene(number) for number in range(20)])
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)
    (recipe,) = (block for block in blocks if "ByteTrackTracker" in block)
    for theirs, ours in (
        ('"street.mp4"', repr(str(clip))),
        ('nmsfree.Detector("model.onnx")', "given"),
        ("threshold=0.1", "threshold=0.5"),
    ):
        assert theirs in recipe
        recipe = recipe.replace(theirs, ours)
    exec(recipe, {"given": detector})
    numbers = defaultdict(set)
    lines = [line.split(maxsplit=3) for line in capsys.readouterr().out.splitlines()]
    for frame, number, name, _ in lines:
        if int(frame) > 2:
            numbers[name].add(int(number))
    assert len(lines) == 40
    assert len(numbers["blue"]) == len(numbers["red"]) == 1
    assert numbers["blue"] != numbers["red"] and -1 not in numbers["blue"] | numbers["red"]
