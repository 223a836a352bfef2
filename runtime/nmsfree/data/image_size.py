"""Width and height of an image file from its header, as `nmsfree.images.read_image` gives it."""

from pathlib import Path

from nmsfree.decode import check_file
from nmsfree.errors import InputError
from nmsfree.image_header import png_is_plain, read_header
from nmsfree.images import MAX_FILE, read_image

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
    try:
        check_file(path, MAX_FILE)
        with path.open("rb") as file:
            header = read_header(file)
            if header is None:
                return None
            turned = header.turned
            if header.kind == "PNG" and png_is_plain(file):
                turned = False
    except (OSError, InputError):
        return None
    if turned is None:
        return None
    return (header.height, header.width) if turned else (header.width, header.height)
