"""Pictures in: files, their bytes, BGR and RGB arrays, Pillow images → BGR uint8 [h, w, 3].

A picture is turned as its Exif says and by nothing else (XMP is not asked), alpha is dropped, and
of samples of 16 bits the upper 8 are kept, whichever way it comes.
"""

import io
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from nmsfree.errors import InputError
from nmsfree.files import write_atomic
from nmsfree.images.header import Header, avif_is_turned, orientation_of, read_header
from nmsfree.parsing import check_size, read_bytes
from nmsfree.text import FilePath, as_path, shown

Color = Literal["bgr", "rgb"]
Reduction = Literal[1, 2, 4, 8]
Reduce = Callable[[int, int], Reduction]  # of the height and width of a file's picture
REDUCTIONS: tuple[Reduction, ...] = (8, 4, 2)

LARGEST = 1 << 30  # bytes of a file
MAX_PIXELS = 1 << 28  # 0.8 GB as BGR; the largest sensors of phones have 200 million
MOST_OF_A_BYTE = 1024  # pixels of a JPEG: a bit for each 8 × 8 of a grey one, which is 512, twice
_FLAGS = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
_PNG = b"\x89PNG\r\n\x1a\n"
_END = b"\xff\xd9"  # of a JPEG
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # none of these occurs within a scan
# What a JPEG decoder shows where its scan ends too early, in RGB or grey and in CMYK.
_UNDECODED = {(128, 128, 128), (65, 65, 65)}
# More of a scan, after a restart too, wherever one is still wanted; 255 would begin a marker.
_NOISE = np.random.default_rng(0).integers(0, 255, 512).astype(np.uint8).tobytes()
_MORE = b"".join(_NOISE + bytes((0xFF, 0xD0 + n)) for n in range(8))


def quiet_opencv() -> None:
    """Keep OpenCV's own chatter about unreadable files off the terminal, where we name them."""
    if hasattr(cv2, "setLogLevel"):  # OpenCV 4
        cv2.setLogLevel(0)
    else:
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def read_image(path: FilePath) -> NDArray[np.uint8]:
    """Read an image file as BGR uint8 [h, w, 3]; Exif rotation is applied, alpha is dropped.

    Of an animation or a file of several pages the first picture is read. A progressive JPEG that
    lacks its last scans is whole, though blurred.

    Raises:
        InputError: no path; the file is missing, no regular file, empty, cut, not an image that
            OpenCV can decode, or of more pixels than `MAX_PIXELS` (or the variable
            NMSFREE_MAX_PIXELS).
    """
    return read_reduced(as_path(path, "image"), 1)[0]


def read_reduced(
    path: str | Path, reduction: Reduction | Reduce
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Read an image file as `read_image` does, a JPEG at 1/reduction of its size, rounded up.

    Returns the picture, and the (height, width) of its file.
    """
    return decode_image(read_bytes(path, LARGEST), path, reduction)


def decode_image(
    data: bytes, where: object, reduction: Reduction | Reduce = 1
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Decode the bytes of an image file as `read_reduced` does; `where` begins messages."""
    if not data:
        raise InputError(f"{shown(where)}: empty file, expected an image")
    header = read_header(io.BytesIO(data))
    _check_claim(where, header, data)
    if header is None or header.kind != "JPEG" or header.turned is None:
        reduction = 1
    elif callable(reduction):
        sides = header.height, header.width
        reduction = reduction(*(sides[::-1] if header.turned else sides))
    if data.startswith(_PNG) and _is_cut_png(data):
        raise InputError(f"{shown(where)}: is cut, the rest of the PNG is missing: get it again")
    image = _decode(data, reduction)
    if data.startswith(b"\xff\xd8"):
        ended = data.endswith(_END) or _end_of_jpeg(data) is not None
        if not ended:
            data = data.rstrip(b"\0") if data.endswith(bytes(16)) else data  # space never filled
            image = _decode(data + _END, reduction)
        if image is not None and not (ended and _shows_its_end(image, 8 // reduction)):
            # This changes no complete scan; a last 255 would make a marker of what follows.
            scan = data[: _end_of_jpeg(data)].rstrip(b"\xff")
            more = _decode(scan + _MORE + _END, reduction)
            if more is None or not np.array_equal(image, more):
                raise InputError(
                    f"{shown(where)}: is cut, the rest of the JPEG is missing: get the file again"
                )
    if image is None:
        raise InputError(f"{shown(where)}: {_why_not(header)}")
    height, width = image.shape[:2]
    if header is not None and reduction > 1:
        height, width = header.height, header.width
        if header.turned:
            height, width = width, height
    return image, (height, width)


def _decode(data: bytes, reduction: Reduction) -> NDArray[np.uint8] | None:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), _FLAGS[reduction])
    except cv2.error:
        return None
    return None if image is None else np.asarray(image, dtype=np.uint8)


def _check_claim(where: object, header: Header | None, data: bytes) -> None:
    if header is None:
        return
    limit = max_pixels()
    if header.width * header.height > limit:
        raise InputError(
            f"{shown(where)}: {header.width} × {header.height} pixels, expected at most {limit:,} "
            "in all: reduce it, or set the variable NMSFREE_MAX_PIXELS"
        )
    if header.kind == "JPEG" and header.width * header.height > MOST_OF_A_BYTE * len(data):
        raise InputError(
            f"{shown(where)}: is cut, {len(data):,} bytes hold no JPEG of {header.width} × "
            f"{header.height} pixels: get the file again"
        )
    if header.kind == "AVIF" and avif_is_turned(data):
        raise InputError(
            f"{shown(where)}: an AVIF picture that is to be turned or mirrored, which OpenCV does "
            "not do: convert it to JPEG or PNG"
        )


def max_pixels() -> int:
    """Return the most pixels that are decoded."""
    text = os.environ.get("NMSFREE_MAX_PIXELS", "")
    if not text:
        return MAX_PIXELS
    if not re.fullmatch("[0-9]{1,18}", text):
        raise InputError(f"NMSFREE_MAX_PIXELS is {shown(text)!r}, expected a whole number")
    return int(text)


def _end_of_jpeg(data: bytes) -> int | None:
    """Return where the end marker of the first picture in a JPEG file begins; None if it lacks.

    Segments are skipped by their lengths: a thumbnail among them has an end marker, too.
    """
    position = 2
    while (found := _MARKER.search(data, position)) is not None:
        if data[found.start() + 1] == _END[1]:
            return found.start()
        position = found.end()
        position += int.from_bytes(data[position : position + 2], "big")
    return None


def _is_cut_png(data: bytes) -> bool:
    """Whether a chunk claims more bytes than there are, for which OpenCV would take memory."""
    position = len(_PNG)
    while position + 8 <= len(data):
        length, name = data[position : position + 4], data[position + 4 : position + 8]
        if name == b"IEND":
            return False
        position += 12 + int.from_bytes(length, "big")
    return position > len(data)


def _shows_its_end(image: NDArray[np.uint8], block: int) -> bool:
    """Whether every corner looks decoded; which of them comes last, Exif decides.

    `block` is the side in pixels of what a JPEG codes at once. The last ones are cut off by the
    edges; colours of the one before run into their first pixels.
    """
    height, width = (max((side - 1) % block, 1) for side in image.shape[:2])
    return not any(
        tuple(image[y, x].tolist()) in _UNDECODED and (corner == image[y, x]).all()
        for y, rows in ((0, slice(height)), (-1, slice(-height, None)))
        for x, columns in ((0, slice(width)), (-1, slice(-width, None)))
        for corner in (image[rows, columns],)
    )


def _why_not(header: Header | None) -> str:
    if header is None:
        return "not an image that can be decoded (corrupt, or no format that is known)"
    sort = f"a {header.kind} of {header.width} × {header.height} pixels"
    if " of " in header.kind:
        return f"{sort}, which OpenCV does not read: convert it to 8 bits a sample"
    return f"{sort} that cannot be decoded (damaged or of a rare kind): get or convert it again"


def as_bgr(image: Any, color: Color = "bgr") -> NDArray[np.uint8]:
    """Check what the caller gave and return it as BGR uint8 [h, w, 3], C-contiguous if converted.

    Args:
        image: a path; an image file's content as bytes, or open for reading; an array uint8
            [h, w, 3]; or a Pillow image (needs color="rgb"), which is turned as its Exif says: who
            has turned its pixels removes that entry.
        color: channel order of an array.

    Raises:
        InputError: anything else, with what was found and what to do.
    """
    if not isinstance(color, str) or color not in ("bgr", "rgb"):
        raise InputError(f"color is {color!r}, expected 'bgr' or 'rgb'")
    if isinstance(image, str | os.PathLike):
        return read_image(image)
    if hasattr(image, "getexif") and hasattr(image, "convert"):
        return _from_pillow(image, color)
    if hasattr(image, "read"):
        image = image.read(LARGEST + 1)
    if isinstance(image, bytes | bytearray | memoryview):
        check_size(memoryview(image).nbytes, LARGEST, "image", InputError)
        return decode_image(bytes(image), "image", 1)[0]
    if not isinstance(image, np.ndarray):
        raise InputError(
            f"image is {type(image).__name__}, expected a path, bytes, a binary file, a uint8 array"
            " [h, w, 3] or a Pillow image"
        )
    _check_array(image)
    return image if color == "bgr" else np.ascontiguousarray(image[:, :, ::-1])


def _from_pillow(image: Any, color: Color) -> NDArray[np.uint8]:
    if color != "rgb":
        raise InputError("a Pillow image is RGB, but color is 'bgr': pass color='rgb'")
    if image.width * image.height > (limit := max_pixels()):
        raise InputError(
            f"Pillow image has {image.width} × {image.height} pixels, expected at most {limit:,} "
            "in all: reduce it, or set the variable NMSFREE_MAX_PIXELS"
        )
    # What Pillow widens to mode I from formats of 16 bits.
    deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if image.mode in ("I", "F") and not deep:
        raise InputError(
            f"Pillow image has mode {image.mode}, samples of 32 bits and unknown range: scale them "
            "to 0 … 255 and convert it to mode L"
        )
    try:
        if deep:
            grey = (np.asarray(image) >> 8).astype(np.uint8)
            rgb = np.repeat(grey[:, :, None], 3, axis=2)
        else:
            rgb = np.asarray(image.convert("RGB"), dtype=np.uint8)
    except (OSError, SyntaxError, ValueError) as error:  # Pillow reads the file only now
        raise InputError(f"Pillow image cannot be read ({shown(error)})") from None
    if rgb.size == 0:
        raise InputError(f"image is empty ({image.height} × {image.width})")
    return np.ascontiguousarray(_upright(rgb, image)[:, :, ::-1])


def _upright(pixels: NDArray[np.uint8], image: Any) -> NDArray[np.uint8]:
    """Turn pixels [h, w, 3] as the Exif of a Pillow image says (Pillow itself asks XMP as well)."""
    try:
        orientation = orientation_of(image.info.get("exif", b"").removeprefix(b"Exif\0\0"))
    except (ValueError, struct.error):
        return pixels
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _check_array(image: NDArray[Any]) -> None:
    shape = " × ".join(map(str, image.shape)) or "a scalar"
    if image.dtype != np.uint8:
        problem = (
            f"has dtype {image.dtype}, expected uint8 with values 0 … 255: scale and convert it "
            "with .astype(numpy.uint8)"
        )
    elif image.ndim in (2, 3) and image.shape[2:] in ((), (4,)):
        is_grey = image.ndim == 2
        what, how = ("is grey", "GRAY2BGR") if is_grey else ("has four channels", "BGRA2BGR")
        problem = (
            f"{what} ({shape}), expected BGR [h, w, 3]: convert it with "
            f"cv2.cvtColor(image, cv2.COLOR_{how})"
        )
    elif image.ndim != 3:
        problem = f"has shape {shape}, expected [h, w, 3]: use Detector.batch for several images"
    elif image.shape[2] != 3:
        hint = ": it looks like [3, h, w], transpose it" if image.shape[0] == 3 else ""
        problem = f"has shape {shape}, expected [h, w, 3]{hint}"
    elif image.size == 0:
        problem = f"is empty ({shape})"
    else:
        return
    raise InputError(f"image {problem}")


def write_picture(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write a BGR uint8 [h, w, 3] picture in the format of the suffix; the disk is not waited for.

    InputError if it cannot be encoded or written.
    """
    write_atomic(path, encode_picture(path, picture), sync=False)


def encode_picture(path: Path, picture: NDArray[np.uint8]) -> bytes:
    """Return the content of a picture file in the format of its suffix; arguments as above.

    InputError if it cannot be encoded.
    """
    try:
        encoded, data = cv2.imencode(path.suffix, picture)
    except cv2.error:
        encoded = False
    if not encoded:
        height, width = picture.shape[:2]
        raise InputError(
            f"{shown(path)}: {height} × {width} pixels cannot be encoded as {path.suffix}"
        )
    return data.tobytes()
