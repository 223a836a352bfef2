"""The pictures of a check: a labelled batch of every split, and the faults that can be seen."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from nmsfree.data.check_report import Check, SplitCheck
from nmsfree.data.faults import Fault, Level
from nmsfree.data.rows import ImageRow, relative_name
from nmsfree.data.sheet import Tile, make_sheet
from nmsfree.data.sheet_marks import Mark
from nmsfree.draw import color_of
from nmsfree.errors import InputError
from nmsfree.files import write_picture
from nmsfree.images import read_image

COLUMNS, BATCH, MOST_FAULTS = 4, 12, 24  # tiles
RED, PALE = (60, 60, 245), (190, 190, 190)
MOST_NAMES = 40  # boxes of an image that get their names
# Kinds worth a picture; the others speak of files or lists.
_SHOWN = (Level.ERROR, Level.WARNING)


def sheet_paths(check: Check, folder: Path) -> tuple[Path, dict[str, Path]]:
    """Return where the problems go, and the labelled batch of every split."""
    return folder / "problems.jpg", {n: folder / f"{n}_labels.jpg" for n in check.splits}


def write_sheets(check: Check, folder: Path) -> list[Path]:
    """Write a picture for every split, and one of the problems if there is anything to show.

    Raises:
        InputError: a file cannot be written.
    """
    written: list[Path] = []
    problems, labelled = sheet_paths(check, folder)
    for name, split in check.splits.items():
        tiles = [_labelled(check, split, image) for image in choose(check, split)]
        if tiles:
            write_picture(labelled[name], make_sheet(tiles, COLUMNS))
            written.append(labelled[name])
    faulty = [_faulty(check, *found) for found in choose_faults(check)]
    if faulty:
        write_picture(problems, make_sheet(faulty, COLUMNS))
        written.append(problems)
    elif folder.is_dir():
        problems.unlink(missing_ok=True)  # of an earlier check
    return written


def choose(check: Check, split: SplitCheck) -> list[ImageRow]:
    """Return the images of the labelled batch: readable, with objects, evenly over the split."""
    usable = np.flatnonzero(split.boxes.good).tolist()
    filled = {split.rows.objects[index].image_id for index in usable}
    images = [
        image
        for image in split.rows.images
        if image.id in filled and check.facts[image.path].problem is None
    ]
    places = np.linspace(0, len(images) - 1, min(BATCH, len(images))).round().astype(int)
    return [images[place] for place in places.tolist()]


def choose_faults(check: Check) -> list[tuple[str, list[Fault]]]:
    """Return what the sheet of problems shows: split and the faults of one image and kind.

    Every kind gets its turn before any gets a second one, errors first.
    """
    queues: list[list[tuple[str, list[Fault]]]] = []
    for finding in check.findings():
        if finding.level not in _SHOWN:
            continue
        by_image: dict[Path, list[Fault]] = {}
        for fault in finding.faults:
            if fault.image is not None:
                by_image.setdefault(fault.image, []).append(fault)
        queues.append([(finding.split, faults) for faults in by_image.values()])
    chosen: list[tuple[str, list[Fault]]] = []
    turn = 0
    while len(chosen) < MOST_FAULTS and any(turn < len(queue) for queue in queues):
        chosen += [queue[turn] for queue in queues if turn < len(queue)]
        turn += 1
    return chosen[:MOST_FAULTS]


def _labelled(check: Check, split: SplitCheck, image: ImageRow) -> Tile:
    own = _usable(split, {image.id})
    marks = _class_marks(split, own, named=len(own) <= MOST_NAMES)
    picture = read_image(image.path)
    height, width = picture.shape[:2]
    note = f"{width} x {height}, {len(own)} object{'s' * (len(own) != 1)}"
    return Tile(picture, marks, relative_name(image.path, split.rows.root), note)


def _usable(split: SplitCheck, image_ids: set[int]) -> list[int]:
    """Return the rows of the usable boxes of some images."""
    objects = split.rows.objects
    good = np.flatnonzero(split.boxes.good).tolist()
    return [index for index in good if objects[index].image_id in image_ids]


def _class_marks(split: SplitCheck, indices: list[int], named: bool) -> tuple[Mark, ...]:
    """Return the boxes of objects in the colours of their classes."""
    label_of = {c.id: (label, c.name) for label, c in enumerate(split.rows.categories)}
    marks = []
    for index in indices:
        row = split.rows.objects[index]
        label, name = label_of[row.category_id]
        x1, y1, x2, y2 = split.boxes.clipped[index].tolist()
        shown = f"{name} (crowd)" if row.iscrowd else name
        marks.append(Mark((x1, y1, x2, y2), shown if named else "", color_of(label)))
    return tuple(marks)


def _faulty(check: Check, split: str, faults: list[Fault]) -> Tile:
    """Return the tile of one image and kind: what is wrong in red, the rest pale."""
    kind, path = faults[0].kind, faults[0].image
    assert path is not None  # chosen so
    marks = [*_others(check, split, path), *(m for fault in faults for m in _red(fault))]
    title = f"{kind.value.replace('-', ' ')}: {relative_name(path, check.layout.root)}"
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    note = faults[0].detail.replace("×", "x") + more  # OpenCV 4 writes ASCII only
    try:
        return Tile(read_image(path), tuple(marks), title, note)
    except InputError:
        return Tile(
            None, (), title, note, "no such file" if not path.exists() else "does not decode"
        )


def _others(check: Check, split: str, path: Path) -> tuple[Mark, ...]:
    """Return the usable boxes of an image, to show the fault among them."""
    names = [split] if split else list(check.splits)
    for name in names:
        found = check.splits[name]
        own = _usable(found, {image.id for image in found.rows.images if image.path == path})
        if own:
            marks = _class_marks(found, own, named=False)
            return tuple(replace(mark, color=PALE, line=1) for mark in marks)
    return ()


def _red(fault: Fault) -> Iterator[Mark]:
    for x, y, width, height in fault.boxes:
        if all(map(math.isfinite, (x, y, width, height))):
            yield Mark((x, y, x + width, y + height), "", RED)
