"""The data.yaml of a YOLO dataset: class names, and where the images of each split are."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from nmsfree.datasets.image_files import LONGEST_LIST, images_below, on_disk
from nmsfree.datasets.rows import Category, ClassName, check_name
from nmsfree.decode import (
    MALFORMED,
    MAX_YAML,
    decode_yaml,
    explain,
    read_bytes,
    read_text,
    whole_number,
)
from nmsfree.errors import DataError
from nmsfree.text import shown

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

    file: Path  # the data.yaml
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
    """Read a data.yaml.

    Raises:
        DataError: it is not YAML, or names no classes or splits.
        MissingExtraError: PyYAML is not installed.
    """
    content = decode_yaml(
        read_bytes(file, MAX_YAML, DataError), dict[str, Any], file, DataError, EXPECTED
    )
    categories = _categories(content, file)
    splits = {
        key: entries
        for key, value in content.items()
        if key not in OTHER_KEYS and (entries := _entries(value))
    }
    root = _root(content, file, [entry for entries in splits.values() for entry in entries])
    known = {
        name: entries
        for name, entries in splits.items()
        if name in USUAL_SPLITS or all(place(root, entry) is not None for entry in entries)
    }
    if not known:
        raise DataError(f"{file} names no images: add `train: FOLDER` and `val: FOLDER`")
    return YoloConfig(file, root, categories, known, "kpt_shape" in content)


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

    A relative path in a list counts from the list's folder or, if it is not there, from the root
    of the dataset. Hidden files are left out.

    Raises:
        DataError: a list that cannot be read.
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
