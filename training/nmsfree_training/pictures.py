"""Pictures of predictions beside the truth: misses, duplicates and errors at a glance."""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from nmsfree.detections import Detections
from nmsfree.draw import PALETTE_SIZE, Bgr, Style, draw, zoom_for
from nmsfree.errors import InputError
from nmsfree.images import as_bgr
from nmsfree_training.picture_marks import (
    ALARM,
    BACK,
    GREY,
    WHITE,
    Image,
    draw_dashed,
    draw_label,
    draw_strokes,
    with_strip,
)
from nmsfree_training.verdicts import Judgement, judge

LONGEST_SIDE = 1280  # pixels of a panel; larger images are shown smaller
MARGIN = 6  # pixels between the panels
SHORT_VERDICTS = {"right": "", "duplicate": " again", "wrong": " wrong"}  # after the class name


def draw_predictions(
    image: NDArray[np.uint8],
    detections: Detections,
    truth_boxes: NDArray[np.float32],
    truth_labels: NDArray[np.int64],
    names: tuple[str, ...],
) -> NDArray[np.uint8]:
    """Return two panels: left the objects there are, right what was found.

    On the right an object that was missed is dashed and white, a second prediction on one object
    is crossed out, and a prediction on no object of its class is struck through once; the
    counts of each stand above. A prediction is right at an IoU of 0.5 or more.

    Args:
        image: uint8 [h, w, 3], BGR. Small images are enlarged, those above 1280 pixels reduced.
        detections: what to show, best first; leave out what is too unsure to matter.
        truth_boxes: float32 [n, 4], xyxy in pixels of `image`.
        truth_labels: int64 [n], 0 … number of classes − 1, indices of `names`.
        names: class names of the dataset; those of the detections may have another order.

    Returns:
        uint8 [H, W, 3], BGR, a new picture.

    Raises:
        InputError: `image` is not such an array, or a detected class is not in `names`.
    """
    image = as_bgr(image)
    shown, scale = _resize(image)
    boxes = (np.asarray(truth_boxes, dtype=np.float32).reshape(-1, 4)) * scale
    found = _rename(detections, names, scale)
    verdict = judge(found.xyxy, found.class_id.astype(np.int64), boxes, truth_labels)
    style = Style.for_size(*shown.shape[:2])
    left = shown.copy()
    for box, label in zip(boxes, truth_labels.tolist(), strict=True):
        draw_dashed(left, box, style)
        draw_label(left, box, names[label], style)
    right = _found_panel(shown, found, verdict, style)
    for box in boxes[verdict.missed]:
        draw_dashed(right, box, style)
    left = with_strip(left, [(f"truth: {len(boxes)}", WHITE)], style)
    right = with_strip(right, _counts(verdict), style)
    between = np.full((left.shape[0], MARGIN, 3), BACK, dtype=np.uint8)
    return np.hstack([left, between, right])


def _resize(image: Image) -> tuple[Image, float]:
    """The image at a size that reads well, and the factor from the old pixels to the new."""
    height, width = image.shape[:2]
    zoom = float(zoom_for(height, width))
    if max(height, width) > LONGEST_SIDE:
        zoom = LONGEST_SIDE / max(height, width)
    if zoom == 1:
        return image, 1.0
    how = cv2.INTER_CUBIC if zoom > 1 else cv2.INTER_AREA
    size = max(1, round(width * zoom)), max(1, round(height * zoom))
    return np.asarray(cv2.resize(image, size, interpolation=how), dtype=np.uint8), zoom


def _rename(detections: Detections, names: tuple[str, ...], scale: float) -> Detections:
    """The detections with the class ids of `names` and boxes in the shown pixels."""
    unknown = set(detections.class_name) - set(names)
    if unknown:
        raise InputError(
            f"class {min(unknown)!r} was detected, expected one of the dataset's: "
            f"{', '.join(names[:5])}{', …' if len(names) > 5 else ''}"
        )
    ids = np.array([names.index(name) for name in detections.class_name], dtype=np.int32)
    return Detections(detections.xyxy * np.float32(scale), detections.confidence, ids, names)


def _found_panel(image: Image, found: Detections, verdict: Judgement, style: Style) -> Image:
    """Predictions in the colours of their classes, strokes over those that are not right."""
    panel = draw(image, _with_verdicts(found, verdict), style=style)
    for box, word in zip(found.xyxy, verdict.verdicts, strict=True):
        if word != "right":
            draw_strokes(panel, box, word == "duplicate", style)
    return panel


def _with_verdicts(found: Detections, verdict: Judgement) -> Detections:
    """The same detections, their verdicts in the names that are written beside them.

    Class ids move by whole rounds of the palette, which leaves the colours as they are.
    """
    classes = len(found.names)
    span = math.ceil(classes / PALETTE_SIZE) * PALETTE_SIZE
    padding = ("",) * (span - classes)
    words = list(SHORT_VERDICTS)
    longer = tuple(
        text
        for word in words
        for text in (*(f"{name}{SHORT_VERDICTS[word]}" for name in found.names), *padding)
    )
    shift = np.array([span * words.index(word) for word in verdict.verdicts], dtype=np.int32)
    return Detections(found.xyxy, found.confidence, found.class_id + shift, longer)


def _counts(verdict: Judgement) -> list[tuple[str, Bgr]]:
    right = verdict.count("right")
    errors = {
        "missed": int(verdict.missed.sum()),
        "duplicate": verdict.count("duplicate"),
        "wrong": verdict.count("wrong"),
    }
    counted = [(f"{word}: {count}", ALARM if count else GREY) for word, count in errors.items()]
    return [(f"found: {right}", WHITE), *counted]
