"""Pictures of a run: what the network sees in a batch, and what it finds beside what is there."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from nmsfree.datasets.formats.coco import DetectionDataset
from nmsfree.detections import Detections
from nmsfree.drawing import (
    Bgr,
    Image,
    Mark,
    Style,
    Tile,
    color_of,
    draw_marks,
    make_sheet,
    resized,
    write,
    zoom_for,
)
from nmsfree.errors import InputError
from nmsfree.images import as_bgr, write_picture
from nmsfree.text import shorten
from nmsfree_training.config import Preset
from nmsfree_training.criterion.assignment import MIN_SIDE
from nmsfree_training.data.batch import Batch, pack, unpack
from nmsfree_training.data.loader import EpochLoader
from nmsfree_training.model.boxes import pairwise_iou
from nmsfree_training.model.norms import MEAN_RGB, STD_RGB

logger = logging.getLogger(__name__)

WHITE: Bgr = (255, 255, 255)
ALARM: Bgr = (70, 70, 255)  # red
BACK: Bgr = (32, 32, 32)
PALE: Bgr = (190, 190, 190)
STRIP = 28  # pixels above a picture, for words
NARROWEST = 440  # pixels that four words need
COLUMNS = 4  # of the preview
LONGEST = 36  # characters of a file name
MIXES = {2: "mixup", 4: "mosaic", 5: "mosaic and mixup"}  # by the files an example was made of
HATCH = ((225, 225, 225), (165, 165, 165))  # stripes where the input is padded
STRIPE = 6  # pixels


# What the network sees


@dataclass(frozen=True)
class View:
    """One image of a batch."""

    picture: Image  # uint8 [H, W, 3], BGR, the whole frame
    padding: NDArray[np.bool_]  # bool [H, W]
    boxes: NDArray[np.float32]  # float32 [n, 4], xyxy in pixels of the frame
    labels: NDArray[np.int64]  # int64 [n]
    valid: NDArray[np.bool_]  # bool [n], False where an object is too small to be assigned


def write_preview(
    dataset: DetectionDataset,
    preset: Preset,
    seed: int,
    path: Path,
    count: int = 16,
    epoch: int = 0,
) -> None:
    """Draw the first `count` images of an epoch exactly as a training step gets them.

    Captions name the file, or the first of a mix, and tell mosaics and mixups. Boxes carry class
    names, those of objects too small to be assigned are dashed and grey; the padding of a batch is
    hatched. The suffix of the path chooses the format.

    Raises:
        InputError: the suffix is no picture format, or the file cannot be written.
        DataError: there are no images, or they cannot be used.
    """
    if not path.suffix or not cv2.haveImageWriter(path.name):
        raise InputError(f"{path}: not a picture format that can be written, expected .png or .jpg")
    shown = islice(named_views(dataset, preset, seed, epoch), count)
    title = (
        f"{preset.model.name}, epoch {epoch + 1}, seed {seed}    hatched: padding    "
        f"grey dashes: under {MIN_SIDE:.0f} px, not assigned"
    )
    tiles = [_tile(view, name, dataset.class_names) for view, name in shown]
    write_picture(path, make_sheet(tiles, COLUMNS, title))


def named_views(
    dataset: DetectionDataset, preset: Preset, seed: int, epoch: int
) -> Iterator[tuple[View, str]]:
    """Yield what the loader yields, image by image, and of which files each was made."""
    batches = EpochLoader(dataset, preset, seed, epoch, workers=0).batches
    for part in batches.parts:
        examples = [batches.examples[index] for index in part]
        batch = unpack(pack(examples))
        for file, reason in batch.failed:
            logger.warning("%s: %s; replaced by another image", file, reason)
        yield from zip(views(batch), [origin(e.names) for e in examples], strict=True)


def origin(names: tuple[str, ...]) -> str:
    """ "street 12.jpg", or "street 12.jpg + 3, mosaic"; OpenCV writes ASCII only."""
    name = shorten(Path(names[0]).name, LONGEST).replace("…", "...")
    text = name.encode("ascii", "replace").decode()
    return text if len(names) == 1 else f"{text} + {len(names) - 1}, {MIXES[len(names)]}"


def views(batch: Batch) -> list[View]:
    """Undo the normalisation of a batch."""
    padding = batch.padding
    if padding is None:
        padding = torch.zeros_like(batch.images[:, 0], dtype=torch.bool)
    targets = batch.targets
    real = (targets.boxes[..., 2:] > targets.boxes[..., :2]).all(dim=-1)  # rows that pad are zero
    mean, std = torch.tensor(MEAN_RGB)[:, None, None], torch.tensor(STD_RGB)[:, None, None]
    rgb = ((batch.images * std + mean) * 255).round().clamp(0, 255).byte()
    pictures = np.ascontiguousarray(rgb.flip(1).permute(0, 2, 3, 1).numpy())
    return [
        View(
            picture,
            padding[i].numpy(),
            *(t[i][real[i]].numpy() for t in (targets.boxes, targets.labels, targets.valid)),
        )
        for i, picture in enumerate(pictures)
    ]


def _tile(view: View, name: str, class_names: tuple[str, ...]) -> Tile:
    picture, (height, width) = view.picture.copy(), view.padding.shape
    rows, columns = np.ogrid[:height, :width]
    hatched = np.array(HATCH, np.uint8)[(rows + columns) // STRIPE % 2]
    picture[view.padding] = hatched[view.padding]
    marks = [
        _mark(box, class_names[label], color_of(label)) if valid else _mark(box, "", PALE, True)
        for box, label, valid in zip(view.boxes, view.labels.tolist(), view.valid, strict=True)
    ]
    inside = int((~view.padding).any(axis=1).sum()), int((~view.padding).any(axis=0).sum())
    about = f"{inside[0]} x {inside[1]}"
    if view.padding.any():
        about += f"   padded to {height} x {width}"
    about += f"   {len(marks)} object{'s' * (len(marks) != 1)}"
    if tiny := int((~view.valid).sum()):
        about += f", {tiny} too small"
    return Tile(picture, tuple(marks), name, about)


# What it finds

Verdict = Literal["right", "duplicate", "wrong"]

MATCH_IOU = 0.5
LONGEST_SIDE = 1280  # pixels of a panel; larger images are shown smaller
MARGIN = 6  # pixels between the panels
AFTER = {"right": "", "duplicate": " again", "wrong": " wrong"}  # after the class name


def judge(
    boxes: NDArray[np.float32],
    labels: NDArray[np.int64],
    truth_boxes: NDArray[np.float32],
    truth_labels: NDArray[np.int64],
) -> tuple[list[Verdict], NDArray[np.bool_]]:
    """Match predictions with objects of the same class, one to one, at IoU 0.5 or more.

    Args:
        boxes, labels: float32 [m, 4] xyxy and int64 [m], best prediction first.
        truth_boxes, truth_labels: float32 [n, 4] and int64 [n], in the same pixels.

    Returns:
        Of each prediction "right" (the best one of its class on an object), "duplicate" (another
        one on an object that is found already) or "wrong" (on no object of its class); and
        bool [n], the objects that are missed.
    """
    ious = pairwise_iou(torch.from_numpy(boxes)[None], torch.from_numpy(truth_boxes)[None])[0]
    overlap = ious.numpy() * (labels[:, None] == truth_labels[None])  # [m, n]
    missed = np.ones(len(truth_boxes), dtype=np.bool_)
    verdicts: list[Verdict] = []
    for row in overlap:
        free = np.where(missed, row, -1.0)
        if (free >= MATCH_IOU).any():
            missed[int(free.argmax())] = False
            verdicts.append("right")
        else:
            verdicts.append("duplicate" if (row >= MATCH_IOU).any() else "wrong")
    return verdicts, missed


def draw_predictions(
    image: Image,
    detections: Detections,
    truth_boxes: NDArray[np.float32],
    truth_labels: NDArray[np.int64],
    names: tuple[str, ...],
) -> Image:
    """Return two panels: left the objects there are, right what was found, uint8 [H, W, 3] BGR.

    On the right a prediction has the colour of its class, and is red with a word where it is a
    second one on an object ("again") or on no object of its class ("wrong"); an object that was
    missed is dashed and white. The counts of each stand above. See `judge`.

    Args:
        image: uint8 [h, w, 3], BGR. Small images are enlarged, those above 1280 pixels reduced.
        detections: what to show, best first; leave out what is too unsure to matter.
        truth_boxes: float32 [n, 4], xyxy in pixels of `image`.
        truth_labels: int64 [n], indices of `names`.
        names: class names of the dataset; those of the detections may have another order.

    Raises:
        InputError: `image` is not such an array, or a detected class is not in `names`.
    """
    panel, scale = _resize(as_bgr(image))
    if unknown := set(detections.class_name) - set(names):
        raise InputError(
            f"class {min(unknown)!r} was detected, expected one of the dataset's: "
            f"{', '.join(names[:5])}{', …' if len(names) > 5 else ''}"
        )
    labels = np.array([names.index(name) for name in detections.class_name], np.int64)
    truth = np.asarray(truth_boxes, np.float32).reshape(-1, 4)
    verdicts, missed = judge(detections.xyxy, labels, truth, truth_labels)
    there = [
        _mark(box, names[label], WHITE, True)
        for box, label in zip(truth * scale, truth_labels.tolist(), strict=True)
    ]
    found = [_mark(box, "missed", WHITE, True) for box in truth[missed] * scale]
    columns = detections.xyxy * scale, labels.tolist(), detections.confidence, verdicts
    for box, label, score, verdict in zip(*columns, strict=True):
        color = color_of(label) if verdict == "right" else ALARM
        found.append(_mark(box, f"{names[label]} {score:.2f}{AFTER[verdict]}", color))
    counts = {"missed": int(missed.sum())}
    counts |= {word: verdicts.count(word) for word in ("duplicate", "wrong")}
    words = [(f"{word}: {count}", ALARM if count else PALE) for word, count in counts.items()]
    style = Style.for_size(*panel.shape[:2])
    left, right = panel.copy(), panel.copy()
    draw_marks(left, there, style)
    draw_marks(right, found, style)
    left = _below_strip(left, [(f"truth: {len(truth)}", WHITE)])
    right = _below_strip(right, [(f"found: {verdicts.count('right')}", WHITE), *words])
    between = np.full((left.shape[0], MARGIN, 3), BACK, dtype=np.uint8)
    return np.hstack([left, between, right])


def _resize(image: Image) -> tuple[Image, float]:
    """The image at a size that reads well, and the factor from the old pixels to the new."""
    height, width = image.shape[:2]
    zoom = float(zoom_for(height, width))
    if max(height, width) > LONGEST_SIDE:
        zoom = LONGEST_SIDE / max(height, width)
    size = max(1, round(height * zoom)), max(1, round(width * zoom))
    return image if zoom == 1 else resized(image, *size), zoom


def _mark(box: NDArray[np.float32], name: str, color: Bgr, dashed: bool = False) -> Mark:
    x1, y1, x2, y2 = box.tolist()
    return Mark((x1, y1, x2, y2), name, color, dashed, thin=not name)


def _below_strip(picture: Image, words: Sequence[tuple[str, Bgr]]) -> Image:
    """The picture below a dark strip with coloured words; a narrow one is padded on its right."""
    missing = max(0, NARROWEST - picture.shape[1])
    bordered = cv2.copyMakeBorder(picture, STRIP, 0, 0, missing, cv2.BORDER_CONSTANT, value=BACK)
    whole = np.asarray(bordered, np.uint8)
    for number, (text, color) in enumerate(words):
        write(whole, text, (6 + number * NARROWEST // 4, STRIP - 9), 10, color)
    return whole
