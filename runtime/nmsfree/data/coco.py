"""Reading detection datasets in COCO format: DIR/annotations/instances_SPLIT.json, DIR/SPLIT/."""

import json
import logging
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmsfree.errors import DataError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Sample:
    """One image and what is in it; the picture itself is read by who needs it.

    Attributes:
        image_id: the dataset's own id.
        path: image file.
        width, height: size of the image in pixels, as the annotations say.
        boxes: float32 [n, 4], xyxy in source pixels.
        labels: int64 [n], index into the dataset's class names.
        iscrowd: bool [n], regions of many objects: no training target, ignored by the metrics.
    """

    image_id: int
    path: Path
    width: int
    height: int
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    iscrowd: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class DetectionDataset:
    """One split of a dataset.

    Attributes:
        name: name of the split.
        samples: all images, also those without objects, in the order of the annotation file.
        class_names: by label; classes are ordered by category id.
        category_ids: the dataset's own id of each class, ascending, possibly sparse.
        annotation_file: the COCO file it was read from.
    """

    name: str
    samples: tuple[Sample, ...]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    annotation_file: Path

    def __len__(self) -> int:
        return len(self.samples)


def load_coco(directory: Path, split: str) -> DetectionDataset:
    """Read one split; pictures are not opened.

    Boxes without width or height are dropped, with one warning for the split.

    Raises:
        DataError: a folder or file is missing, not COCO, or refers to what it does not define.
    """
    annotation_file, folder = _find(directory, split)
    content = _read_json(annotation_file)
    try:
        return _build(content, split, annotation_file, folder)
    except (KeyError, TypeError, ValueError) as error:
        what = f"has no {error}" if isinstance(error, KeyError) else f"is malformed ({error})"
        raise DataError(
            f"{annotation_file} {what}: expected COCO instances with images (id, file_name, "
            "width, height), annotations (image_id, category_id, bbox) and categories (id, name)"
        ) from error


def _find(directory: Path, split: str) -> tuple[Path, Path]:
    """Return annotation file and image folder of a split."""
    if not directory.is_dir():
        raise DataError(f"{directory} is not a folder: give the folder that holds annotations/")
    annotation_file = directory / "annotations" / f"instances_{split}.json"
    if not annotation_file.is_file():
        files = sorted((directory / "annotations").glob("instances_*.json"))
        found = ", ".join(file.stem.removeprefix("instances_") for file in files) or "none"
        raise DataError(f"{annotation_file} is missing; splits found in {directory}: {found}")
    folder = directory / split
    if not folder.is_dir():
        raise DataError(f"{folder} is missing: the images of split {split!r} belong there")
    return annotation_file, folder


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not readable JSON ({error}): get or make it again") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is a JSON {type(content).__name__}, expected COCO instances")
    return content


def _build(
    content: dict[str, Any], split: str, annotation_file: Path, folder: Path
) -> DetectionDataset:
    categories = sorted(content["categories"], key=lambda category: int(category["id"]))
    category_ids = tuple(int(category["id"]) for category in categories)
    label_of = {category_id: label for label, category_id in enumerate(category_ids)}
    if len(label_of) != len(category_ids):
        raise DataError(f"{annotation_file} defines a category id twice: ids must be unique")
    objects = _group_objects(content, label_of, annotation_file)
    samples = tuple(
        _sample(image, folder, objects.get(int(image["id"]), [])) for image in content["images"]
    )
    names = tuple(str(category["name"]) for category in categories)
    return DetectionDataset(split, samples, names, category_ids, annotation_file)


Object = tuple[list[float], int, bool]  # box xyxy, label, iscrowd


def _group_objects(
    content: dict[str, Any], label_of: dict[int, int], annotation_file: Path
) -> dict[int, list[Object]]:
    """Return the objects of every image id; drops degenerate boxes, refuses dangling ids."""
    image_ids = {int(image["id"]) for image in content["images"]}
    if len(image_ids) != len(content["images"]):
        raise DataError(f"{annotation_file} defines an image id twice: ids must be unique")
    objects: dict[int, list[Object]] = defaultdict(list)
    degenerate = 0
    for annotation in content["annotations"]:
        image_id, category_id = int(annotation["image_id"]), int(annotation["category_id"])
        if image_id not in image_ids or category_id not in label_of:
            unknown = f"category {category_id}" if image_id in image_ids else f"image {image_id}"
            raise DataError(
                f"{annotation_file}: annotation {annotation.get('id')} names {unknown}, which the "
                "file does not define"
            )
        x, y, width, height = (float(value) for value in annotation["bbox"])
        if not (width > 0 and height > 0):
            degenerate += 1
            continue
        box = [x, y, x + width, y + height]
        objects[image_id].append((box, label_of[category_id], bool(annotation.get("iscrowd", 0))))
    if degenerate:
        logger.warning("%s: dropped %d boxes without area", annotation_file, degenerate)
    return objects


def _sample(image: dict[str, Any], folder: Path, objects: list[Object]) -> Sample:
    return Sample(
        image_id=int(image["id"]),
        path=folder / str(image["file_name"]),
        width=int(image["width"]),
        height=int(image["height"]),
        boxes=np.array([box for box, _, _ in objects], dtype=np.float32).reshape(-1, 4),
        labels=np.array([label for _, label, _ in objects], dtype=np.int64),
        iscrowd=np.array([crowd for _, _, crowd in objects], dtype=np.bool_),
    )
