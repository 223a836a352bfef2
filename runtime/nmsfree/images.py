"""Pictures in: files, BGR and RGB arrays, Pillow images → BGR uint8 [h, w, 3]."""

from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from nmsfree.errors import InputError

Color = Literal["bgr", "rgb"]


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """Read an image file as BGR uint8 [h, w, 3]; EXIF rotation is applied, alpha is dropped.

    Raises:
        InputError: the file is missing, empty, or not an image OpenCV can decode.
    """
    path = Path(path)
    try:
        data = np.fromfile(path, dtype=np.uint8)  # cv2.imread fails on some Windows paths
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    if data.size == 0:
        raise InputError(f"{path}: empty file, expected an image")
    try:
        image = None if _is_cut_jpeg(data) else cv2.imdecode(data, cv2.IMREAD_COLOR)
    except cv2.error:
        image = None
    if image is None:
        raise InputError(f"{path}: not an image that can be decoded (corrupt, cut or unknown)")
    return np.asarray(image, dtype=np.uint8)


def _is_cut_jpeg(data: NDArray[np.uint8]) -> bool:
    """Whether a JPEG lacks its end marker: OpenCV 4 gives such a file back half grey.

    Segments before the scan are skipped by their lengths (a thumbnail among them ends with the
    marker too); inside the scan the marker's bytes cannot occur.
    """
    if data[:2].tobytes() != b"\xff\xd8":
        return False
    position = 2
    while position + 4 <= data.size and data[position] == 0xFF:
        if data[position + 1] == 0xFF:  # fill byte
            position += 1
            continue
        if data[position + 1] == 0xDA:  # start of scan
            return data[position:].tobytes().rfind(b"\xff\xd9") < 0
        position += 2 + 256 * int(data[position + 2]) + int(data[position + 3])
    return False  # not a plain sequence of segments: the decoder decides


def as_bgr(image: Any, color: Color = "bgr") -> NDArray[np.uint8]:
    """Check what the caller gave and return it as BGR uint8 [h, w, 3], C-contiguous if converted.

    Args:
        image: a path; an array uint8 [h, w, 3]; or a Pillow image (needs color="rgb").
        color: channel order of an array.

    Raises:
        InputError: anything else, with what was found and what to do.
    """
    if color not in ("bgr", "rgb"):
        raise InputError(f"color is {color!r}, expected 'bgr' or 'rgb'")
    if isinstance(image, str | Path):
        return read_image(image)
    if hasattr(image, "getexif") and hasattr(image, "convert"):
        return _from_pillow(image, color)
    if not isinstance(image, np.ndarray):
        raise InputError(
            f"image is {type(image).__name__}, expected a path, a uint8 array [h, w, 3] "
            "or a Pillow image"
        )
    _check_array(image)
    return image if color == "bgr" else np.ascontiguousarray(image[:, :, ::-1])


def _from_pillow(image: Any, color: Color) -> NDArray[np.uint8]:
    if color != "rgb":
        raise InputError("a Pillow image is RGB, but color is 'bgr': pass color='rgb'")
    try:
        rgb = np.asarray(image.convert("RGB"), dtype=np.uint8)
    except (OSError, ValueError) as error:  # Pillow reads the file only now
        raise InputError(f"Pillow image cannot be read ({error})") from None
    if rgb.size == 0:
        raise InputError(f"image is empty ({image.height} × {image.width})")
    return np.ascontiguousarray(rgb[:, :, ::-1])


def _check_array(image: NDArray[Any]) -> None:
    shape = " × ".join(map(str, image.shape)) or "a scalar"
    if image.dtype != np.uint8:
        raise InputError(
            f"image has dtype {image.dtype}, expected uint8 with values 0 … 255: "
            "scale and convert it with .astype(numpy.uint8)"
        )
    if image.ndim == 2:
        raise InputError(
            f"image is grey ({shape}), expected [h, w, 3]: "
            "convert it with cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)"
        )
    if image.ndim != 3:
        raise InputError(
            f"image has shape {shape}, expected [h, w, 3]: use Detector.batch for several images"
        )
    if image.shape[2] == 4:
        raise InputError(
            f"image has four channels ({shape}), expected BGR [h, w, 3]: "
            "convert it with cv2.cvtColor(image, cv2.COLOR_BGRA2BGR)"
        )
    if image.shape[2] != 3:
        hint = ": it looks like [3, h, w], transpose it" if image.shape[0] == 3 else ""
        raise InputError(f"image has shape {shape}, expected [h, w, 3]{hint}")
    if image.size == 0:
        raise InputError(f"image is empty ({shape})")
