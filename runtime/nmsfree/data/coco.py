"""Reading detection datasets in COCO format: DIR/annotations/instances_SPLIT.json, DIR/SPLIT/.

Images are looked for in DIR/SPLIT, DIR/images/SPLIT and DIR/images, in this order; the first
folder that holds one of the first images is taken. A file may name another folder itself, from
DIR or absolute, as `nmsfree data check --fix` does:

    "info": {"nmsfree": {"image_folder": "../my-images"}}

A `file_name` never leads out of the folder: no `..`, not absolute.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nmsfree.data.dataset import DetectionDataset, Sample, build
from nmsfree.data.faults import Fault, Kind, Report, Xywh, refuse
from nmsfree.data.rows import Category, ImageRow, ObjectRow, SplitRows, inside
from nmsfree.errors import DataError

__all__ = ["DetectionDataset", "Sample", "load_coco"]

PREFIX = "instances_"
PROBED = 20  # images looked for when several folders may hold them
EXPECTED = (
    "expected COCO instances with images (id, file_name, width, height), annotations (image_id, "
    "category_id, bbox) and categories (id, name)"
)
MALFORMED = (KeyError, TypeError, ValueError, OverflowError)


def load_coco(directory: Path, split: str) -> DetectionDataset:
    """Read one split; pictures are not opened.

    Boxes without width or height are dropped, with one warning for the split.

    Raises:
        DataError: a folder or file is missing, not COCO, or refers to what it does not define.
    """
    return build(read_coco(directory, split, refuse))


def coco_splits(directory: Path) -> list[str]:
    """Return the names of the splits of a COCO folder, sorted."""
    files = (directory / "annotations").glob(f"{PREFIX}*.json")
    return sorted(file.stem.removeprefix(PREFIX) for file in files)


def read_coco(directory: Path, split: str, report: Report) -> SplitRows:
    """Read one split as it stands; what cannot be used is reported and left out.

    Raises:
        DataError: a file or folder is missing, the file is not COCO, or its classes are unclear.
    """
    file = _find(directory, split)
    content = read_json(file)
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise DataError(f"{file} has no {key!r} list: {EXPECTED}")
    categories = _categories(content, file)
    folder = _image_folder(content, directory, split, file)
    images, dropped = _images(content, folder, file, report)
    known = {image.id: image for image in images}
    objects = tuple(_objects(content, file, known, dropped, {c.id for c in categories}, report))
    own = folder if folder == directory / split else None
    return SplitRows("COCO", split, directory, file, categories, tuple(images), objects, own)


def own_info(content: dict[str, Any]) -> dict[str, Any]:
    """Return what this project wrote into the header of a COCO file, empty for others."""
    info = content.get("info")
    own = info.get("nmsfree") if isinstance(info, dict) else None
    return own if isinstance(own, dict) else {}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        DataError: it is something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is not readable JSON ({error}): get or make it again") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is a JSON {type(content).__name__}, expected COCO instances")
    return content


def _find(directory: Path, split: str) -> Path:
    if not directory.is_dir():
        raise DataError(f"{directory} is not a folder: give the folder that holds annotations/")
    file = directory / "annotations" / f"{PREFIX}{split}.json"
    if not file.is_file():
        found = ", ".join(coco_splits(directory)) or "none"
        raise DataError(f"{file} is missing; splits found in {directory}: {found}")
    return file


def _image_folder(content: dict[str, Any], directory: Path, split: str, file: Path) -> Path:
    named = own_info(content).get("image_folder")
    if isinstance(named, str):
        folder = directory / named
        if not folder.is_dir():
            raise DataError(f"{file}: its image_folder {folder} is missing: move it back, or fix")
        return folder
    usual = directory / split
    folders = [usual, directory / "images" / split, directory / "images"]
    present = [folder for folder in folders if folder.is_dir()]
    if not present:
        raise DataError(f"{usual} is missing: the images of split {split!r} belong there")
    entries = [entry for entry in content["images"][:PROBED] if isinstance(entry, dict)]
    names = [str(entry.get("file_name")).replace("\\", "/") for entry in entries]
    holding = (f for f in present if any((f / name).is_file() for name in names))
    return next(holding, present[0])


def _categories(content: dict[str, Any], file: Path) -> tuple[Category, ...]:
    try:
        found = [Category(int(c["id"]), str(c["name"])) for c in content["categories"]]
    except MALFORMED as error:
        raise DataError(f"{file}: a category {_what(error)}: {EXPECTED}") from error
    if len({category.id for category in found}) != len(found):
        raise DataError(f"{file} defines a category id twice: ids must be unique")
    return tuple(sorted(found))


def _what(error: Exception) -> str:
    return f"has no {error}" if isinstance(error, KeyError) else f"is malformed ({error})"


def _images(
    content: dict[str, Any], folder: Path, file: Path, report: Report
) -> tuple[list[ImageRow], set[int]]:
    """Return the images, and the ids of those left out for sharing one id."""
    by_id: dict[int, list[ImageRow]] = defaultdict(list)
    for number, entry in enumerate(content["images"], start=1):
        try:
            size = _size(entry, number, file, report)
            path = inside(folder, str(entry["file_name"]))
            by_id[int(entry["id"])].append(ImageRow(int(entry["id"]), path, file, size, entry))
        except MALFORMED as error:
            report(Fault(Kind.IMAGE_ENTRY, file, f"image entry {number} {_what(error)}"))
    for image_id, rows in by_id.items():
        if len(rows) > 1:
            detail = f"{len(rows)} images have the id {image_id}, an image id twice is ambiguous"
            report(Fault(Kind.IMAGE_ID_TWICE, file, detail, rows[1].path))
    # One file listed again under its own id is no riddle: its objects are known.
    clear = [rows[0] for rows in by_id.values() if len({row.path for row in rows}) == 1]
    return clear, by_id.keys() - {row.id for row in clear}


def _size(entry: Any, number: int, file: Path, report: Report) -> tuple[int, int] | None:
    """Return width and height if they are there and make sense."""
    try:
        size = int(entry["width"]), int(entry["height"])
        if min(size) > 0:
            return size
        problem = f"is malformed (size {size[0]} × {size[1]})"
    except MALFORMED as error:
        problem = _what(error)
    report(Fault(Kind.IMAGE_SIZE_MISSING, file, f"image entry {number} {problem}"))
    return None


def _objects(
    content: dict[str, Any],
    file: Path,
    images: dict[int, ImageRow],
    dropped: set[int],
    category_ids: set[int],
    report: Report,
) -> Iterator[ObjectRow]:
    for position, entry in enumerate(content["annotations"], start=1):
        number = entry.get("id", position) if isinstance(entry, dict) else position
        try:
            image_id, category_id = int(entry["image_id"]), int(entry["category_id"])
            bbox, crowd = _bbox(entry["bbox"]), bool(int(entry.get("iscrowd") or 0))
        except MALFORMED as error:
            report(Fault(Kind.ANNOTATION_MALFORMED, file, f"annotation {number} {_what(error)}"))
            continue
        image = images.get(image_id)
        if image is None and image_id in dropped:
            continue  # reported with its image
        if image is None or category_id not in category_ids:
            kind = Kind.DANGLING_IMAGE if image is None else Kind.DANGLING_CATEGORY
            unknown = f"image {image_id}" if image is None else f"category {category_id}"
            detail = f"annotation {number} names {unknown}, which the file does not define"
            report(Fault(kind, file, detail, image and image.path, (bbox,)))
            continue
        yield ObjectRow(image_id, category_id, bbox, crowd, number, entry)


def _bbox(value: Any) -> Xywh:
    if not isinstance(value, list) or len(value) != 4:
        raise ValueError(f"bbox {value!r}, expected [x, y, width, height]")
    x, y, width, height = map(float, value)
    return x, y, width, height
