"""What a picture's header claims: its kind, and how many pixels decoding it would make.

Own code, as no small library does it: `imagesize` knows neither Netpbm's PFM, PAM, Radiance nor
Sun raster, which OpenCV decodes, nor Exif, and Pillow is no dependency of the runtime.
Layouts: PNG specification (W3C) section 11.2, JPEG ITU-T T.81 annex B, Exif 2.3 (TIFF 6.0
entries), BigTIFF, Microsoft's BITMAPINFOHEADER, WebP (RFC 9649), GIF89a, JPEG 2000 (T.800 annexes
A and I), HEIF (ISO/IEC 23008-12: ispe, irot, imir), Netpbm, Radiance, Sun raster.
"""

import re
import struct
from typing import BinaryIO, NamedTuple

ORIENTATION = 0x0112  # Exif tag; values 5 … 8 exchange width and height
START = 1 << 16  # bytes in which the boxes of JPEG 2000 and AVIF are looked for
# Frame headers of JPEG: SOF0 … SOF15 without DHT (C4), JPG (C8) and DAC (CC).
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_STANDALONE = frozenset(range(0xD0, 0xD9)) | {0x01}  # markers without a length
_END_OF_IMAGE, _START_OF_SCAN, _APP1 = 0xD9, 0xDA, 0xE1
_NUMBERS = {1: "B", 3: "H", 4: "I", 16: "Q"}  # field types of TIFF that hold unsigned integers
_WIDTH, _HEIGHT, _BITS, _FORMAT = 256, 257, 258, 339  # tags of TIFF
_SAMPLES = {2: "signed integers", 3: "floats", 6: "complex floats"}  # TIFF's SampleFormat
_TEXT_SIZES = (  # groups: width and height
    ("Netpbm", re.compile(rb"P[1-6Ff]\s(?:\s|#.*\n)*(?P<w>\d+)\s+(?:#.*\n)*(?P<h>\d+)")),
    ("PAM", re.compile(rb"P7\n(?:.*\n)*?WIDTH\s+(?P<w>\d+)\s(?:.*\n)*?HEIGHT\s+(?P<h>\d+)")),
    ("PAM", re.compile(rb"P7\n(?:.*\n)*?HEIGHT\s+(?P<h>\d+)\s(?:.*\n)*?WIDTH\s+(?P<w>\d+)")),
    ("Radiance", re.compile(rb"#\?(?:.*\n)*?[-+][YX] (?P<h>\d+) [-+][XY] (?P<w>\d+)")),
)


class Header(NamedTuple):
    """What a header says."""

    kind: str  # format, with the sort of its samples where that is unusual
    width: int  # width, height: in pixels as stored, before any rotation
    height: int
    turned: bool | None = None  # whether width and height are to be exchanged; None: decoding tells


def read_header(file: BinaryIO) -> Header | None:
    """Read the header of a picture; None if it is cut, malformed or of a kind unknown here."""
    try:
        start = file.read(32)
        file.seek(0)
        header = _read(file, start)
    except (OSError, struct.error, ValueError):  # ends too early, or is no such file
        return None
    return header if header is not None and min(header.width, header.height) > 0 else None


def avif_is_turned(data: bytes) -> bool:
    """Whether an AVIF file asks to be turned or mirrored."""
    boxes = data[:START].partition(b"mdat")[0]
    return data[4:8] == b"ftyp" and re.search(rb"irot[\1-\3]|imir[\0\1]", boxes) is not None


def orientation_of(tiff: bytes) -> int:
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


def _read(file: BinaryIO, start: bytes) -> Header | None:
    if start.startswith(b"\x89PNG\r\n\x1a\n") and start[12:16] == b"IHDR":
        width, height = struct.unpack_from(">II", start, 16)
        return Header("PNG", width, height, _png_is_turned(file))
    if start.startswith(b"\xff\xd8"):
        return _jpeg(file)
    if start.startswith(b"BM"):
        is_os2 = struct.unpack_from("<I", start, 14)[0] == 12
        width, height = struct.unpack_from("<HH" if is_os2 else "<ii", start, 18)
        return Header("BMP", width, abs(height), False)  # negative: stored from the top
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return _webp(start)
    if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _tiff(file)
    if start[:4] == b"GIF8":
        return Header("GIF", *struct.unpack_from("<HH", start, 6))
    if start[:4] == b"\x59\xa6\x6a\x95":
        return Header("Sun raster", *struct.unpack_from(">II", start, 4))
    if start.startswith(b"\xff\x4f\xff\x51"):
        return Header("JPEG 2000", *struct.unpack_from(">II", start, 8))
    if start[4:8] in (b"ftyp", b"jP  "):
        return _boxes(file.read(START))
    text = file.read(4096)
    found = ((kind, pattern.match(text)) for kind, pattern in _TEXT_SIZES)
    sizes = (Header(kind, int(m["w"][:10]), int(m["h"][:10])) for kind, m in found if m)
    return next(sizes, None)


def _png_is_turned(file: BinaryIO) -> bool | None:
    """False, or None with Exif or an animation, where only decoding tells."""
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind in (b"eXIf", b"acTL"):
            return None
        if kind == b"IEND":
            break
        file.seek(length + 4, 1)  # 4: checksum
    return False


def _webp(start: bytes) -> Header | None:
    kind = start[12:16]
    if len(start) < 30:
        return None
    if kind == b"VP8 " and start[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", start, 26)
        return Header("WebP", width & 0x3FFF, height & 0x3FFF, False)
    if kind == b"VP8L" and start[20] == 0x2F:
        bits = struct.unpack_from("<I", start, 21)[0]
        return Header("WebP", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, False)
    if kind == b"VP8X":
        width, height = (int.from_bytes(start[i : i + 3], "little") + 1 for i in (24, 27))
        turned = None if start[20] & 0b1010 else False  # flags: Exif, animated
        return Header("WebP", width, height, turned)
    return None


def _tiff(file: BinaryIO) -> Header | None:
    start = file.read(16)
    order = "<" if start[:2] == b"II" else ">"
    big = 43 in (start[2], start[3])
    file.seek(struct.unpack_from(order + ("8xQ" if big else "4xI"), start)[0])
    (count,) = struct.unpack(order + ("Q" if big else "H"), file.read(8 if big else 2))
    length = 20 if big else 12
    entries = file.read(min(count, 4096) * length)
    found: dict[int, int] = {}
    for at in range(0, len(entries), length):
        tag, kind, values = struct.unpack_from(order + ("HHQ" if big else "HHI"), entries, at)
        if tag in (_WIDTH, _HEIGHT, _BITS, _FORMAT) and kind in _NUMBERS:
            number = order + _NUMBERS[kind]
            inline = entries[at + (12 if big else 8) : at + length]
            if values * struct.calcsize(number) > len(inline):
                file.seek(struct.unpack(order + ("Q" if big else "I"), inline)[0])
                inline = file.read(8)
            found[tag] = struct.unpack_from(number, inline)[0]
    bits, samples = found.get(_BITS, 1), _SAMPLES.get(found.get(_FORMAT, 1), "integers")
    sort = f" of {bits}-bit {samples}" if bits > 16 or samples != "integers" else ""
    return Header(f"TIFF{sort}", found.get(_WIDTH, 0), found.get(_HEIGHT, 0))


def _boxes(start: bytes) -> Header | None:
    """JPEG 2000 and AVIF: the largest picture or tile that a box claims."""
    if start[4:8] == b"jP  ":
        at = start.find(b"ihdr")
        height, width = struct.unpack_from(">II", start, at + 4)
        return Header("JPEG 2000", width, height) if at > 0 else None
    sizes = [struct.unpack_from(">II", start, m.end() + 4) for m in re.finditer(b"ispe", start)]
    return Header("AVIF", *max(sizes, key=lambda size: size[0] * size[1])) if sizes else None


def _jpeg(file: BinaryIO) -> Header | None:
    file.seek(2)
    turned: bool | None = False
    while file.read(1) == b"\xff":
        while (code := file.read(1)) == b"\xff":  # fill bytes
            pass
        marker = int.from_bytes(code)
        if marker in _STANDALONE:
            continue
        if not code or marker in (_END_OF_IMAGE, _START_OF_SCAN):
            return None
        length = struct.unpack(">H", file.read(2))[0] - 2
        if marker in _FRAMES:
            height, width = struct.unpack(">xHH", file.read(5))
            return Header("JPEG", width, height, turned)
        data = file.read(length)
        if marker == _APP1 and data.startswith(b"Exif\0\0"):
            try:
                turned = orientation_of(data[6:]) >= 5
            except (ValueError, struct.error):
                turned = None
    return None
