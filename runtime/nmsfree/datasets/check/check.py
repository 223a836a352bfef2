"""Checking a dataset before training: everything that would stop it or teach it wrong things.

The readers are those that load a dataset, told to go on where loading would stop.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from nmsfree.datasets.check.boxes import box_faults, judge, object_faults
from nmsfree.datasets.check.images import (
    ImageFact,
    Progress,
    copies_within,
    image_faults,
    leak_faults,
    leaks,
    read_images,
    unions,
)
from nmsfree.datasets.check.report import Check, SplitCheck, SplitStats, by_name, count
from nmsfree.datasets.faults import Fault, Kind
from nmsfree.datasets.formats.coco import fields_of
from nmsfree.datasets.formats.folder import Layout, find_layout
from nmsfree.datasets.formats.voc import all_names, picture_name
from nmsfree.datasets.formats.yolo import label_files, read_config, yolo_images
from nmsfree.datasets.image_files import images_below, images_in, nfc
from nmsfree.datasets.rows import Category, SplitRows
from nmsfree.errors import DataError


def list_faults(rows: SplitRows) -> Iterator[Fault]:
    """Yield what is remarkable about a list of classes."""
    ids: dict[str, list[str]] = defaultdict(list)
    for number, name in rows.categories:
        ids[name].append(str(number))
    for name, numbers in ids.items():
        if len(numbers) > 1:
            detail = f"{name!r} is the name of the ids {', '.join(numbers)}"
            yield Fault(Kind.CLASS_NAME_TWICE, rows.file, detail)
    for low, high in pairwise(category.id for category in rows.categories):
        if high > low + 1:
            gap = f"{low + 1}" if high == low + 2 else f"{low + 1} … {high - 1}"
            yield Fault(Kind.CATEGORY_ID_GAP, rows.file, f"no class has the id {gap}")


def faults_between(splits: Mapping[str, SplitRows]) -> Iterator[Fault]:
    """Yield what is wrong with splits side by side."""
    first = next(iter(splits.values()))
    for rows in splits.values():
        if rows.categories != first.categories:
            differ = {f"{c.name} (id {c.id})" for c in {*rows.categories} ^ {*first.categories}}
            names = ", ".join(sorted(differ)[:5])
            detail = f"its classes differ from those of {first.name}: {names}"
            yield Fault(Kind.CLASSES_DIFFER, rows.file, detail)
    for name, parts in unions(splits).items():
        detail = f"{name} is {' and '.join(parts)} together"
        yield Fault(Kind.SPLIT_UNION, splits[name].file, detail)


NO_LABELS = frozenset(("classes.txt",))  # labelling programs leave it among the labels


def split_faults(rows: SplitRows, stats: SplitStats) -> Iterator[Fault]:
    """Yield what is wrong with ids, files and classes of a split.

    Loading does not mind an id that is there twice; pycocotools silently keeps the last object.
    """
    ids = Counter(str(row.number) for row in rows.objects if "id" in fields_of(row.entry))
    for own, times in ids.items():
        if times > 1:
            detail = f"{times} annotations have the id {own}"
            yield Fault(Kind.ANNOTATION_ID_TWICE, rows.file, detail)
    if rows.folder is not None:
        listed = {image.path for image in rows.images}
        yield from _unannotated(set(images_below(rows.folder)) - listed, rows.file)
    for image in rows.images if rows.format == "YOLO" else ():
        if not image.source.is_file():
            yield Fault(Kind.LABEL_FILE_MISSING, image.source, "no such file", image.path)
    objects = by_name(rows, stats.by_class)
    for number, name in rows.categories:
        if not objects[name]:
            yield Fault(Kind.CLASS_EMPTY, rows.file, f"{name} (id {number})")


def set_file_faults(layout: Layout) -> Iterator[Fault]:
    """Yield the files that no split of a dataset names."""
    if layout.format == "VOC":
        names = {nfc(name) for name in all_names(layout.root)}
        folder = layout.root / "JPEGImages"
        pictures = (p for p in images_below(folder) if picture_name(p, folder) not in names)
        yield from _unannotated(pictures, layout.root / "ImageSets" / "Main")
    if layout.config is not None:
        yield from _labels_alone(layout.config)


def _unannotated(paths: Iterable[Path], source: Path) -> Iterator[Fault]:
    for path in sorted(paths):
        yield Fault(Kind.IMAGE_UNANNOTATED, source, "no annotation names it", path)


def _labels_alone(file: Path) -> Iterator[Fault]:
    """Yield the label files of a YOLO dataset that belong to no image."""
    config = read_config(file)
    labels: set[Path] = set()
    pictures: dict[Path, set[Path]] = defaultdict(set)  # folder of labels → folders of their images
    for split in config.splits:
        with suppress(DataError):  # reading that split tells
            images = yolo_images(config, split)
            for image, label in zip(images, label_files(images, config.root), strict=True):
                labels.add(label)
                pictures[label.parent].add(image.parent)
    for folder, homes in sorted(pictures.items()):
        stems = {path.stem for home in homes for path in images_in(home)}
        for path in sorted(set(folder.glob("*.txt")) - labels):
            if path.stem not in stems and path.name not in NO_LABELS and folder not in homes:
                yield Fault(Kind.LABEL_WITHOUT_IMAGE, path, "belongs to no image")


def check_dataset(
    directory: Path, splits: Sequence[str] = (), progress: Progress | None = None
) -> Check:
    """Check a dataset, a folder or a data.yaml, and all its splits unless some are named.

    Every image is read; `progress` is called as (done, total) meanwhile.

    Raises:
        DataError: no dataset is there, or a split that was named, or all of them, is unreadable.
        MissingExtraError: PyYAML is not installed and the dataset is YOLO.
    """
    layout = find_layout(directory)
    faults: list[Fault] = []
    read: dict[str, SplitRows] = {}
    reported: dict[str, list[Fault]] = defaultdict(list)
    errors: list[DataError] = []
    for name in splits or layout.splits():
        try:
            read[name] = layout.read(name, reported[name].append)
        except DataError as error:
            if splits:
                raise  # the user named it
            errors.append(error)
            source = layout.config or layout.root
            detail = str(error).removeprefix(f"{source}: ")
            faults.append(Fault(Kind.SPLIT_UNREADABLE, source, f"{name}: {detail}"))
    if not read:
        raise errors[0]
    paths = dict.fromkeys(image.path for rows in read.values() for image in rows.images)
    facts = read_images(list(paths), progress)
    checked = {name: _check_split(rows, facts, reported[name]) for name, rows in read.items()}
    shared = leaks(read, facts)
    lists: dict[tuple[Category, ...], SplitRows] = {}
    for rows in read.values():
        lists.setdefault(rows.categories, rows)
    for rows in lists.values():  # each list once
        faults += list_faults(rows)
    faults += faults_between(read)
    faults += leak_faults(read, shared)
    faults += set_file_faults(layout)
    return Check(layout, checked, facts, tuple(shared), tuple(faults))


def _check_split(
    rows: SplitRows, facts: dict[Path, ImageFact], reported: list[Fault]
) -> SplitCheck:
    sizes = {image.id: image.size or facts[image.path].size for image in rows.images}
    boxes = judge(rows, sizes)
    stats = count(rows, boxes, sizes)
    faults = [
        *reported,
        *split_faults(rows, stats),
        *image_faults(rows.images, facts),
        *box_faults(rows, boxes, sizes),
        *copies_within(rows, facts),
        *object_faults(rows, boxes, facts),
    ]
    return SplitCheck(rows, boxes, stats, tuple(faults))
