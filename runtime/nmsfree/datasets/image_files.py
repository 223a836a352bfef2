"""The image files of a dataset's folders, and what lists call them."""

import unicodedata
from functools import lru_cache
from pathlib import Path

from nmsfree.errors import InputError
from nmsfree.images import LARGEST, read_image
from nmsfree.images.header import Header, read_header
from nmsfree.parsing import check_file
from nmsfree.streams.sources import IMAGE_SUFFIXES, find_images

# What stands among the images of datasets, and is read where it belongs to one.
BESIDE_IMAGES = frozenset((".txt", ".json", ".xml", ".csv", ".yaml", ".yml", ".cache", ".md"))
LONGEST_LIST = 256 << 20  # bytes of a list of images: some millions of paths
Size = tuple[int, int]  # width, height in pixels


def images_below(folder: Path) -> list[Path]:
    """Return all image files of a folder tree, sorted; one warning says what was left out."""
    return find_images(folder, BESIDE_IMAGES)


def images_in(folder: Path) -> list[Path]:
    """Return the image files of a folder alone, unordered, hidden ones left out."""
    paths = folder.iterdir() if folder.is_dir() else ()
    return [p for p in paths if p.suffix.lower() in IMAGE_SUFFIXES and p.name[0] != "."]


def on_disk(path: Path) -> Path:
    """Return the file that a list names, also where the disk has its name in another Unicode form.

    An é is one character or two (NFC, NFD); archives and file systems change between them.
    """
    if str(path).isascii() or path.exists():
        return path
    found = Path(path.anchor)
    for part in path.parts[len(found.parts) :]:
        exact = found / part
        if not part.isascii() and not exact.exists() and found.is_dir():
            names = _by_form(found, found.stat().st_mtime_ns)
            exact = found / names.get(nfc(part), part)
        found = exact
    return found


def nfc(name: str) -> str:
    """Return a name in the Unicode form by which names are compared."""
    return unicodedata.normalize("NFC", name)


@lru_cache(maxsize=256)
def _by_form(folder: Path, changed: int) -> dict[str, str]:
    """The names in a folder by their NFC; `changed`, its time, tells listings apart."""
    return {nfc(path.name): path.name for path in folder.iterdir()}


def image_size(path: Path) -> Size | None:
    """Return width and height after Exif rotation, decoding the image only if it must.

    None if it is missing or cannot be decoded; reading its pixels tells why.
    """
    try:
        return header_size(path) or read_image(path).shape[1::-1]
    except InputError:
        return None


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
            return read_header(file)
    except (OSError, InputError):
        return None
