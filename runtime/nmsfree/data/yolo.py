"""Reading YOLO datasets: DIR/data.yaml, images, and a text file of labels for each image.

The label file of an image is found by replacing the last folder `images` of its path by `labels`
and its suffix by .txt; where that leads to no file, it lies beside the image. Its rows are
described in `nmsfree.data.yolo_labels`. An image without label file is an image without objects.
Images are ordered by path and numbered from 1; category ids are the class indices of the data.yaml.
"""

import logging
from pathlib import Path

from nmsfree.data.faults import Report
from nmsfree.data.image_files import on_disk
from nmsfree.data.image_size import Size, image_size
from nmsfree.data.rows import ImageRow, ObjectRow, SplitRows
from nmsfree.data.yolo_config import YoloConfig, image_files, place, read_config
from nmsfree.data.yolo_labels import read_labels
from nmsfree.errors import DataError, InputError
from nmsfree.text import shown

logger = logging.getLogger(__name__)

LOG_EVERY = 10_000  # images


def read_yolo(file: Path, split: str, report: Report) -> SplitRows:
    """Read one split as it stands; what cannot be used is reported and left out.

    Args:
        file: the data.yaml.
        split: one of its keys, for example `train`.
        report: what to do with a fault. Images that cannot be read are no fault here: they stay,
            without size and labels, because reading their pixels tells.

    Raises:
        DataError: the file, the images or all the labels are missing, or classes have no names.
        MissingExtraError: PyYAML is not installed.
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
        size = _size(path)
        images.append(ImageRow(number, path, label, size))
        if size is not None and label.is_file():
            objects += read_labels(images[-1], size, config, report)
        if number % LOG_EVERY == 0:
            logger.info("%s, %s: read %d of %d images", file, split, number, len(paths))
    root = file.parent if config.root.is_relative_to(file.parent) else config.root
    return SplitRows("YOLO", split, root, file, config.categories, tuple(images), tuple(objects))


def yolo_images(config: YoloConfig, split: str) -> list[Path]:
    """Return the images of a split in their order, each once.

    Raises:
        DataError: there is no such split, or no image in it.
    """
    if split not in config.splits:
        found = ", ".join(sorted(config.splits))
        raise DataError(f"{config.file} has no split {split!r}; splits found: {shown(found)}")
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
    return [_label_of(image, root) for image in images]


def _label_of(image: Path, root: Path) -> Path:
    usual = label_file(image, root)
    if usual.is_file():
        return usual
    others = (on_disk(usual), label_file(image, Path()), image.with_suffix(".txt"))
    return next((path for path in others if path.is_file()), usual)


def label_file(image: Path, root: Path) -> Path:
    """Return where the labels of an image are; folders above the root stay as they are."""
    below = image.relative_to(root) if image.is_relative_to(root) else image
    parts = list(below.parts[:-1])
    for position in reversed(range(len(parts))):
        if parts[position] == "images":
            parts[position] = "labels"
            break
    return root.joinpath(*parts, f"{image.stem}.txt")


def _size(path: Path) -> Size | None:
    try:
        return image_size(path)
    except InputError:
        return None
