"""Judging the boxes of a split: which have no area, lie outside, or are there twice."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nmsfree.datasets.check.images import ImageFact
from nmsfree.datasets.dataset import columns_of, repeated_lines, to_corners, with_area
from nmsfree.datasets.faults import Fault, Kind, Xywh
from nmsfree.datasets.image_files import Size
from nmsfree.datasets.rows import SplitRows

OVERHANG = 1.0  # pixels by which a box may reach out of its image unreported: rounding
SAME_CORNERS = 1.0  # pixels by which the corners of duplicates may differ
AREA_SLACK = 0.05  # by which a stated area may exceed its box: rounding, whole pixels counted
MANY = 100  # objects: rows of a model's output by default, and detections of a class in COCO's AP
SMALL_SIDE = 8.0  # pixels: the finest stride of the detectors


@dataclass(frozen=True, eq=False)
class Boxes:
    """The boxes of a split and the verdict on each."""

    xyxy: NDArray[np.float64]  # [n, 4], as annotated, in source pixels
    clipped: NDArray[np.float64]  # [n, 4], cut to the image where its size is known
    without_area: NDArray[np.bool_]  # [n], no width or height, or not finite
    outside: NDArray[np.bool_]  # [n], nothing of it lies in the image
    partly_outside: NDArray[np.bool_]  # [n], reaches out by more than `OVERHANG`
    duplicate_of: NDArray[np.int64]  # [n], row of the earlier box that it repeats; −1 for none
    crowd: NDArray[np.bool_]  # [n], regions to ignore
    area_odd: NDArray[np.bool_]  # [n], the stated area is none, or larger than the box

    @property
    def good(self) -> NDArray[np.bool_]:
        """Boxes worth keeping, bool [n]."""
        return ~self.without_area & ~self.outside & (self.duplicate_of < 0)


def judge(rows: SplitRows, sizes: Mapping[int, Size | None]) -> Boxes:
    """Judge every box of a split; an image whose size is unknown lets a box reach anywhere."""
    limits = {i: size or (np.inf, np.inf) for i, size in sizes.items()}
    limit = np.array([limits[row.image_id] for row in rows.objects]).reshape(-1, 2)
    xywh, stated, crowd = columns_of(rows)
    area = with_area(xywh)
    xyxy = to_corners(np.where(area[:, None], xywh, 0.0))
    clipped = np.clip(xyxy, 0.0, np.tile(limit, 2))
    outside = area & ~with_area(np.hstack([clipped[:, :2], clipped[:, 2:] - clipped[:, :2]]))
    reach = np.abs(clipped - xyxy).max(axis=1, initial=0.0)
    partly = area & ~outside & (reach > OVERHANG)
    duplicates = _duplicates(rows, clipped, np.flatnonzero(area & ~outside & ~crowd))
    most = (xyxy[:, 2:] - xyxy[:, :2]).prod(axis=1) * (1 + AREA_SLACK) + 1
    odd = area & ~np.isnan(stated) & ~((stated > 0) & (stated <= most))
    return Boxes(xyxy, clipped, ~area, outside, partly, duplicates, crowd, odd)


def _duplicates(
    rows: SplitRows, boxes: NDArray[np.float64], countable: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return for every box the earlier one of its image and class that it repeats, or −1."""
    duplicate_of = np.full(len(boxes), -1, dtype=np.int64)
    names = {category.id: category.name for category in rows.categories}  # one name, one class
    groups: dict[tuple[int, str], list[int]] = defaultdict(list)
    for index in countable.tolist():
        row = rows.objects[index]
        groups[row.image_id, names[row.category_id]].append(index)
    for group in groups.values():
        corners = boxes[group]
        same = np.abs(corners[:, None] - corners[None]).max(axis=2) <= SAME_CORNERS
        if np.count_nonzero(same) == len(group):
            continue  # nothing but the diagonal
        kept: list[int] = []
        for position, index in enumerate(group):
            first = next((k for k in kept if same[position, k]), None)
            if first is None:
                kept.append(position)
            else:
                duplicate_of[index] = group[first]
    return duplicate_of


def box_faults(rows: SplitRows, boxes: Boxes, sizes: Mapping[int, Size | None]) -> Iterator[Fault]:
    """Yield a fault for every box that is not right."""
    images = {image.id: image for image in rows.images}
    duplicate, repeats = boxes.duplicate_of >= 0, repeated_lines(rows)
    verdicts = {
        Kind.BOX_WITHOUT_AREA: boxes.without_area,
        Kind.BOX_OUTSIDE: boxes.outside,
        Kind.BOX_PARTLY_OUTSIDE: boxes.partly_outside,
        Kind.BOX_DUPLICATE: duplicate & ~repeats,
        Kind.LINE_REPEATED: duplicate & repeats,
        Kind.BOX_AREA: boxes.area_odd,
    }
    for kind, mask in verdicts.items():
        for index in np.flatnonzero(mask).tolist():
            row = rows.objects[index]
            image = images[row.image_id]
            detail = f"{rows.place(row)}: {_words(rows, boxes, kind, index, sizes[row.image_id])}"
            yield Fault(kind, image.source, detail, image.path, (row.bbox,))


def _words(rows: SplitRows, boxes: Boxes, kind: Kind, index: int, size: Size | None) -> str:
    """Say what is wrong with a box."""
    row = rows.objects[index]
    if kind in (Kind.BOX_DUPLICATE, Kind.LINE_REPEATED):
        return f"repeats {rows.place(rows.objects[boxes.duplicate_of[index]])}"
    x, y, width, height = row.bbox
    if kind is Kind.BOX_AREA:
        return f"area {row.area:g}, its box has {width * height:g}"
    if row.note:
        return row.note
    if kind is Kind.BOX_WITHOUT_AREA:
        return f"{width:g} × {height:g} pixels at ({x:g}, {y:g})"
    corners = f"{x:.6g}, {y:.6g} to {x + width:.6g}, {y + height:.6g}"
    return f"{corners} of {size[0]} × {size[1]}" if size else corners


def object_faults(
    rows: SplitRows, boxes: Boxes, facts: Mapping[Path, ImageFact]
) -> Iterator[Fault]:
    """Yield images with small boxes, with more objects than a model gives rows, and with none."""
    usable = boxes.good & ~boxes.crowd
    of_image = Counter(rows.objects[index].image_id for index in np.flatnonzero(usable).tolist())
    sides = (boxes.clipped[:, 2:] - boxes.clipped[:, :2]).min(axis=1, initial=np.inf)
    small: dict[int, list[Xywh]] = defaultdict(list)
    for index in np.flatnonzero(usable & (sides < SMALL_SIDE)).tolist():
        small[rows.objects[index].image_id].append(rows.objects[index].bbox)
    for image in rows.images:
        objects, found = of_image[image.id], tuple(small.get(image.id, ()))
        if found:
            detail = f"{len(found)} boxes" if len(found) > 1 else "1 box"
            yield Fault(Kind.BOX_SMALL, image.source, detail, image.path, found)
        if objects > MANY:
            yield Fault(Kind.IMAGE_FULL, image.source, f"{objects} objects", image.path)
        if not objects and facts[image.path].problem is None:
            yield Fault(Kind.IMAGE_WITHOUT_OBJECTS, image.source, "no object", image.path)
