"""Pictures of predictions beside the truth: misses, duplicates and errors at a glance."""

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from nmsfree.detections import Detections
from nmsfree.draw import FONT, HALO, PALETTE_SIZE, Bgr, Style, draw, zoom_for
from nmsfree.errors import InputError
from nmsfree.images import as_bgr
from nmsfree.text import shown
from nmsfree_training.model.boxes import pairwise_iou

Image = NDArray[np.uint8]  # [h, w, 3], BGR
Rect = tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels of the picture
Point = tuple[int, int]

WHITE: Bgr = (255, 255, 255)
GREY: Bgr = (150, 150, 150)
ALARM: Bgr = (70, 70, 255)  # red
BACK: Bgr = (32, 32, 32)
NARROWEST = 440  # pixels of a picture below a strip, whose words need them
PAD = 4  # pixels around a text


def draw_dashed(picture: Image, box: NDArray[np.float32], style: Style) -> None:
    """Draw a dashed white box, xyxy in pixels of the picture."""
    x1, y1, x2, y2 = rect_of(box, picture)
    corners = [(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)]
    for color, width in ((HALO, style.line + 2), (WHITE, style.line)):
        for start, end in pairwise(corners):
            _draw_dashes(picture, start, end, color, width, 4 * style.line + 4)


def _draw_dashes(
    picture: Image, start: Point, end: Point, color: Bgr, width: int, dash: int
) -> None:
    (x1, y1), (x2, y2) = start, end
    length = max(abs(x2 - x1), abs(y2 - y1), 1)
    for at in range(0, length, 2 * dash):
        a, b = at / length, min(at + dash, length) / length
        ends = [(round(x1 + t * (x2 - x1)), round(y1 + t * (y2 - y1))) for t in (a, b)]
        cv2.line(picture, ends[0], ends[1], color, width)


def draw_strokes(picture: Image, box: NDArray[np.float32], both: bool, style: Style) -> None:
    """Strike a box through with its rising diagonal, or cross it out with both."""
    x1, y1, x2, y2 = rect_of(box, picture)
    diagonals = [((x1, y2), (x2, y1)), ((x1, y1), (x2, y2))][: 1 + both]
    for color, width in ((HALO, style.line + 2), (ALARM, style.line)):
        for start, end in diagonals:
            cv2.line(picture, start, end, color, width, cv2.LINE_AA)


def draw_label(picture: Image, box: NDArray[np.float32], text: str, style: Style) -> None:
    """Write black on white above a box, or inside it at the upper rim of the picture."""
    x1, y1, _, _ = rect_of(box, picture)
    scale, thickness = _font(style.text)
    width, height = _width(text, scale, thickness) + 2 * PAD, style.text + 2 * PAD
    x = min(x1, max(0, picture.shape[1] - width))
    y = y1 - height if y1 >= height else y1
    cv2.rectangle(picture, (x, y), (x + width - 1, y + height - 1), WHITE, cv2.FILLED)
    at = (x + PAD, y + PAD + style.text)
    cv2.putText(picture, shown(text), at, FONT, scale, (0, 0, 0), thickness, cv2.LINE_AA)


def with_strip(picture: Image, words: list[tuple[str, Bgr]], style: Style) -> Image:
    """Return the picture below a dark strip with coloured words.

    A narrow picture is padded on its right; words that are still too many get smaller.
    """
    height, width = picture.shape[:2]
    text = round(1.2 * style.text)
    scale, thickness = _font(text)
    strip, gap = 3 * text, 2 * text
    whole = np.full((height + strip, max(width, NARROWEST), 3), BACK, dtype=np.uint8)
    whole[strip:, :width] = picture
    widths = [_width(word, scale, thickness) for word, _ in words]
    taken = 2 * PAD + sum(widths) + gap * (len(words) - 1)
    shrink = min(1.0, whole.shape[1] / taken)
    x = float(PAD)
    for (word, color), wide in zip(words, widths, strict=True):
        at = (round(x), 2 * text)
        cv2.putText(whole, shown(word), at, FONT, scale * shrink, color, thickness, cv2.LINE_AA)
        x += (wide + gap) * shrink
    return whole


def rect_of(box: NDArray[np.float32], picture: Image) -> Rect:
    """Whole pixels inside the picture; the right and lower edge are the last pixels."""
    height, width = picture.shape[:2]
    x1, y1, x2, y2 = (round(v) for v in box.tolist())
    left, top = min(max(x1, 0), width - 1), min(max(y1, 0), height - 1)
    return left, top, min(max(x2 - 1, left), width - 1), min(max(y2 - 1, top), height - 1)


def _width(text: str, scale: float, thickness: int) -> int:
    return int(cv2.getTextSize(shown(text), FONT, scale, thickness)[0][0])


def _font(capital: int) -> tuple[float, int]:
    """OpenCV's font scale and stroke width for capitals of this many pixels."""
    return capital / _capital_at_one(), max(1, round(capital / 7))


@lru_cache(maxsize=1)
def _capital_at_one() -> float:
    """Pixels of a capital at font scale 1, measured: OpenCV 4 and 5 have different fonts."""
    scale, canvas = 6.0, np.zeros((300, 300), dtype=np.uint8)
    cv2.putText(canvas, "E", (20, 280), FONT, scale, 255, 1, cv2.LINE_AA)
    return float(np.count_nonzero(canvas.any(axis=1)) / scale)


Verdict = Literal["right", "duplicate", "wrong"]

MATCH_IOU = 0.5


@dataclass(frozen=True)
class Judgement:
    """What became of every prediction and every object.

    Attributes:
        verdicts: for each prediction. "right": the best one of its class on an object;
            "duplicate": another one of that class on an object that is found already;
            "wrong": on no object of its class.
        missed: bool [n], objects without a right prediction.
    """

    verdicts: tuple[Verdict, ...]
    missed: NDArray[np.bool_]

    def count(self, verdict: Verdict) -> int:
        """Number of predictions of one verdict."""
        return self.verdicts.count(verdict)


def judge(
    boxes: NDArray[np.float32],
    labels: NDArray[np.int64],
    truth_boxes: NDArray[np.float32],
    truth_labels: NDArray[np.int64],
) -> Judgement:
    """Match predictions with objects of the same class, one to one, at IoU 0.5 or more.

    Args:
        boxes: float32 [m, 4] xyxy, best prediction first.
        labels: int64 [m].
        truth_boxes: float32 [n, 4] xyxy, in the same pixels.
        truth_labels: int64 [n].
    """
    overlap = _overlap(boxes, truth_boxes) * (labels[:, None] == truth_labels[None])  # [m, n]
    found = np.zeros(len(truth_boxes), dtype=np.bool_)
    verdicts: list[Verdict] = []
    for row in overlap:
        on_object = row >= MATCH_IOU
        free = np.where(on_object & ~found, row, -1.0)
        if (free > 0).any():
            found[int(free.argmax())] = True
            verdicts.append("right")
        else:
            verdicts.append("duplicate" if on_object.any() else "wrong")
    return Judgement(tuple(verdicts), ~found)


def _overlap(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    iou = pairwise_iou(torch.from_numpy(a)[None], torch.from_numpy(b)[None])[0]
    return np.asarray(iou.numpy(), dtype=np.float32)


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
