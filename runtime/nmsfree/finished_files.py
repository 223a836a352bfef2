"""Files that appear under their name only when they are complete."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from nmsfree.atomic import write_atomic
from nmsfree.errors import InputError


def cannot_write(path: Path, error: OSError) -> InputError:
    """Say that the operating system refused a path."""
    return InputError(f"{path}: cannot be written ({error.strerror or error})")


def _part(path: Path) -> Path:
    """Name of an unfinished file; the suffix stays, encoders choose the format by it."""
    return path.with_name(f".{path.stem}.part{path.suffix}")


class LinesFile:
    """A text file of lines that appears under its name when it is finished."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = _part(path).open("w", encoding="utf-8", newline="\n")
        except OSError as error:
            raise cannot_write(path, error) from None

    def write(self, line: str) -> None:
        try:
            self._stream.write(line + "\n")
        except OSError as error:
            raise cannot_write(self._path, error) from None

    def finish(self) -> None:
        try:
            self._stream.close()
            _part(self._path).replace(self._path)
        except OSError as error:
            raise cannot_write(self._path, error) from None


class VideoFile:
    """An mp4 video (MPEG-4 part 2) that appears under its name when it is finished."""

    def __init__(self, path: Path, fps: float, height: int, width: int) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(path, error) from None
        codec = cv2.VideoWriter.fourcc(*"mp4v")
        self._writer = cv2.VideoWriter(str(_part(path)), codec, fps, (width, height))
        if not self._writer.isOpened():
            raise InputError(f"{path}: cannot be written (OpenCV opened no mp4 encoder here)")

    def write(self, picture: NDArray[np.uint8]) -> None:
        """Add a frame, BGR uint8 [height, width, 3] of the size given at the start."""
        self._writer.write(picture)

    def finish(self) -> None:
        try:
            self._writer.release()
            _part(self._path).replace(self._path)
        except OSError as error:
            raise cannot_write(self._path, error) from None


def write_picture(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write a BGR uint8 [h, w, 3] picture in the format of the suffix.

    Raises:
        InputError: it cannot be encoded or written.
    """
    try:
        encoded, data = cv2.imencode(path.suffix, picture)
    except cv2.error:
        encoded = False
    if not encoded:
        height, width = picture.shape[:2]
        raise InputError(f"{path}: {height} × {width} pixels cannot be encoded as {path.suffix}")
    try:
        write_atomic(path, data.tobytes())
    except OSError as error:
        raise cannot_write(path, error) from None
