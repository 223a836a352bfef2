"""Files of a dataset that nothing refers to, and label files that are not there."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from nmsfree.data.faults import Fault, Kind
from nmsfree.data.formats import Layout
from nmsfree.data.image_files import images_below, images_in, nfc
from nmsfree.data.rows import SplitRows
from nmsfree.data.voc import picture_name, read_names, voc_splits
from nmsfree.data.yolo import label_files, yolo_images
from nmsfree.data.yolo_config import read_config
from nmsfree.errors import DataError

NO_LABELS = frozenset(("classes.txt",))  # labelling programs leave it among the labels


def split_file_faults(rows: SplitRows) -> Iterator[Fault]:
    """Yield the image files that a split does not name, and the label files it lacks."""
    if rows.folder is not None:
        listed = {image.path for image in rows.images}
        yield from _unannotated(set(images_below(rows.folder)) - listed, rows.file)
    if rows.format == "YOLO":
        for image in rows.images:
            if not image.source.is_file():
                yield Fault(Kind.LABEL_FILE_MISSING, image.source, "no such file", image.path)


def set_file_faults(layout: Layout) -> Iterator[Fault]:
    """Yield the files that no split of a dataset names."""
    if layout.format == "VOC":
        lists = layout.root / "ImageSets" / "Main"
        splits = [lists / f"{split}.txt" for split in voc_splits(layout.root)]
        names = {nfc(name) for file in splits for name in read_names(file)}
        folder = layout.root / "JPEGImages"
        pictures = (p for p in images_below(folder) if picture_name(p, folder) not in names)
        yield from _unannotated(pictures, lists)
    if layout.config is not None:
        yield from _labels_alone(layout.config)


def _unannotated(paths: Iterable[Path], source: Path) -> Iterator[Fault]:
    for path in sorted(paths):
        yield Fault(Kind.IMAGE_UNANNOTATED, source, "no annotation names it", path)


def _labels_alone(file: Path) -> Iterator[Fault]:
    """Yield the label files of a YOLO dataset that belong to no image."""
    config = read_config(file)
    labels: set[Path] = set()
    pictures: dict[Path, set[Path]] = {}  # folder of labels → folders of their images
    for split in config.splits:
        with suppress(DataError):  # reading that split tells
            images = yolo_images(config, split)
            found = label_files(images, config.root)
            labels.update(found)
            for image, label in zip(images, found, strict=True):
                pictures.setdefault(label.parent, set()).add(image.parent)
    for folder, homes in sorted(pictures.items()):
        stems = {path.stem for home in homes for path in images_in(home)}
        for path in sorted(set(folder.glob("*.txt")) - labels):
            if path.stem not in stems and path.name not in NO_LABELS and folder not in homes:
                yield Fault(Kind.LABEL_WITHOUT_IMAGE, path, "belongs to no image")
