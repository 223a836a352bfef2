"""What every format is read into: images, objects and categories, boxes not judged yet."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from nmsfree.data.faults import Xywh

Format = Literal["COCO", "YOLO", "VOC"]
# How an object is called in messages; the number behind it is `ObjectRow.number`.
_PLACE = {"COCO": "annotation", "YOLO": "line", "VOC": "object"}


class Category(NamedTuple):
    """A class: the dataset's own id, and the name."""

    id: int
    name: str


class ImageRow(NamedTuple):
    """One image.

    Attributes:
        id: the dataset's own id, unique in the split.
        path: image file.
        source: file that annotates it.
        size: width, height in pixels; None if the annotations do not say.
        entry: the COCO entry it was read from, if that is the format.
    """

    id: int
    path: Path
    source: Path
    size: tuple[int, int] | None
    entry: Mapping[str, Any] = {}


class ObjectRow(NamedTuple):
    """One object; its image and category are defined, its box may be anything.

    Attributes:
        image_id, category_id: what it belongs to.
        bbox: left, top, width, height in source pixels, at the source's full precision.
        iscrowd: a region to ignore: no training target, no false positive.
        number: annotation id, line or position in its file, for messages.
        entry: the COCO entry it was read from, if that is the format.
        note: what is odd about its box as it is written; empty if nothing.
    """

    image_id: int
    category_id: int
    bbox: Xywh
    iscrowd: bool
    number: int | str
    entry: Mapping[str, Any] = {}
    note: str = ""


@dataclass(frozen=True, eq=False)
class SplitRows:
    """One split as its source states it.

    Attributes:
        format: how it was written.
        name: name of the split.
        root: folder of the dataset.
        file: file that defines the split.
        categories: all classes, by ascending id.
        images: in the order of the dataset.
        objects: in the order of the source.
        folder: folder whose images should all be annotated in this split; None if there is none.
    """

    format: Format
    name: str
    root: Path
    file: Path
    categories: tuple[Category, ...]
    images: tuple[ImageRow, ...]
    objects: tuple[ObjectRow, ...]
    folder: Path | None = field(default=None)

    def place(self, row: ObjectRow) -> str:
        """Return how an object is called in messages."""
        return f"{_PLACE[self.format]} {row.number}"


def to_coco(rows: SplitRows) -> dict[str, Any]:
    """Return the rows as COCO instances, complete enough for the official evaluation.

    Annotation ids count from 1 (0 reads as "unmatched"), areas are those of the boxes.
    """
    return {
        "categories": [category._asdict() for category in rows.categories],
        "images": [_image_entry(rows, image) for image in rows.images],
        "annotations": list(_annotation_entries(rows)),
    }


def _image_entry(rows: SplitRows, image: ImageRow) -> dict[str, Any]:
    width, height = image.size or (0, 0)
    name = relative_name(image.path, rows.root)
    return {"id": image.id, "file_name": name, "width": width, "height": height}


def _annotation_entries(rows: SplitRows) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(rows.objects, start=1):
        yield {
            "id": number,
            "image_id": row.image_id,
            "category_id": row.category_id,
            "bbox": list(row.bbox),
            "area": row.bbox[2] * row.bbox[3],
            "iscrowd": int(row.iscrowd),
        }


def relative_name(path: Path, root: Path) -> str:
    """Return a path as reports show it: from the dataset's folder if it lies there."""
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def inside(folder: Path, name: str) -> Path:
    """Return the file of a folder that annotations name; `/` and `\\` both part folders.

    Raises:
        ValueError: the name leads out of the folder, or to nothing.
    """
    name = name.replace("\\", "/")
    drive = os.name == "nt" and ":" in name
    if not name.strip("./") or name.startswith("/") or ".." in name.split("/") or drive:
        raise ValueError(f"file name {name!r} leads out of {folder}")
    return folder / name
