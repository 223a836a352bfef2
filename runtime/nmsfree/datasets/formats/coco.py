"""Reading detection datasets in COCO format: DIR/annotations/instances_SPLIT.json, DIR/SPLIT/.

Roboflow's layout is read, too: DIR/SPLIT/_annotations.coco.json beside the images of the split.

Images are looked for in DIR/SPLIT, DIR/images/SPLIT, DIR/images and DIR, in this order; the first
folder that holds one of the first images is taken. A file may name another folder itself, from
DIR or absolute, as `nmsfree data check --fix` does:

    "info": {"nmsfree": {"image_folder": "../my-images"}}

A `file_name` never leads out of DIR, or out of the folder that the file names.

Ids are whole numbers of any size and sign, also written as text; a fraction is refused. Areas that
are stated are kept, as the metrics use them. NaN and Infinity, which JSON does not have but Python
writes, are read as null: a box with one of them has no area.
"""

import math
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Raw, Struct

from nmsfree.datasets.dataset import DetectionDataset, Sample, build
from nmsfree.datasets.faults import Fault, Kind, Report, refuse
from nmsfree.datasets.rows import Category, ClassName, ImageRow, ObjectRow, SplitRows, inside
from nmsfree.errors import DataError
from nmsfree.parsing import MALFORMED, explain, read_bytes
from nmsfree.text import meant, shown

__all__ = ["DetectionDataset", "Sample", "load_coco"]

PREFIX = "instances_"
ROBOFLOW = "_annotations.coco.json"
PROBED = 20  # images looked for when several folders may hold them
LARGEST = 2 << 30  # bytes of a file; see `read_bytes`
EXPECTED = (
    "expected COCO instances with images (id, file_name, width, height), annotations (image_id, "
    "category_id, bbox) and categories (id, name)"
)
_NO_JSON = re.compile(rb"(?<=[\[:,\s])-?(?:NaN|Infinity)(?=\s*[\],}])")
_HALF_PAIR = re.compile(rb"(?i)\\ud[89ab][0-9a-f]{2}(?!\\ud[c-f][0-9a-f]{2})")

_Whole = Annotated[int, Meta(ge=1, le=2**31 - 1)]
_Id = int | str
_Number = float | None  # None: NaN


class _Category(Struct):
    id: _Id
    name: ClassName | int | float | bool


class _Image(Struct):
    id: _Id
    file_name: str


class _Size(Struct):
    width: _Whole
    height: _Whole


class _Annotation(Struct):
    image_id: _Id
    category_id: _Id
    bbox: tuple[_Number, _Number, _Number, _Number]
    id: int | str | float | None = None
    iscrowd: int | str | bool | None = None
    area: float | None = None


class OwnInfo(Struct, frozen=True):
    """What this project writes into the header of a COCO file."""

    image_folder: str | None = None
    cleaned_from: str | None = None


class _Info(Struct, frozen=True):
    nmsfree: OwnInfo


def load_coco(directory: Path, split: str) -> DetectionDataset:
    """Read one split as `load_dataset` does."""
    return build(read_coco(directory, split, refuse))


def coco_splits(directory: Path) -> list[str]:
    """Return the names of the splits of a COCO folder, sorted."""
    files = directory.glob(f"annotations/{PREFIX}*.json")
    names = {file.stem.removeprefix(PREFIX) for file in files}
    return sorted(names | {file.parent.name for file in directory.glob(f"*/{ROBOFLOW}")})


def read_coco(directory: Path, split: str, report: Report) -> SplitRows:
    """Read one split as it stands; what cannot be used is reported and left out.

    DataError if a file or folder is missing, the file is not COCO, or its classes are unclear.
    """
    file = _find(directory, split)
    fields = read_fields(file)
    categories = _categories(entries(fields, "categories", file), file)
    images_of_file = entries(fields, "images", file)
    folder, root = _image_folder(fields, images_of_file, directory, split, file)
    images, dropped = _images(images_of_file, folder, root, file, report)
    known: dict[int, ImageRow | None] = dict.fromkeys(dropped)
    known |= {image.id: image for image in images}
    ids = {category.id for category in categories}
    annotations = entries(fields, "annotations", file)
    objects = tuple(_objects(annotations, file, known, ids, report))
    usual = directory / split
    own = usual if folder in (usual, directory) and usual.is_dir() else None
    return SplitRows("COCO", split, directory, file, categories, tuple(images), objects, own)


def own_info(fields: dict[str, Raw]) -> OwnInfo:
    """What this project wrote into the header of a COCO file, empty for others."""
    try:
        return msgspec.json.decode(fields.get("info", Raw(b"null")), type=_Info).nmsfree
    except MALFORMED:
        return OwnInfo()


def read_fields(path: Path) -> dict[str, Raw]:
    """Read a JSON object, of at most 2 GiB; what its fields hold is not decoded yet."""
    data = read_bytes(path, LARGEST, DataError)
    try:
        if data[:2] in (b"\xff\xfe", b"\xfe\xff"):  # PowerShell writes UTF-16
            data = data.decode("utf-16").encode()
        data = data.removeprefix(b"\xef\xbb\xbf")
        if not data.isascii():
            data.decode()  # also where no field of ours is
        try:
            return fields_of(data)
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            if _HALF_PAIR.search(data):
                raise ValueError("half of a surrogate pair in a text") from None
            if not _NO_JSON.search(data):
                raise
            return fields_of(_NO_JSON.sub(b"null", data))
    except MALFORMED as error:
        raise DataError(f"{shown(path)}: {explain(error, 'JSON')}: {EXPECTED}") from None


def fields_of(entry: Raw | bytes) -> dict[str, Raw]:
    """Decode one level of a JSON object."""
    return _FIELDS.decode(entry)


_FIELDS = msgspec.json.Decoder(dict[str, Raw])


def entries(fields: dict[str, Raw], name: str, file: Path) -> list[Raw]:
    """The entries of a list of a COCO file, not decoded yet; DataError if there is none."""
    if name not in fields:
        raise DataError(f"{shown(file)} has no {name!r} list: {EXPECTED}")
    try:
        return msgspec.json.decode(fields[name], type=list[Raw])
    except MALFORMED as error:
        raise DataError(f"{shown(file)}: {name}: {explain(error, 'JSON')}: {EXPECTED}") from None


def _find(directory: Path, split: str) -> Path:
    if not directory.is_dir():
        raise DataError(f"{directory} is not a folder: give the folder that holds annotations/")
    own = directory / "annotations" / f"{PREFIX}{split}.json"
    for file in (own, directory / split / ROBOFLOW):
        if os.path.exists(file):  # noqa: PTH110 (a name that cannot be is not there)
            return file
    splits = coco_splits(directory)
    found = shown(", ".join(splits) or "none") + meant(splits, split)
    raise DataError(f"{shown(own)} is missing; splits found in {directory}: {found}")


def _image_folder(
    fields: dict[str, Raw], images: list[Raw], directory: Path, split: str, file: Path
) -> tuple[Path, Path]:
    """Return where relative names begin, and the folder that none leads out of."""
    named = own_info(fields).image_folder
    if named is not None:
        folder = directory / named
        if not os.path.isdir(folder):  # noqa: PTH112
            raise DataError(
                f"{file}: its image_folder {shown(folder)} is missing: move it back, or fix it"
            )
        return folder, folder
    usual = directory / split
    present = [f for f in (usual, directory / "images" / split, directory / "images") if f.is_dir()]
    for folder in (*present, directory):
        if any(_holds(folder, raw, directory) for raw in images[:PROBED]):
            return folder, directory
    if not present:
        raise DataError(f"{usual} is missing: the images of split {split!r} belong there")
    return present[0], directory


def _holds(folder: Path, image: Raw, root: Path) -> bool:
    try:
        return inside(folder, _IMAGE.decode(image).file_name, root).is_file()
    except (OSError, *MALFORMED):
        return False


def _categories(found: list[Raw], file: Path) -> tuple[Category, ...]:
    categories: list[Category] = []
    for number, raw in enumerate(found, start=1):
        try:
            categories.append(category_of(raw))
        except MALFORMED as error:
            raise DataError(
                f"{shown(file)}: category {number}: {_what(error)}: {EXPECTED}"
            ) from None
    if len({category.id for category in categories}) != len(categories):
        raise DataError(f"{shown(file)} defines a category id twice: ids must be unique")
    return tuple(sorted(categories))


def category_of(entry: Raw) -> Category:
    """Decode a category; raises one of `MALFORMED`."""
    category = _CATEGORY.decode(entry)
    category_id = _whole(category.id, "id")
    if not -(2**63) <= category_id < 2**63:
        raise ValueError(f"id: {shown(category_id, 40)} is beyond 64 bits, which model files hold")
    return Category(category_id, str(category.name))


_CATEGORY = msgspec.json.Decoder(_Category, strict=False)
_IMAGE = msgspec.json.Decoder(_Image, strict=False)
_SIZE = msgspec.json.Decoder(_Size, strict=False)
_ANNOTATION = msgspec.json.Decoder(_Annotation, strict=False)


def _whole(value: int | str, field: str) -> int:
    if isinstance(value, int):
        return value
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"{field}: expected a whole number, got {shown(value, 40)!r}") from None


def _what(error: Exception) -> str:
    # A plain ValueError is of `_whole` or `inside`.
    return str(error) if type(error) is ValueError else explain(error, "JSON")


def _images(
    found: list[Raw], folder: Path, root: Path, file: Path, report: Report
) -> tuple[list[ImageRow], set[int]]:
    """Return the images, and the ids of those left out for sharing one id."""
    by_id: dict[int, list[ImageRow]] = defaultdict(list)
    for number, raw in enumerate(found, start=1):
        try:
            entry = _IMAGE.decode(raw)
            image_id = _whole(entry.id, "id")
            path = inside(folder, entry.file_name, root)
        except MALFORMED as error:
            report(Fault(Kind.IMAGE_ENTRY, file, f"image entry {number}: {_what(error)}"))
            continue
        size = None
        try:
            found_size = _SIZE.decode(raw)
            size = (found_size.width, found_size.height)
        except MALFORMED as error:
            detail = f"image entry {number}: {explain(error, 'JSON')}"
            report(Fault(Kind.IMAGE_SIZE_MISSING, file, detail))
        by_id[image_id].append(ImageRow(image_id, path, file, size, raw))
    for image_id, rows in by_id.items():
        if len(rows) > 1:
            detail = f"{len(rows)} images have the id {image_id}, an image id twice is ambiguous"
            report(Fault(Kind.IMAGE_ID_TWICE, file, detail, rows[1].path))
    # One file listed again under its own id is no riddle: its objects are known.
    clear = [rows[0] for rows in by_id.values() if len({row.path for row in rows}) == 1]
    return clear, by_id.keys() - {row.id for row in clear}


def _objects(
    found: list[Raw],
    file: Path,
    images: dict[int, ImageRow | None],
    category_ids: set[int],
    report: Report,
) -> Iterator[ObjectRow]:
    """Read the annotations; those of an image that is None were reported with it."""
    for position, raw in enumerate(found, start=1):
        number: int | str = position
        try:
            entry = _ANNOTATION.decode(raw)
            if entry.id is not None:
                number = entry.id if isinstance(entry.id, int) else shown(entry.id)
            image_id = _whole(entry.image_id, "image_id")
            category_id = _whole(entry.category_id, "category_id")
            crowd = bool(_whole(entry.iscrowd or 0, "iscrowd"))
        except MALFORMED as error:
            report(Fault(Kind.ANNOTATION_MALFORMED, file, f"annotation {number}: {_what(error)}"))
            continue
        x, y, width, height = (math.nan if v is None else v for v in entry.bbox)
        bbox = (x, y, width, height)
        image, kind, unknown = images.get(image_id), None, ""
        if image_id not in images:
            kind, unknown = Kind.DANGLING_IMAGE, f"image {image_id}"
        elif image is not None and category_id not in category_ids:
            kind, unknown = Kind.DANGLING_CATEGORY, f"category {category_id}"
        if kind is not None:
            detail = f"annotation {number} names {unknown}, which the file does not define"
            report(Fault(kind, file, detail, image and image.path, (bbox,)))
        elif image is not None:
            yield ObjectRow(image_id, category_id, bbox, crowd, number, raw, area=entry.area)
