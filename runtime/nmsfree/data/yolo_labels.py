"""The label files of YOLO datasets: one object a row, coordinates as fractions of the image.

    class centre-x centre-y width height
    class x1 y1 x2 y2 x3 y3 …               a polygon: its bounding box is taken

Where the data.yaml has `kpt_shape`, key points stand behind the box and are ignored. Boxes that
reach out of the image stay as they are; those of which nothing is in it are reported.
"""

import math
from collections.abc import Iterator

from nmsfree.data.faults import Fault, Kind, Report, Xywh
from nmsfree.data.image_size import Size
from nmsfree.data.rows import ImageRow, ObjectRow
from nmsfree.data.yolo_config import YoloConfig
from nmsfree.decode import read_text
from nmsfree.errors import DataError
from nmsfree.text import shown

LARGEST = 8 << 20  # bytes of a file: some 200,000 boxes
TOLERANCE = 0.01  # of the image's size by which a coordinate may miss 0 … 1
BOX, SMALLEST_POLYGON = 5, 7  # columns
NAMES = ("cx", "cy", "w", "h")


def read_labels(
    image: ImageRow, size: Size, config: YoloConfig, report: Report
) -> Iterator[ObjectRow]:
    """Yield the objects of an image's label file; rows that cannot be used are reported.

    Args:
        image: its source is the label file.
        size: width and height in pixels.
        config: class indices, and whether rows hold key points.
        report: what to do with a fault.
    """
    known = {category.id for category in config.categories}
    try:
        lines = read_text(image.source, LARGEST, DataError).splitlines()
    except DataError as error:
        report(_malformed(image, str(error).removeprefix(f"{image.source}: ")))
        return
    for number, line in enumerate(lines, start=1):
        columns = line.split()
        if not columns:
            continue
        try:
            category_id, bbox, note = parse_row(columns, size, config.keypoints)
        except ValueError as error:
            report(_malformed(image, f"line {number} {error}"))
            continue
        if category_id not in known:
            detail = (
                f"line {number} has class {shown(category_id, 40)}, which {config.file.name} does "
                "not name"
            )
            report(Fault(Kind.DANGLING_CATEGORY, image.source, detail, image.path, (bbox,)))
            continue
        if note and not _shows(bbox, size):
            has_area = min(bbox[2:]) > 0 and all(map(math.isfinite, bbox))
            kind = Kind.BOX_OUTSIDE if has_area else Kind.BOX_WITHOUT_AREA
            report(Fault(kind, image.source, f"line {number}: {note}", image.path, (bbox,)))
            continue
        yield ObjectRow(image.id, category_id, bbox, False, number, note=note)


def _shows(bbox: Xywh, size: Size) -> bool:
    """Tell whether a box is one, and something of it in the image."""
    starts, sides = bbox[:2], bbox[2:]
    return all(map(math.isfinite, bbox)) and all(
        side > 0 and min(start + side, limit) > max(start, 0)
        for start, side, limit in zip(starts, sides, size, strict=True)
    )


def _malformed(image: ImageRow, detail: str) -> Fault:
    return Fault(Kind.ANNOTATION_MALFORMED, image.source, detail, image.path)


def parse_row(columns: list[str], size: Size, keypoints: bool = False) -> tuple[int, Xywh, str]:
    """Return class index and box (left, top, width, height in pixels) of a row.

    The text behind them names what is no fraction of the image's size; it is empty if all are.

    Raises:
        ValueError: it is no such row; the message continues "line 3 …".
    """
    count = len(columns)
    is_box = count == BOX or (keypoints and count > BOX)
    if not is_box and (count < SMALLEST_POLYGON or count % 2 == 0):
        raise ValueError(f"has {count} columns, expected class, centre-x, centre-y, width, height")
    try:
        index = float(columns[0])
        values = [float(column) for column in columns[1 : BOX if is_box else count]]
    except ValueError:
        raise ValueError(f"is not made of numbers ({shown(' '.join(columns[:BOX]))})") from None
    if not index.is_integer():
        raise ValueError(f"has class {shown(columns[0], 40)}, expected a whole number")
    bbox = _box(values, size) if is_box else _around(values, size)
    return int(index), bbox, _strays(values, is_box)


def _strays(values: list[float], is_box: bool) -> str:
    """Name the values that are no fractions; of a polygon the first one."""
    if min(values) >= -TOLERANCE and max(values) <= 1 + TOLERANCE:
        return ""  # nearly always, and quick
    names = NAMES if is_box else [f"{'xy'[i % 2]}{i // 2 + 1}" for i in range(len(values))]
    wrong = [
        f"{name} is {value:g}"
        for name, value in zip(names, values, strict=True)
        if value < -TOLERANCE or value > 1 + TOLERANCE
    ]
    if not wrong:  # not a number
        return ""
    found = ", ".join(wrong if is_box else wrong[:1])
    return f"{found}, expected fractions of the image's size, 0 … 1"


def _box(values: list[float], size: Size) -> Xywh:
    width, height = size
    cx, cy, w, h = values
    return (cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height


def _around(points: list[float], size: Size) -> Xywh:
    """Return the bounding box of a polygon x1 y1 x2 y2 …"""
    xs = [x * size[0] for x in points[::2]]
    ys = [y * size[1] for y in points[1::2]]
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)
