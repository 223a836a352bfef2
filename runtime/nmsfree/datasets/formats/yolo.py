"""Reading YOLO datasets: DIR/data.yaml, images, and a text file of labels for each image.

The label file of an image is found by replacing the last folder `images` of its path by `labels`
and its suffix by .txt; where that leads to no file, it lies beside the image. Its rows are
described at `read_labels`. An image without label file is an image without objects.
Images are ordered by path and numbered from 1; category ids are the class indices of the data.yaml.
"""

import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from nmsfree.datasets.faults import Fault, Kind, Report, Xywh
from nmsfree.datasets.image_files import LONGEST_LIST, Size, image_size, images_below, on_disk
from nmsfree.datasets.rows import Category, ClassName, ImageRow, ObjectRow, SplitRows, check_name
from nmsfree.errors import DataError
from nmsfree.parsing import (
    MALFORMED,
    MAX_YAML,
    decode_yaml,
    explain,
    read_bytes,
    read_text,
    whole_number,
)
from nmsfree.text import meant, shown

logger = logging.getLogger(__name__)

# Keys that never name a split.
OTHER_KEYS = frozenset(
    ("path", "names", "nc", "download", "kpt_shape", "flip_idx", "roboflow", "channels")
)
USUAL_SPLITS = ("train", "val", "valid", "test")
NOTHING = frozenset(("", "null", "~"))  # how YAML writes an empty value
EXPECTED = "expected `key: value` lines with names, train and val"
MARKS = frozenset(("names", "nc", *USUAL_SPLITS))  # a YAML file with one of them is ours

_Index = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


@dataclass(frozen=True, eq=False)
class YoloConfig:
    """What a data.yaml says."""

    file: Path
    root: Path  # folder from which the splits are looked for
    categories: tuple[Category, ...]  # class index and name, by index
    splits: dict[str, tuple[str, ...]]  # entries of each split, as written
    keypoints: bool  # rows hold key points behind the box (`kpt_shape` is given)


def find_configs(directory: Path) -> list[Path]:
    """Return the files of a folder that may be a data.yaml; that name comes before all others."""
    for name in ("data.yaml", "data.yml"):
        if (directory / name).is_file():
            return [directory / name]
    files = sorted((*directory.glob("*.yaml"), *directory.glob("*.yml")))
    return [file for file in files if _is_marked(file)]


def _is_marked(file: Path) -> bool:
    """Tell whether a line begins with a key of ours; needs no YAML package."""
    try:
        lines = read_text(file, MAX_YAML, DataError).splitlines()
    except DataError:
        return False
    return any(line.partition(":")[0].strip("'\"") in MARKS for line in lines if ":" in line)


def read_config(file: Path) -> YoloConfig:
    """Read a data.yaml; DataError if it is not YAML, or names no classes or splits."""
    data = read_bytes(file, MAX_YAML, DataError)
    content = decode_yaml(data, dict[str, Any], file, DataError, EXPECTED)
    categories = _categories(content, file)
    given = {key: _entries(value) for key, value in content.items() if key not in OTHER_KEYS}
    root = _root(content, file, [entry for entries in given.values() for entry in entries])
    splits = {
        name: entries
        for name, entries in given.items()
        if entries and (name in USUAL_SPLITS or all(place(root, entry) for entry in entries))
    }
    if not splits:
        raise DataError(f"{file} names no images: add `train: FOLDER` and `val: FOLDER`")
    return YoloConfig(file, root, categories, splits, "kpt_shape" in content)


def place(root: Path, entry: str) -> Path | None:
    """Return the folder or list that an entry of a split names; None if it is not there.

    Some exporters write `../train/images` for what lies beside the data.yaml; where that leads
    nowhere, the leading `../` is ignored.
    """
    below = entry.replace("\\", "/")
    try:
        check_name(below)
    except ValueError:
        return None
    candidates = [root / below]
    while below.startswith("../"):
        below = below.removeprefix("../")
        candidates.append(root / below)
    found = next((path for path in candidates if path.exists()), None)
    return None if found is None else Path(os.path.normpath(found))


def image_files(place: Path, root: Path) -> list[Path]:
    """Return the images of a folder and those below it, or of a list, one path a line.

    A relative path counts from the list's folder or, if it is not there, from the root of the
    dataset. A list that cannot be read is a DataError.
    """
    if place.is_dir():
        return images_below(place)
    paths = []
    for number, line in enumerate(read_text(place, LONGEST_LIST, DataError).splitlines(), start=1):
        name = line.strip().replace("\\", "/")
        try:
            check_name(name)
        except ValueError as error:
            raise DataError(f"{place}: line {number}: {error}: one path a line") from None
        if name:
            near, far = on_disk(place.parent / name), on_disk(root / name)
            paths.append(Path(os.path.normpath(far if far.exists() > near.exists() else near)))
    return paths


def _categories(content: dict[str, Any], file: Path) -> tuple[Category, ...]:
    names = content.get("names")
    if not names or isinstance(names, str):
        count = content.get("nc")
        known = f" for its {shown(count)} classes" if isinstance(count, str) else ""
        raise DataError(
            f"{file} has no list of class names{known}: add `names: [first, second, …]` in the "
            "order of the class indices"
        )
    if isinstance(names, dict):  # YAML's 01 is 1
        numbers = {key: whole_number(key) for key in names}
        names = {key if n is None else n: names[key] for key, n in numbers.items()}
    try:
        given = msgspec.convert(names, dict[_Index, ClassName] | list[ClassName], strict=False)
    except MALFORMED as error:
        raise DataError(
            f"{file}: names: {explain(error, 'YAML')}: expected a list, or `index: name` lines"
        ) from None
    pairs = given.items() if isinstance(given, dict) else enumerate(given)
    found = sorted(Category(index, name) for index, name in pairs)
    count = content.get("nc")
    if isinstance(count, str) and count not in NOTHING and count != str(len(found)):
        raise DataError(
            f"{file}: nc is {shown(count)}, but names has {len(found)} classes: correct one of them"
        )
    return tuple(found)


def _entries(value: Any) -> tuple[str, ...]:
    """Return the folders and lists of a split; empty if the value names none."""
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(entry, str) for entry in values):
        return ()
    return tuple(entry for entry in values if entry not in NOTHING)


def _root(content: dict[str, Any], file: Path, entries: list[str]) -> Path:
    """Return the folder that `path` means: from the file's folder, or that folder itself.

    Datasets are moved and their `path` stays behind: where it leads to no split at all, the
    splits are looked for beside the file.
    """
    written = content.get("path")
    if not isinstance(written, str) or written in NOTHING:
        return file.parent
    try:
        check_name(written)
    except ValueError as error:
        raise DataError(f"{file}: path: {error}") from None
    named = file.parent / written.replace("\\", "/")
    if any(place(named, entry) for entry in entries):
        return named
    if any(place(file.parent, entry) for entry in entries):
        logger.warning("%s: its path %s is not there, taking %s", file, shown(written), file.parent)
        return file.parent
    return named


LOG_EVERY = 10_000  # images
LARGEST = 8 << 20  # bytes of a file: some 200,000 boxes
TOLERANCE = 0.01  # of the image's size by which a coordinate may miss 0 … 1
BOX, SMALLEST_POLYGON = 5, 7  # columns
NAMES = ("cx", "cy", "w", "h")


def read_labels(
    image: ImageRow, size: Size, config: YoloConfig, report: Report
) -> Iterator[ObjectRow]:
    """Yield the objects of an image's label file, its source; faulty rows are reported.

        class centre-x centre-y width height    in fractions of the image
        class x1 y1 x2 y2 x3 y3 …               a polygon: its bounding box is taken

    Where the data.yaml has `kpt_shape`, key points stand behind the box and are ignored. Boxes
    that reach out of the image stay as they are; those of which nothing is in it are reported.
    """
    known = {category.id for category in config.categories}

    def fault(kind: Kind, detail: str, *boxes: Xywh) -> None:
        report(Fault(kind, image.source, detail, image.path, boxes))

    try:
        lines = read_text(image.source, LARGEST, DataError).splitlines()
    except DataError as error:
        return fault(Kind.ANNOTATION_MALFORMED, str(error).removeprefix(f"{image.source}: "))
    for number, line in enumerate(lines, start=1):
        if not (columns := line.split()):
            continue
        try:
            category_id, bbox, note = parse_row(columns, size, config.keypoints)
        except ValueError as error:
            fault(Kind.ANNOTATION_MALFORMED, f"line {number} {error}")
            continue
        has_area = all(map(math.isfinite, bbox)) and min(bbox[2:]) > 0
        shows = all(bbox[i] < size[i] and bbox[i] + bbox[i + 2] > 0 for i in (0, 1))
        if category_id not in known:
            what = f"class {shown(category_id, 40)}, which {config.file.name} does not name"
            fault(Kind.DANGLING_CATEGORY, f"line {number} has {what}", bbox)
        elif note and not (has_area and shows):
            kind = Kind.BOX_OUTSIDE if has_area else Kind.BOX_WITHOUT_AREA
            fault(kind, f"line {number}: {note}", bbox)
        else:
            yield ObjectRow(image.id, category_id, bbox, False, number, note=note)


def parse_row(columns: list[str], size: Size, keypoints: bool = False) -> tuple[int, Xywh, str]:
    """Return class index and box (left, top, width, height in pixels) of a row.

    The text behind them names what is no fraction of the image's size; a ValueError continues
    "line 3 …" where it is no such row.
    """
    count = len(columns)
    is_box = count == BOX or (keypoints and count > BOX)
    if not is_box and (count < SMALLEST_POLYGON or count % 2 == 0):
        raise ValueError(f"has {count} columns, expected class, centre-x, centre-y, width, height")
    try:
        index = float(columns[0])
        values = [float(column) for column in columns[1 : BOX if is_box else count]]
    except ValueError:
        raise ValueError(f"is not made of numbers ({shown(' '.join(columns[:BOX]))})") from None
    if not index.is_integer():
        raise ValueError(f"has class {shown(columns[0], 40)}, expected a whole number")
    width, height = size
    if is_box:
        cx, cy, w, h = values
        bbox = (cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height
    else:  # around a polygon x1 y1 x2 y2 …
        xs, ys = [x * width for x in values[::2]], [y * height for y in values[1::2]]
        bbox = min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)
    return int(index), bbox, _strays(values, is_box)


def _strays(values: list[float], is_box: bool) -> str:
    """Name the values that are no fractions; of a polygon the first one."""
    if min(values) >= -TOLERANCE and max(values) <= 1 + TOLERANCE:
        return ""  # nearly always, and quick
    names = NAMES if is_box else [f"{'xy'[i % 2]}{i // 2 + 1}" for i in range(len(values))]
    wrong = [
        f"{name} is {value:g}"
        for name, value in zip(names, values, strict=True)
        if value < -TOLERANCE or value > 1 + TOLERANCE  # NaN is not
    ]
    found = ", ".join(wrong if is_box else wrong[:1])
    return found and f"{found}, expected fractions of the image's size, 0 … 1"


def read_yolo(file: Path, split: str, report: Report) -> SplitRows:
    """Read one split, a key of a data.yaml; what cannot be used is reported and left out.

    Images that cannot be read stay, without size and labels: reading their pixels tells.

    Raises:
        DataError: the file, the images or all the labels are missing, or classes have no names.
    """
    config = read_config(file)
    paths = yolo_images(config, split)
    labels = label_files(paths, config.root)
    if not any(label.is_file() for label in labels):
        raise DataError(
            f"{file}: none of the {len(paths)} images of {split} has a label file, expected for "
            f"example {labels[0]}: check the folder's name (an empty file says: no objects)"
        )
    images: list[ImageRow] = []
    objects: list[ObjectRow] = []
    for number, (path, label) in enumerate(zip(paths, labels, strict=True), start=1):
        size = image_size(path)
        images.append(ImageRow(number, path, label, size))
        if size is not None and label.is_file():
            objects += read_labels(images[-1], size, config, report)
        if number % LOG_EVERY == 0:
            logger.info("%s, %s: read %d of %d images", file, split, number, len(paths))
    root = file.parent if config.root.is_relative_to(file.parent) else config.root
    return SplitRows("YOLO", split, root, file, config.categories, tuple(images), tuple(objects))


def yolo_images(config: YoloConfig, split: str) -> list[Path]:
    """Return the images of a split in their order, each once; DataError if there is none."""
    if split not in config.splits:
        found = shown(", ".join(sorted(config.splits))) + meant(config.splits, split)
        raise DataError(f"{config.file} has no split {split!r}; splits found: {found}")
    paths: set[Path] = set()
    for entry in config.splits[split]:
        found_place = place(config.root, entry)
        if found_place is None:
            raise DataError(
                f"{config.file}: {shown(split)} is {shown(entry)!r}, but "
                f"{shown(config.root / entry)} is neither a folder nor a list of images: correct "
                "`path` or the entry"
            )
        try:
            paths.update(image_files(found_place, config.root))
        except DataError as error:
            raise DataError(f"{config.file}: {shown(split)}: {error}") from None
    if not paths:
        raise DataError(f"{config.file}: {split} holds no image: correct `path` or the entry")
    return sorted(paths, key=Path.as_posix)


def label_files(images: list[Path], root: Path) -> list[Path]:
    """Return where the labels of the images of a split are, for each image the first that exists.

    A folder `images` below the root is replaced first, then one above it, as other readers do;
    then the labels are looked for beside the image.
    """
    found = []
    for image in images:
        usual = label_file(image, root)
        if not usual.is_file():
            others = (on_disk(usual), label_file(image, Path()), image.with_suffix(".txt"))
            usual = next((path for path in others if path.is_file()), usual)
        found.append(usual)
    return found


def label_file(image: Path, root: Path) -> Path:
    """Return where the labels of an image are; folders above the root stay as they are."""
    below = image.relative_to(root) if image.is_relative_to(root) else image
    parts = list(below.parts[:-1])
    if "images" in parts:
        parts[-1 - parts[::-1].index("images")] = "labels"  # the last of them
    return root.joinpath(*parts, f"{image.stem}.txt")
