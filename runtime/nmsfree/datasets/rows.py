"""What every format is read into: images, objects and categories, boxes not judged yet."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from msgspec import Meta, Raw

from nmsfree.datasets.faults import Xywh
from nmsfree.datasets.image_files import on_disk
from nmsfree.text import shown

# Bounded, because it goes into model files.
ClassName = Annotated[str, Meta(min_length=1, max_length=1000)]
Format = Literal["COCO", "YOLO", "VOC"]
LONGEST_NAME = 255  # bytes between two slashes, on every usual file system
LONGEST_PATH = 2000  # characters; systems allow 4096 bytes with the folders above
EMPTY = Raw(b"{}")
# How an object is called in messages; the number behind it is `ObjectRow.number`.
_PLACE = {"COCO": "annotation", "YOLO": "line", "VOC": "object"}


class Category(NamedTuple):
    """A class: the dataset's own id, and the name."""

    id: int
    name: str


class ImageRow(NamedTuple):
    """One image."""

    id: int  # the dataset's own id, unique in the split
    path: Path  # image file
    source: Path  # file that annotates it
    size: tuple[int, int] | None  # width, height in pixels; None if the annotations do not say
    entry: Raw = EMPTY  # the COCO entry it was read from as it stands, empty for other formats


class ObjectRow(NamedTuple):
    """One object; its image and category are defined, its box may be anything."""

    image_id: int
    category_id: int
    bbox: Xywh  # left, top, width, height in source pixels, at the source's full precision
    iscrowd: bool  # a region to ignore: no training target, no false positive
    number: int | str  # annotation id, line or position in its file, for messages
    entry: Raw = EMPTY  # as in `ImageRow`
    note: str = ""  # what is odd about its box as it is written; empty if nothing
    area: float | None = None  # in pixels² as stated, None if it is not


@dataclass(frozen=True, eq=False)
class SplitRows:
    """One split as its source states it."""

    format: Format
    name: str  # name of the split
    root: Path  # folder of the dataset
    file: Path  # file that defines the split
    categories: tuple[Category, ...]  # all classes, by ascending id
    images: tuple[ImageRow, ...]  # in the order of the dataset
    objects: tuple[ObjectRow, ...]  # in the order of the source
    folder: Path | None = None  # whose images should all be annotated in this split

    def place(self, row: ObjectRow) -> str:
        """Return how an object is called in messages."""
        return f"{_PLACE[self.format]} {row.number}"


def relative_name(path: Path, root: Path) -> str:
    """Return a path as reports show it: from the dataset's folder if it lies there."""
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def inside(folder: Path, name: str, root: Path | None = None) -> Path:
    """Return the file that annotations name, `on_disk`; `/` and `\\` both part folders.

    Relative names begin at the folder; none leads out of the root (the folder if not given), by
    `..` or as a whole path.

    Raises:
        ValueError: the name leads out of the root or to nothing, or no file can have it.
    """
    name = name.replace("\\", "/")
    check_name(name)
    drive = os.name == "nt" and ":" in name
    path = folder / name
    if name.startswith("/") or ".." in name.split("/") or drive:
        path = Path(os.path.normpath(path))
        limit = os.path.abspath(root or folder)  # noqa: PTH100 (resolve() follows links)
        if not Path(os.path.abspath(path)).is_relative_to(limit):  # noqa: PTH100
            raise ValueError(f"file name {shown(name)!r} leads out of {root or folder}")
    if not name.strip("./"):
        raise ValueError(f"file name {shown(name)!r} names no file in {folder}")
    return on_disk(path)


def check_name(name: str) -> None:
    """Refuse, by a ValueError, what no file can be called: asking the system for it would raise."""
    parts = name.split("/") if len(name) <= LONGEST_PATH else [name]
    if "\0" in name or any(len(os.fsencode(part)) > LONGEST_NAME for part in parts):
        raise ValueError(f"file name {shown(name)!r} is none that a file can have")


COCO_NAMES = tuple(
    """person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,
stop sign,parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,
umbrella,handbag,tie,suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,baseball glove,
skateboard,surfboard,tennis racket,bottle,wine glass,cup,fork,knife,spoon,bowl,banana,apple,
sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,potted plant,bed,
dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,
refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush""".replace("\n", "").split(
        ","
    )
)
# COCO numbers its 80 categories 1 … 90 with ten ids unused.
COCO_CATEGORY_IDS = tuple(
    i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
)
