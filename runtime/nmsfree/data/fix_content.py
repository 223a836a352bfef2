"""The COCO file of a cleaned split: entries of what is kept, and where its images are."""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from nmsfree.data.check_report import Check, SplitCheck
from nmsfree.data.coco import OwnInfo, category_of, entries, fields_of, read_fields
from nmsfree.data.rows import EMPTY, ImageRow
from nmsfree.errors import DataError


def source_mark(check: Check, folder: Path) -> str:
    """Return what the header says about the dataset that was cleaned."""
    return _relative(check.layout.root, folder)


def _relative(path: Path, folder: Path) -> str:
    """Return a path from a folder, so that both can be moved together."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive of Windows
        return Path(os.path.abspath(path)).as_posix()  # noqa: PTH100


def category_ids(check: Check) -> dict[str, int]:
    """Return one id for every class name of all splits: the dataset's own if they agree."""
    pairs = [c for split in check.splits.values() for c in split.rows.categories]
    names: dict[str, int] = {}
    for category in pairs:
        names.setdefault(category.name, category.id)
    if len(set(names.values())) == len(names):
        return names
    return {name: number for number, name in enumerate(names, start=1)}


def content_of(
    check: Check, split: SplitCheck, images: list[ImageRow], ids: dict[str, int], folder: Path
) -> dict[str, Any]:
    """Return the COCO content of a cleaned split.

    Args:
        check: what was found in the dataset.
        split: the split.
        images: those that stay.
        ids: category id of every class name.
        folder: dataset folder that the content is written to; paths count from there.

    Raises:
        DataError: no single folder holds all images.
    """
    rows = split.rows
    source = read_fields(rows.file) if rows.format == "COCO" else {}
    categories = entries(source, "categories", rows.file) if source else []
    fields = {category_of(entry).name: fields_of(entry) for entry in categories}
    pictures = _common_folder(images)
    header = source.get("info", EMPTY)
    info = fields_of(header) if bytes(header).startswith(b"{") else {}
    own = OwnInfo(_relative(pictures, folder), source_mark(check, folder))
    return {
        **source,
        "info": {**info, "nmsfree": own},
        "categories": [
            {**fields.get(name, {}), "id": number, "name": name} for name, number in ids.items()
        ],
        "images": [_image_entry(check, image, pictures) for image in images],
        "annotations": _annotations(split, {image.id for image in images}, ids),
    }


def _common_folder(images: list[ImageRow]) -> Path:
    try:
        return Path(os.path.commonpath([os.path.abspath(i.path.parent) for i in images]))  # noqa: PTH100
    except ValueError:
        raise DataError("the images lie on several drives: bring them onto one") from None


def _image_entry(check: Check, image: ImageRow, pictures: Path) -> dict[str, Any]:
    size = check.facts[image.path].size
    assert size is not None  # only usable images are kept
    name = _relative(image.path, pictures)
    width, height = size
    return {
        **fields_of(image.entry),
        "id": image.id,
        "file_name": name,
        "width": width,
        "height": height,
    }


def _annotations(
    split: SplitCheck, image_ids: set[int], ids: dict[str, int]
) -> list[dict[str, Any]]:
    """Return the usable objects of the kept images; only boxes that reach out change."""
    names = {category.id: category.name for category in split.rows.categories}
    boxes = split.boxes
    cut = (boxes.clipped != boxes.xyxy).any(axis=1)
    found: list[dict[str, Any]] = []
    for index in np.flatnonzero(boxes.good).tolist():
        row = split.rows.objects[index]
        if row.image_id not in image_ids:
            continue
        x1, y1, x2, y2 = boxes.clipped[index].tolist()
        bbox = [x1, y1, x2 - x1, y2 - y1] if cut[index] else list(row.bbox)
        found.append(
            {
                **fields_of(row.entry),
                "id": len(found) + 1,
                "image_id": row.image_id,
                "category_id": ids[names[row.category_id]],
                "bbox": bbox,
                "area": _area(
                    row.area, bbox[2] * bbox[3], bool(cut[index] or boxes.area_odd[index])
                ),
                "iscrowd": int(row.iscrowd),
            }
        )
    return found


def _area(stated: float | None, of_box: float, changed: bool) -> float:
    """Return the area to write: the stated one, that of a mask, where it can still be right."""
    if stated is None or not 0 < stated < math.inf:
        return of_box
    return min(stated, of_box) if changed else stated
