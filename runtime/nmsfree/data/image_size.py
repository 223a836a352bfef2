"""Width and height of an image file from its header, as `nmsfree.images.read_image` gives it."""

from pathlib import Path

from nmsfree.decode import check_file
from nmsfree.errors import InputError
from nmsfree.image_header import Header, png_is_plain, read_header
from nmsfree.images import LARGEST, read_image

Size = tuple[int, int]  # width, height in pixels


def image_size(path: Path) -> Size:
    """Return width and height after Exif rotation, decoding the image only if it must.

    Raises:
        InputError: it is missing or cannot be decoded.
    """
    size = header_size(path)
    if size is None:
        height, width = read_image(path).shape[:2]
        size = (width, height)
    return size


def header_size(path: Path) -> Size | None:
    """Return width and height after Exif rotation; None if the header does not tell surely."""
    header = header_of(path)
    if header is None or header.turned is None:
        return None
    return (header.height, header.width) if header.turned else (header.width, header.height)


def header_of(path: Path) -> Header | None:
    """Return what the header of an image file says; None if it has none that is known."""
    try:
        check_file(path, LARGEST)
        with path.open("rb") as file:
            header = read_header(file)
            if header is not None and header.kind == "PNG" and png_is_plain(file):
                header = header._replace(turned=False)
    except (OSError, InputError):
        return None
    return header
