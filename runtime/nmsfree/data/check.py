"""Checking a dataset before training: everything that would stop it or teach it wrong things.

The readers are those that load a dataset, told to go on where loading would stop.
"""

from collections.abc import Sequence
from pathlib import Path

from nmsfree.data.check_boxes import box_faults, empty_images, full_images, judge, small_boxes
from nmsfree.data.check_classes import class_faults, faults_between, list_faults
from nmsfree.data.check_copies import copies_within, leak_faults, leaks
from nmsfree.data.check_files import set_file_faults, split_file_faults
from nmsfree.data.check_ids import id_faults
from nmsfree.data.check_images import ImageFact, Progress, image_faults, read_images
from nmsfree.data.check_report import Check, SplitCheck
from nmsfree.data.check_stats import count
from nmsfree.data.faults import Fault, Kind
from nmsfree.data.formats import find_layout
from nmsfree.data.rows import SplitRows
from nmsfree.errors import DataError


def check_dataset(
    directory: Path, splits: Sequence[str] = (), progress: Progress | None = None
) -> Check:
    """Check a dataset; every image is read.

    Args:
        directory: folder of the dataset, or its data.yaml.
        splits: names of the splits to check; all if empty.
        progress: called as (done, total) while the images are read.

    Raises:
        DataError: no dataset is there, or a split that was named, or all of
            them, cannot be read.
        MissingExtraError: PyYAML is not installed and the dataset is YOLO.
    """
    layout = find_layout(directory)
    faults: list[Fault] = []
    read: dict[str, tuple[SplitRows, list[Fault]]] = {}
    errors: list[DataError] = []
    for name in splits or layout.splits():
        found: list[Fault] = []
        try:
            read[name] = layout.read(name, found.append), found
        except DataError as error:
            if splits:
                raise  # the user named it
            errors.append(error)
            source = layout.config or layout.root
            detail = str(error).removeprefix(f"{source}: ")
            faults.append(Fault(Kind.SPLIT_UNREADABLE, source, f"{name}: {detail}"))
    if not read:
        raise errors[0]
    paths = dict.fromkeys(image.path for rows, _ in read.values() for image in rows.images)
    facts = read_images(list(paths), progress)
    checked = {name: _check_split(rows, facts, found) for name, (rows, found) in read.items()}
    all_rows = {name: rows for name, (rows, _) in read.items()}
    shared = leaks(all_rows, facts)
    faults += list_faults(all_rows)
    faults += faults_between(all_rows)
    faults += leak_faults(all_rows, shared)
    faults += set_file_faults(layout)
    return Check(layout, checked, facts, tuple(shared), tuple(faults))


def _check_split(
    rows: SplitRows, facts: dict[Path, ImageFact], reported: list[Fault]
) -> SplitCheck:
    sizes = {image.id: image.size or facts[image.path].size for image in rows.images}
    boxes = judge(rows, sizes)
    stats = count(rows, boxes)
    faults = [*reported, *id_faults(rows)]
    faults += image_faults(rows.images, facts)
    faults += box_faults(rows, boxes, sizes)
    faults += copies_within(rows, facts)
    faults += split_file_faults(rows)
    faults += class_faults(rows, stats)
    faults += empty_images(rows, boxes, facts)
    faults += small_boxes(rows, boxes)
    faults += full_images(rows, boxes)
    return SplitCheck(rows, boxes, stats, tuple(faults))
