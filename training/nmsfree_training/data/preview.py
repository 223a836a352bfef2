"""A contact sheet of what the network will see: real batches, made visible again."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nmsfree.datasets.formats.coco import DetectionDataset
from nmsfree.detections import Detections
from nmsfree.draw import FONT, INK, color_of, draw
from nmsfree.errors import InputError
from nmsfree.files import write_atomic
from nmsfree.text import shorten, shown
from nmsfree_training.config import Preset
from nmsfree_training.criterion.assignment import MIN_SIDE
from nmsfree_training.data.batch import Batch, collate
from nmsfree_training.data.loader import epoch_loader
from nmsfree_training.model.norms import MEAN_RGB, STD_RGB

logger = logging.getLogger(__name__)

SIDE = 480  # pixels; longest side of a tile
COLUMNS = 4
GAP = 8  # pixels between tiles
STRIP = 24  # pixels; height of the title
CAPTION = 40  # pixels; height of a caption of two lines
LONGEST = 36  # characters of a file name
# Files that an example was made of → how.
MIXES = {2: "mixup", 4: "mosaic", 5: "mosaic and mixup"}
PAPER, PALE = (250, 250, 250), (190, 190, 190)
HATCH = ((225, 225, 225), (165, 165, 165))  # stripes where the input is padded
STRIPE = 6  # pixels
DASH = 4  # pixels

Bgr = NDArray[np.uint8]


@dataclass(frozen=True)
class View:
    """One image of a batch.

    Attributes:
        picture: uint8 [H, W, 3], BGR, the whole frame.
        padding: bool [H, W].
        boxes: float32 [n, 4], xyxy in pixels of the frame.
        labels: int64 [n].
        valid: bool [n], False where an object is too small to be assigned.
    """

    picture: Bgr
    padding: NDArray[np.bool_]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    valid: NDArray[np.bool_]


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
    names; objects too small to be assigned are dashed and grey; the padding of
    a batch is hatched. The suffix of the path chooses the format.

    Raises:
        InputError: the suffix is no picture format, or the file cannot be written.
        DataError: there are no images, or they cannot be used.
    """
    if not path.suffix or not cv2.haveImageWriter(path.name):
        raise InputError(f"{path}: not a picture format that can be written, expected .png or .jpg")
    shown = list(islice(named_views(dataset, preset, seed, epoch), count))
    tiles = [_tile(view, names, dataset.class_names) for view, names in shown]
    title = (
        f"{preset.model.name}, epoch {epoch + 1}, seed {seed}    hatched: padding    "
        f"grey dashes: under {MIN_SIDE:.0f} px, not assigned"
    )
    write_atomic(path, cv2.imencode(path.suffix, _sheet(tiles, title))[1].tobytes())


def named_views(
    dataset: DetectionDataset, preset: Preset, seed: int, epoch: int
) -> Iterator[tuple[View, str]]:
    """Yield what the loader yields, image by image, and of which files each was made."""
    batches = epoch_loader(dataset, preset, seed, epoch, workers=0).batches
    for part in batches.parts:
        examples = [batches.examples[index] for index in part]
        batch = collate(examples)
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
    return [
        View(
            _to_bgr(batch.images[i]),
            padding[i].numpy(),
            targets.boxes[i][real[i]].numpy(),
            targets.labels[i][real[i]].numpy(),
            targets.valid[i][real[i]].numpy(),
        )
        for i in range(len(batch.images))
    ]


def _to_bgr(image: Tensor) -> Bgr:
    """float32 [3, h, w] RGB, normalised → uint8 [h, w, 3] BGR."""
    mean, std = torch.tensor(MEAN_RGB)[:, None, None], torch.tensor(STD_RGB)[:, None, None]
    rgb = ((image * std + mean) * 255).round().clamp(0, 255).byte()
    return np.ascontiguousarray(rgb.flip(0).permute(1, 2, 0).numpy())


def _tile(view: View, name: str, class_names: tuple[str, ...]) -> Bgr:
    """Draw one view, enlarged or reduced, with its caption below."""
    picture = view.picture.copy()
    picture[view.padding] = _hatch(*view.padding.shape)[view.padding]
    height, width = picture.shape[:2]
    factor = SIDE / max(height, width)
    if factor < 1:
        size = max(1, round(width * factor)), max(1, round(height * factor))
        picture = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
    zoom = max(1, int(factor))
    boxes = view.boxes * (np.float32(factor) if factor < 1 else np.float32(zoom))
    picture = picture.repeat(zoom, axis=0).repeat(zoom, axis=1)
    for box in boxes[~view.valid]:
        _dash(picture, box)
    picture = _draw_objects(picture, boxes[view.valid], view.labels[view.valid], class_names)
    inside = int((~view.padding).any(axis=1).sum()), int((~view.padding).any(axis=0).sum())
    caption = f"{inside[0]} x {inside[1]}"
    if view.padding.any():
        caption += f"   padded to {height} x {width}"
    tiny = int((~view.valid).sum())
    counts = f"   {len(boxes)} object{'s' * (len(boxes) != 1)}"
    about = caption + counts + (f", {tiny} too small" if tiny else "")
    return _captioned(picture, (name, about))


def _hatch(height: int, width: int) -> Bgr:
    rows, columns = np.ogrid[:height, :width]
    return np.asarray(np.array(HATCH, np.uint8)[(rows + columns) // STRIPE % 2], np.uint8)


def _draw_objects(
    picture: Bgr, boxes: NDArray[np.float32], labels: NDArray[np.int64], names: tuple[str, ...]
) -> Bgr:
    sure = np.ones(len(boxes), np.float32)  # `draw` is made for detections
    picture = draw(picture, Detections(boxes, sure, labels.astype(np.int32), names), labels=False)
    for box, label in zip(boxes, labels.tolist(), strict=True):
        _name(picture, box, names[label], label)
    return picture


def _name(picture: Bgr, box: NDArray[np.float32], text: str, label: int) -> None:
    """Write a class name on its colour: above the box, or inside where there is no room."""
    text = shown(text)
    (width, height), base = cv2.getTextSize(text, FONT, 0.42, 1)
    x = min(max(0, int(box[0])), max(0, picture.shape[1] - width - 4))
    y = int(box[1]) - height - base
    if y < 0:
        y = max(0, int(box[1]))
    corner = (x + width + 3, y + height + base - 1)
    cv2.rectangle(picture, (x, y), corner, color_of(label), cv2.FILLED)
    cv2.putText(picture, text, (x + 2, y + height + 1), FONT, 0.42, INK, 1, cv2.LINE_AA)


def _dash(picture: Bgr, box: NDArray[np.float32]) -> None:
    """Outline a box with grey dashes, a pixel outside of it."""
    x1, y1, x2, y2 = (round(float(v)) for v in (*(box[:2] - 2), *(box[2:] + 1)))
    for colour, phase in (((40, 40, 40), 0), (PALE, DASH)):
        for x in range(x1 + phase, x2, 2 * DASH):
            for y in (y1, y2):
                cv2.line(picture, (x, y), (min(x + DASH - 1, x2), y), colour, 1)
        for y in range(y1 + phase, y2, 2 * DASH):
            for x in (x1, x2):
                cv2.line(picture, (x, y), (x, min(y + DASH - 1, y2)), colour, 1)


def _captioned(picture: Bgr, lines: tuple[str, str]) -> Bgr:
    below = cv2.copyMakeBorder(picture, 0, CAPTION, 0, 0, cv2.BORDER_CONSTANT, value=PAPER)
    for text, up in zip(lines, (24, 8), strict=True):
        cv2.putText(below, text, (2, below.shape[0] - up), FONT, 0.42, INK, 1, cv2.LINE_AA)
    return np.asarray(below, np.uint8)


def _sheet(tiles: list[Bgr], title: str) -> Bgr:
    """Tiles in rows, each in a cell of the largest size, below a title."""
    height = max(tile.shape[0] for tile in tiles) + GAP
    width = max(tile.shape[1] for tile in tiles) + GAP
    columns = min(COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    sheet = np.full((STRIP + GAP + rows * height, GAP + columns * width, 3), PAPER, np.uint8)
    cv2.putText(sheet, title, (GAP, STRIP - 4), FONT, 0.5, INK, 1, cv2.LINE_AA)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        top, left = STRIP + GAP + row * height, GAP + column * width
        sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return sheet
