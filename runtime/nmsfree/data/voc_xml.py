"""One annotation file of Pascal VOC. XML of others is not trusted: no DOCTYPE, so no entities."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.parsers import expat

from nmsfree.data.faults import Fault, Kind, Report, Xywh
from nmsfree.errors import DataError


@dataclass(frozen=True)
class VocObject:
    """One object.

    Attributes:
        name: its class.
        bbox: left, top, width, height in continuous pixel coordinates.
        difficult: to be ignored.
        number: position in the file, from 1.
    """

    name: str
    bbox: Xywh
    difficult: bool
    number: int


@dataclass(frozen=True)
class VocAnnotation:
    """What a file says of one image.

    Attributes:
        file: the XML file.
        filename: name of the image file as written, without folders; empty if missing.
        size: width, height in pixels; None if it is missing or zero.
        objects: in the order of the file.
    """

    file: Path
    filename: str
    size: tuple[int, int] | None
    objects: tuple[VocObject, ...]


def read_xml(file: Path, report: Report) -> VocAnnotation:
    """Read a file; objects that cannot be used are reported and left out.

    Raises:
        DataError: it is not XML, not a VOC annotation, or has a DOCTYPE.
    """
    root = _parse(file)
    if root.tag != "annotation":
        raise DataError(f"{file}: its root is <{root.tag}>, expected <annotation>")
    filename = (root.findtext("filename") or "").replace("\\", "/").rpartition("/")[2]
    return VocAnnotation(file, filename, _size(root), tuple(_objects(root, file, report)))


def _parse(file: Path) -> ElementTree.Element:
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data

    def doctype(*_: object) -> None:
        raise DataError(f"{file}: has a DOCTYPE, which no VOC annotation needs: delete it")

    parser.StartDoctypeDeclHandler = doctype
    try:
        parser.Parse(file.read_bytes(), True)
    except (OSError, ValueError, expat.ExpatError) as error:
        raise DataError(f"{file}: is not readable XML ({error})") from None
    return builder.close()


def _size(root: ElementTree.Element) -> tuple[int, int] | None:
    try:
        size = (
            int(float(root.findtext("size/width", "0"))),
            int(float(root.findtext("size/height", "0"))),
        )
    except (ValueError, OverflowError):
        return None
    return size if min(size) > 0 else None


def _objects(root: ElementTree.Element, file: Path, report: Report) -> Iterator[VocObject]:
    for number, element in enumerate(root.findall("object"), start=1):
        try:
            yield _object(element, number)
        except ValueError as error:
            report(Fault(Kind.ANNOTATION_MALFORMED, file, f"object {number} {error}"))


def _object(element: ElementTree.Element, number: int) -> VocObject:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise ValueError("has no <name>")
    corners = [element.findtext(f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")]
    if None in corners:
        raise ValueError("has no <bndbox> with xmin, ymin, xmax and ymax")
    try:
        left, top, right, bottom = (float(corner or "") for corner in corners)
        difficult = bool(int(element.findtext("difficult") or 0))
    except ValueError as error:
        raise ValueError(f"is malformed ({error})") from None
    # From pixels counted from 1, the last included, to edges counted from 0.
    bbox = (left - 1, top - 1, right - left + 1, bottom - top + 1)
    return VocObject(name, bbox, difficult, number)
