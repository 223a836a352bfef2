"""A detection dataset in memory, the same whatever format it was read from."""

import logging
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmsfree.datasets.faults import Xywh
from nmsfree.datasets.rows import ImageRow, SplitRows
from nmsfree.errors import DataError

logger = logging.getLogger(__name__)

UNKNOWN_SIZE = (1, 1)  # the smallest, so that whoever computes with it before reading can
LARGEST_AREA = 1e10  # pixels²: COCO's metrics pass over what is larger
NAMED = 3  # files in a warning


@dataclass(frozen=True, eq=False)
class Sample:
    """One image and what is in it; the picture itself is read by who needs it.

    Its size is what the annotations say; where they do not, what the file says, and
    `UNKNOWN_SIZE` where that cannot be read: its pixels cannot either.
    """

    image_id: int  # the dataset's own id
    path: Path  # image file
    width: int  # in pixels
    height: int
    boxes: NDArray[np.float32]  # [n, 4], xyxy in source pixels
    labels: NDArray[np.int64]  # [n], index into the dataset's class names
    iscrowd: NDArray[np.bool_]  # [n], regions of many objects: not trained on, ignored by metrics
    # [n, 4], at the source's full precision; of `boxes` if not given
    xywh: NDArray[np.float64] = None  # type: ignore[assignment]
    # [n], in pixels²: the stated one (that of a mask), else that of the box
    area: NDArray[np.float64] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.xywh is None:
            corners = self.boxes.astype(np.float64)
            xywh = np.hstack([corners[:, :2], corners[:, 2:] - corners[:, :2]])
            object.__setattr__(self, "xywh", xywh)
        if self.area is None:
            object.__setattr__(self, "area", self.xywh[:, 2] * self.xywh[:, 3])


@dataclass(frozen=True, eq=False)
class DetectionDataset:
    """One split of a dataset; `samples` are in its order, also those without objects."""

    name: str  # name of the split
    samples: tuple[Sample, ...]
    class_names: tuple[str, ...]  # by label; classes are ordered by category id
    category_ids: tuple[int, ...]  # the dataset's own id of each class, ascending, possibly sparse
    image_ids: tuple[int, ...]  # of the whole split, ascending; `samples` may be a part of it
    annotation_file: Path  # COCO's file, YOLO's data.yaml, VOC's list in ImageSets/Main
    root: Path  # folder of the dataset

    def __len__(self) -> int:
        return len(self.samples)

    def files(self) -> Iterator[Path]:
        """Yield the annotation file and the pictures, which no output may replace."""
        yield self.annotation_file
        yield from (sample.path for sample in self.samples)


def build(rows: SplitRows) -> DetectionDataset:
    """Turn what a reader found into arrays.

    Boxes without area or not finite, and repeated lines of YOLO label files, are dropped, with one
    warning for the split; those that reach out of their image stay, as the metrics need them.
    Images whose size cannot be read stay, with a warning: who reads their pixels decides.

    Raises:
        DataError: two classes have one name.
    """
    class_names = tuple(category.name for category in rows.categories)
    twice = sorted({name for name in class_names if class_names.count(name) > 1})
    if twice:
        raise DataError(
            f"{rows.file} gives several classes one name ({', '.join(twice[:5])}): rename them, or "
            "make them one class with `nmsfree data check DIR --fix`"
        )
    label_of = {category.id: label for label, category in enumerate(rows.categories)}
    xywh, stated, crowd = columns_of(rows)
    good, repeats = with_area(xywh), repeated_lines(rows)
    if lost := int((~good).sum()):
        logger.warning("%s: dropped %d boxes without area", rows.file, lost)
    if lines := int(repeats.sum()):
        logger.warning("%s: left out %d label lines that repeat another", rows.file, lines)
    of_image: dict[int, list[int]] = defaultdict(list)
    for index in np.flatnonzero(good & ~repeats).tolist():
        of_image[rows.objects[index].image_id].append(index)
    with np.errstate(over="ignore", invalid="ignore"):  # in boxes that were dropped
        corners = to_corners(xywh).astype(np.float32)
        of_box = xywh[:, 2] * xywh[:, 3]
    area = np.where((stated >= 0) & (stated <= LARGEST_AREA), stated, of_box)
    labels = np.array([label_of[row.category_id] for row in rows.objects], dtype=np.int64)
    columns: tuple[NDArray[Any], ...] = (corners, labels, crowd, xywh, area)

    def sample(image: ImageRow) -> Sample:
        own = np.array(of_image[image.id], dtype=np.int64)
        size = image.size or UNKNOWN_SIZE
        return Sample(image.id, image.path, *size, *(column[own] for column in columns))

    unread = [str(image.path) for image in rows.images if image.size is None]
    if unread:
        names = ", ".join(unread[:NAMED]) + (", …" if len(unread) > NAMED else "")
        what = "1 image" if len(unread) == 1 else f"{len(unread)} images"
        logger.warning("%s: %s cannot be read: %s", rows.file, what, names)
    samples = tuple(map(sample, rows.images))
    ids = tuple(sorted(image.id for image in rows.images))
    return DetectionDataset(
        rows.name, samples, class_names, tuple(label_of), ids, rows.file, rows.root
    )


def repeated_lines(rows: SplitRows) -> NDArray[np.bool_]:
    """Which objects repeat an earlier line of their YOLO label file, bool [n].

    Trainers of such sets leave those lines out, so they stand for no second object.
    """
    repeats = np.zeros(len(rows.objects), dtype=np.bool_)
    seen: set[tuple[int, int, Xywh]] = set()
    for index, row in enumerate(rows.objects if rows.format == "YOLO" else ()):
        line = (row.image_id, row.category_id, row.bbox)
        repeats[index] = line in seen
        seen.add(line)
    return repeats


def columns_of(
    rows: SplitRows,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Of all objects left, top, width, height [n, 4] and the stated area [n], in pixels of the
    source and NaN where none is stated; and which are regions to ignore [n].
    """
    xywh = np.array([row.bbox for row in rows.objects], dtype=np.float64).reshape(-1, 4)
    area = np.array([row.area for row in rows.objects], dtype=np.float64)
    return xywh, area, np.array([row.iscrowd for row in rows.objects], dtype=np.bool_)


def to_corners(xywh: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn [n, 4] boxes of left, top, width, height into xyxy."""
    return np.hstack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]])


def with_area(xywh: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Tell which boxes [n, 4] are finite and have an area, also in the float32 of `Sample`."""
    with np.errstate(over="ignore", invalid="ignore"):
        corners = to_corners(xywh).astype(np.float32)
        good = np.isfinite(corners) & np.tile(corners[:, 2:] > corners[:, :2], 2)
    return np.asarray(good.all(axis=1))
