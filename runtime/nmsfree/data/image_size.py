"""Width and height of an image file from its header, as `nmsfree.images.read_image` gives it.

PNG, JPEG, BMP and WebP headers are read here; everything else, and whatever is unusual, is
decoded. Layouts: PNG specification (W3C) section 11.2, JPEG ITU-T T.81 annex B, Exif 2.3 (TIFF
6.0 entries), Microsoft's BITMAPINFOHEADER, and the WebP container specification (RFC 9649).
"""

import struct
from pathlib import Path
from typing import BinaryIO

from nmsfree.images import read_image

Size = tuple[int, int]  # width, height in pixels

ORIENTATION = 0x0112  # Exif tag; values 5 … 8 exchange width and height
# Frame headers of JPEG: SOF0 … SOF15 without DHT (C4), JPG (C8) and DAC (CC).
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_STANDALONE = frozenset(range(0xD0, 0xD9)) | {0x01}  # markers without a length
_END_OF_IMAGE, _START_OF_SCAN, _APP1 = 0xD9, 0xDA, 0xE1


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
        with path.open("rb") as file:
            start = file.read(32)
            file.seek(0)
            size = _read(file, start)
    except (OSError, struct.error, ValueError):  # ends too early, or is no such file
        return None
    return size if size is not None and min(size) > 0 else None


def _read(file: BinaryIO, start: bytes) -> Size | None:
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(file)
    if start.startswith(b"\xff\xd8"):
        return _jpeg(file)
    if start.startswith(b"BM"):
        return _bmp(start)
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return _webp(start)
    return None


def _png(file: BinaryIO) -> Size | None:
    file.seek(8)
    size: Size | None = None
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IHDR":
            width, height = struct.unpack(">II", file.read(8))
            size = (width, height)
            file.seek(length - 8 + 4, 1)
        elif kind in (b"eXIf", b"acTL"):  # rotated or animated: the decoder decides
            return None
        elif kind == b"IEND":
            return size
        else:
            file.seek(length + 4, 1)  # 4: checksum
    return size  # cut off; reading its pixels will tell


def _bmp(start: bytes) -> Size | None:
    header_length = struct.unpack_from("<I", start, 14)[0]
    if header_length < 40:  # the OS/2 header of 12 bytes has another layout
        return None
    width, height = struct.unpack_from("<ii", start, 18)
    return width, abs(height)  # negative: stored from the top


def _webp(start: bytes) -> Size | None:
    kind = start[12:16]
    if len(start) < 30:
        return None
    if kind == b"VP8 " and start[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", start, 26)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L" and start[20] == 0x2F:
        bits = struct.unpack_from("<I", start, 21)[0]
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8X" and not start[20] & 0b1010:  # neither Exif nor animated
        width, height = (int.from_bytes(start[i : i + 3], "little") + 1 for i in (24, 27))
        return width, height
    return None


def _jpeg(file: BinaryIO) -> Size | None:
    file.seek(2)
    orientation = 1
    while (marker := _next_marker(file)) is not None:
        if marker in _STANDALONE:
            continue
        if marker in (_END_OF_IMAGE, _START_OF_SCAN):
            return None
        length = struct.unpack(">H", file.read(2))[0] - 2
        if marker in _FRAMES:
            height, width = struct.unpack(">xHH", file.read(5))
            return (height, width) if orientation >= 5 else (width, height)
        data = file.read(length)
        if marker == _APP1 and data.startswith(b"Exif\0\0"):
            orientation = _orientation(data[6:])
    return None


def _next_marker(file: BinaryIO) -> int | None:
    """Return the code of the marker that begins here, fill bytes skipped; None if none does."""
    if file.read(1) != b"\xff":
        return None
    while (code := file.read(1)) == b"\xff":
        pass
    return code[0] if code else None


def _orientation(tiff: bytes) -> int:
    """Return the orientation 1 … 8 in the first directory of Exif data; 1 if it has none.

    Raises:
        ValueError, struct.error: not such data.
    """
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        raise ValueError("unknown byte order")
    offset = struct.unpack_from(order + "I", tiff, 4)[0]
    count = struct.unpack_from(order + "H", tiff, offset)[0]
    for entry in range(offset + 2, offset + 2 + 12 * count, 12):
        tag, kind = struct.unpack_from(order + "HH", tiff, entry)
        if tag == ORIENTATION:
            value: int = struct.unpack_from(order + "H", tiff, entry + 8)[0]
            if kind != 3 or not 1 <= value <= 8:  # 3: unsigned short
                raise ValueError("unusual orientation")
            return value
    return 1
