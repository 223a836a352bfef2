"""The data.yaml of a YOLO dataset: class names, and where the images of each split are."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nmsfree.data.image_files import images_below, on_disk
from nmsfree.data.rows import Category
from nmsfree.errors import DataError, MissingExtraError

logger = logging.getLogger(__name__)

# Keys that never name a split.
OTHER_KEYS = frozenset(
    ("path", "names", "nc", "download", "kpt_shape", "flip_idx", "roboflow", "channels")
)
USUAL_SPLITS = ("train", "val", "valid", "test")
NOTHING = frozenset(("", "null", "~"))  # how YAML writes an empty value
MARKS = frozenset(("names", "nc", *USUAL_SPLITS))  # a YAML file with one of them is ours


@dataclass(frozen=True, eq=False)
class YoloConfig:
    """What a data.yaml says.

    Attributes:
        file: the data.yaml.
        root: folder from which the splits are looked for.
        categories: class index and name, by index.
        splits: entries of each split, as written.
        keypoints: rows hold key points behind the box (`kpt_shape` is given).
    """

    file: Path
    root: Path
    categories: tuple[Category, ...]
    splits: dict[str, tuple[str, ...]]
    keypoints: bool


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
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError):
        return False
    return any(line.partition(":")[0].strip("'\"") in MARKS for line in lines if ":" in line)


def read_config(file: Path) -> YoloConfig:
    """Read a data.yaml.

    Raises:
        DataError: it is not YAML, or names no classes or splits.
        MissingExtraError: PyYAML is not installed.
    """
    content = _read_yaml(file)
    categories = _categories(content, file)
    splits = {
        str(key): entries
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
    try:
        lines = place.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{place} is no list of images ({error}): one path a line") from error
    paths = []
    for name in (line.strip().replace("\\", "/") for line in lines):
        if name:
            near, far = on_disk(place.parent / name), on_disk(root / name)
            paths.append(Path(os.path.normpath(far if far.exists() > near.exists() else near)))
    return paths


def _read_yaml(file: Path) -> dict[Any, Any]:
    """Return the mapping in a file; every value is text as written (no `no` read as False)."""
    try:
        import yaml
    except ImportError:
        raise MissingExtraError("reading a YOLO dataset", "nmsfree[eval]") from None
    try:
        content = yaml.load(file.read_text(encoding="utf-8-sig"), Loader=yaml.BaseLoader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        line = " ".join(str(error).split())
        raise DataError(f"{file} is not readable YAML ({line}): mend it") from None
    if not isinstance(content, dict):
        raise DataError(f"{file} holds no `key: value` lines: expected names, train and val")
    return content


def _categories(content: dict[Any, Any], file: Path) -> tuple[Category, ...]:
    names = content.get("names")
    if not names or isinstance(names, str):
        count = content.get("nc")
        known = f" for its {count} classes" if isinstance(count, str) else ""
        raise DataError(
            f"{file} has no list of class names{known}: add `names: [first, second, …]` in the "
            "order of the class indices"
        )
    pairs = list(names.items()) if isinstance(names, dict) else list(enumerate(names))
    try:
        found = [Category(int(index), _name(name)) for index, name in pairs]
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{file}: names is malformed ({error}): expected a list, or `index: name` lines"
        ) from None
    if min(found).id < 0:
        raise DataError(f"{file}: a class has the index {min(found).id}, expected 0 or more")
    _check_count(content, found, file)
    return tuple(sorted(found))


def _name(name: Any) -> str:
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{name!r} is no class name")
    return name


def _check_count(content: dict[Any, Any], found: list[Category], file: Path) -> None:
    count = content.get("nc")
    if isinstance(count, str) and count not in NOTHING and count != str(len(found)):
        raise DataError(
            f"{file}: nc is {count}, but names has {len(found)} classes: correct one of them"
        )


def _entries(value: Any) -> tuple[str, ...]:
    """Return the folders and lists of a split; empty if the value names none."""
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(entry, str) for entry in values):
        return ()
    return tuple(entry for entry in values if entry not in NOTHING)


def _root(content: dict[Any, Any], file: Path, entries: list[str]) -> Path:
    """Return the folder that `path` means: from the file's folder, or that folder itself.

    Datasets are moved and their `path` stays behind: where it leads to no split at all, the
    splits are looked for beside the file.
    """
    written = content.get("path")
    if not isinstance(written, str) or written in NOTHING:
        return file.parent
    named = file.parent / written.replace("\\", "/")
    if any(place(named, entry) for entry in entries):
        return named
    if any(place(file.parent, entry) for entry in entries):
        logger.warning("%s: its path %s is not there, taking %s", file, written, file.parent)
        return file.parent
    return named
