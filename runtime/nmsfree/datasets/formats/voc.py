"""Reading Pascal VOC datasets: DIR/Annotations/*.xml, DIR/JPEGImages/, DIR/ImageSets/Main/*.txt.

- A split is a list ImageSets/Main/SPLIT.txt with an image name a line, which may hold spaces,
  folders (cam/photo is JPEGImages/cam/photo.jpg) and the suffix of the image. Lists
  with a column of 1, 0 and -1 behind the names (`aeroplane_train.txt`, one class's presence) are
  no splits, unless they have the name of one (train, val, trainval, test).
- Classes are the sorted names in the annotations of all splits, the same whatever split is read;
  a file DIR/classes.txt, one name a line, takes their place. Category ids count from 1.
- Boxes are whole pixels from 1, the last one included: xmin, ymin, xmax, ymax become the corners
  (xmin − 1, ymin − 1) and (xmax, ymax) of continuous coordinates.
- Objects marked `difficult` are regions to ignore, as in VOC's own evaluation: they become
  `iscrowd`, so they are neither trained on nor asked for nor counted as false positives.
- Images are numbered from 1 in the order of their names.
"""

import os
import re
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.parsers import expat

import msgspec
from msgspec import Struct

from nmsfree.datasets.faults import Fault, Kind, Report, Xywh
from nmsfree.datasets.image_files import LONGEST_LIST, Size, image_size, images_below, nfc
from nmsfree.datasets.rows import Category, ClassName, ImageRow, ObjectRow, SplitRows, inside
from nmsfree.errors import DataError
from nmsfree.parsing import MALFORMED, MAX_FILE, Positive, explain, read_bytes, read_text
from nmsfree.streams.sources import IMAGE_SUFFIXES
from nmsfree.text import shown

LARGEST = 8 << 20  # bytes of a file
# What is read of an object and of the size; the boxes of <part> are not.
READ = frozenset(("bndbox", "difficult", "xmin", "ymin", "xmax", "ymax", "width", "height"))
UNSTATED = frozenset(("", "unspecified"))


class VocObject(NamedTuple):
    """One object."""

    name: str
    bbox: Xywh  # left, top, width, height in continuous pixels
    difficult: bool  # to be ignored
    number: int  # its position in the file, from 1


class VocAnnotation(NamedTuple):
    """What a file says of one image."""

    file: Path
    filename: str  # name of the image file as written, without folders; empty if missing
    size: Size | None  # None if it is missing or zero
    objects: tuple[VocObject, ...]


class _Corners(Struct):
    xmin: float
    ymin: float
    xmax: float
    ymax: float


class _Object(Struct):
    name: ClassName
    bndbox: _Corners
    difficult: bool | float = False


class _Size(Struct):
    width: Positive
    height: Positive


def _parse(file: Path) -> ElementTree.Element:
    """Parse an annotation, which is not trusted: no DOCTYPE, so no entities."""
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data

    def doctype(*_: object) -> None:
        raise DataError(f"{file}: has a DOCTYPE, which no VOC annotation needs: delete it")

    parser.StartDoctypeDeclHandler = doctype
    try:
        parser.Parse(read_bytes(file, LARGEST, DataError), True)
    except (LookupError, ValueError, expat.ExpatError) as error:  # LookupError: its encoding
        raise DataError(f"{file}: is not readable XML ({shown(error)})") from None
    root = builder.close()
    if root.tag != "annotation":
        raise DataError(f"{file}: its root is <{shown(root.tag, 40)}>, expected <annotation>")
    return root


def _value(element: ElementTree.Element) -> Any:
    """Return what is read of the children by name (the first of several), else number or text."""
    if len(element):
        return {child.tag: _value(child) for child in reversed(element) if child.tag in READ}
    text = (element.text or "").strip()
    try:
        return float(text)
    except ValueError:
        return text


def _size(root: ElementTree.Element) -> Size | None:
    size = root.find("size")
    try:
        found = msgspec.convert({} if size is None else _value(size), _Size, strict=False)
    except MALFORMED:
        return None
    return found.width, found.height


def _xml_objects(root: ElementTree.Element, file: Path, report: Report) -> Iterator[VocObject]:
    for number, element in enumerate(root.findall("object"), start=1):
        try:
            fields = _value(element) if len(element) else {}
            fields["name"] = (element.findtext("name") or "").strip()
            if str(fields.get("difficult")).lower() in UNSTATED:
                del fields["difficult"]
            found = msgspec.convert(fields, _Object, strict=False)
        except MALFORMED as error:
            detail = f"object {number}: {explain(error, 'XML')}"
            report(Fault(Kind.ANNOTATION_MALFORMED, file, detail))
            continue
        box = found.bndbox
        # From pixels counted from 1, the last included, to edges counted from 0.
        bbox = (box.xmin - 1, box.ymin - 1, box.xmax - box.xmin + 1, box.ymax - box.ymin + 1)
        yield VocObject(found.name, bbox, bool(found.difficult), number)


USUAL = frozenset(("train", "val", "trainval", "test"))
PROBED = 20  # lines that tell whether a list has a second column
_PRESENCE = re.compile(r"(.*\S)\s+(?:-1|0|1)")


def voc_splits(directory: Path) -> list[str]:
    """Return the names of the splits of a VOC folder, sorted."""
    return [file.stem for file in sorted(_lists(directory).glob("*.txt")) if _is_split(file)]


def _lists(directory: Path) -> Path:
    return directory / "ImageSets" / "Main"


def _is_split(file: Path) -> bool:
    if file.stem in USUAL:
        return True
    try:
        lines = read_text(file, LONGEST_LIST, DataError).splitlines()
    except DataError:
        return True  # reading it tells
    found = [line.strip() for line in lines[:PROBED] if line.strip()]
    return not found or any(
        _PRESENCE.fullmatch(line) is None or _is_there(file, line) for line in found
    )


def _is_there(listed: Path, name: str) -> bool:
    """Whether an image that the list DIR/ImageSets/Main/SPLIT.txt names is annotated."""
    file = listed.parents[2] / "Annotations" / f"{name}.xml"
    return os.path.isfile(file)  # noqa: PTH113 (any text may stand in a list)


def _name(line: str, listed: Path) -> str:
    """Return the image name in a stripped line, without a column of presence and a suffix.

    "photo 1" and "photo.jpg" are names if they are annotated.
    """
    line = line.replace("\\", "/").removeprefix("./")
    column = _PRESENCE.fullmatch(line)
    if column is not None and not _is_there(listed, line):
        line = column[1]
    stem, dot, suffix = line.rpartition(".")
    is_suffix = f"{dot}{suffix}".lower() in IMAGE_SUFFIXES and not _is_there(listed, line)
    return stem if is_suffix else line


def read_voc(directory: Path, split: str, report: Report) -> SplitRows:
    """Read one split as it stands; what cannot be used is reported and left out.

    DataError if a folder or list is missing or empty, or no class is named anywhere.
    """
    file = _lists(directory) / f"{split}.txt"
    if not os.path.exists(file):  # noqa: PTH110 (a split may have any name)
        found = ", ".join(voc_splits(directory)) or "none"
        raise DataError(
            f"{shown(file)} is missing: write one image name a line; splits found in {directory}: "
            f"{shown(found)}"
        )
    if not (names := read_names(file)):
        raise DataError(f"{file} is empty: write one image name a line")
    annotations = dict(_annotations(directory, names, report))
    categories = _categories(directory, annotations)
    ids = {category.name: category.id for category in categories}
    folder = directory / "JPEGImages"
    if not folder.is_dir():
        raise DataError(f"{folder} is missing: the images belong there")
    pictures: dict[str, list[Path]] = defaultdict(list)  # by path without suffix
    for picture in images_below(folder):
        pictures[picture_name(picture, folder)].append(picture)
    images: list[ImageRow] = []
    objects: list[ObjectRow] = []
    for number, (name, annotation) in enumerate(annotations.items(), start=1):
        files = pictures.get(nfc(name), [folder / f"{name}.jpg"])
        path = next((file for file in files if file.name == annotation.filename), files[0])
        size = annotation.size or image_size(path)
        images.append(ImageRow(number, path, annotation.file, size))
        objects += _objects(images[-1], annotation, ids, report)
    return SplitRows("VOC", split, directory, file, categories, tuple(images), tuple(objects))


def read_names(file: Path) -> list[str]:
    """Return the image names in a list, sorted and each once; DataError if it cannot be read."""
    lines = read_text(file, LONGEST_LIST, DataError).splitlines()
    return sorted({_name(line.strip(), file) for line in lines if line.strip()})


def all_names(directory: Path) -> set[str]:
    """Return the image names in the lists of all splits of a VOC folder."""
    lists = [_lists(directory) / f"{split}.txt" for split in voc_splits(directory)]
    return {name for file in lists for name in read_names(file)}


def _annotations(
    directory: Path, names: list[str], report: Report
) -> Iterator[tuple[str, VocAnnotation]]:
    """Yield what can be read for each image name; what cannot be used is reported."""
    for name in names:
        try:
            file = inside(directory / "Annotations", f"{name}.xml")
        except ValueError as error:
            report(Fault(Kind.IMAGE_ENTRY, directory / "ImageSets", str(error)))
            continue
        if not file.is_file():
            detail = "is missing: an image without objects needs a file without <object>, too"
            report(Fault(Kind.ANNOTATION_FILE_MISSING, file, detail))
            continue
        try:
            root = _parse(file)
        except DataError as error:
            detail = str(error).removeprefix(f"{file}: ")
            report(Fault(Kind.ANNOTATION_MALFORMED, file, detail))
            continue
        filename = (root.findtext("filename") or "").replace("\\", "/").rpartition("/")[2]
        objects = tuple(_xml_objects(root, file, report))
        yield name, VocAnnotation(file, filename, _size(root), objects)


def _categories(directory: Path, read: dict[str, VocAnnotation]) -> tuple[Category, ...]:
    """Return all classes of the dataset; `read` are the annotations that are at hand already."""
    listed = directory / "classes.txt"
    if listed.is_file():
        lines = map(str.strip, read_text(listed, MAX_FILE, DataError).splitlines())
        found = [name for name in dict.fromkeys(lines) if name]
    else:
        others = sorted(all_names(directory) - read.keys())
        ignored: list[Fault] = []  # reading their splits tells
        every = [*read.values(), *(a for _, a in _annotations(directory, others, ignored.append))]
        found = sorted({item.name for annotation in every for item in annotation.objects})
    if not found:
        raise DataError(
            f"{directory}: no annotation names a class: write the names into {listed}, one a line"
        )
    return tuple(Category(number, name) for number, name in enumerate(found, start=1))


def picture_name(file: Path, folder: Path) -> str:
    """Return how lists call an image of the folder JPEGImages."""
    return nfc(file.relative_to(folder).with_suffix("").as_posix())


def _objects(
    image: ImageRow, annotation: VocAnnotation, ids: dict[str, int], report: Report
) -> Iterator[ObjectRow]:
    for name, bbox, difficult, number in annotation.objects:
        if name in ids:
            yield ObjectRow(image.id, ids[name], bbox, difficult, number)
        else:
            detail = f"object {number} is {shown(name)!r}, which classes.txt does not name"
            report(Fault(Kind.DANGLING_CATEGORY, image.source, detail, image.path, (bbox,)))
