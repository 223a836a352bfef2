"""One annotation file of Pascal VOC. XML of others is not trusted: no DOCTYPE, so no entities."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.parsers import expat

import msgspec
from msgspec import Struct

from nmsfree.data.faults import Fault, Kind, Report, Xywh
from nmsfree.data.rows import ClassName
from nmsfree.decode import MALFORMED, Positive, explain, read_bytes
from nmsfree.errors import DataError
from nmsfree.text import shown

LARGEST = 8 << 20  # bytes of a file
# What is read of an object and of the size; the boxes of <part> are not.
READ = frozenset(("bndbox", "difficult", "xmin", "ymin", "xmax", "ymax", "width", "height"))
UNSTATED = frozenset(("", "unspecified"))


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


class _Corners(Struct, frozen=True):
    xmin: float
    ymin: float
    xmax: float
    ymax: float


class _Object(Struct, frozen=True):
    name: ClassName
    bndbox: _Corners
    difficult: bool | float = False


class _Size(Struct, frozen=True):
    width: Positive
    height: Positive


def read_xml(file: Path, report: Report) -> VocAnnotation:
    """Read a file; objects that cannot be used are reported and left out.

    Raises:
        DataError: it is not XML, not a VOC annotation, or has a DOCTYPE.
    """
    root = _parse(file)
    if root.tag != "annotation":
        raise DataError(f"{file}: its root is <{shown(root.tag, 40)}>, expected <annotation>")
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
        parser.Parse(read_bytes(file, LARGEST, DataError), True)
    except (LookupError, ValueError, expat.ExpatError) as error:  # LookupError: its encoding
        raise DataError(f"{file}: is not readable XML ({shown(error)})") from None
    return builder.close()


def _fields(element: ElementTree.Element) -> dict[str, Any]:
    """Return what is read of an element's children by name, of several the first."""
    return {child.tag: _value(child) for child in reversed(element) if child.tag in READ}


def _value(element: ElementTree.Element) -> dict[str, Any] | str | float:
    """Return the children by name, or the number or text of an element without any."""
    if len(element):
        return _fields(element)
    text = (element.text or "").strip()
    try:
        return float(text)
    except ValueError:
        return text


def _size(root: ElementTree.Element) -> tuple[int, int] | None:
    size = root.find("size")
    try:
        found = msgspec.convert({} if size is None else _value(size), _Size, strict=False)
    except MALFORMED:
        return None
    return found.width, found.height


def _objects(root: ElementTree.Element, file: Path, report: Report) -> Iterator[VocObject]:
    for number, element in enumerate(root.findall("object"), start=1):
        try:
            fields = _fields(element)
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
