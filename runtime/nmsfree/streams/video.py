"""Frames of video files, decoded by PyAV (the extra `video`) or else by OpenCV."""

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from nmsfree.errors import InputError
from nmsfree.files import plain_name
from nmsfree.text import shown

logger = logging.getLogger(__name__)

FALLBACK_FPS = 25.0  # for cameras and files that do not say
COUNT_TOLERANCE = 0.05  # a container's frame count is often an estimate from its duration
Image = NDArray[np.uint8]


class Encoded(NamedTuple):
    """A frame that is not yet a picture: `load` makes it one, BGR uint8 [h, w, 3]."""

    load: Callable[[], Image]
    time: float  # seconds after the first frame


@lru_cache(maxsize=1)
def has_pyav() -> bool:
    """Whether PyAV is there; if not, a warning says what is lost."""
    if find_spec("av") is None:
        logger.warning(
            "PyAV is not installed: OpenCV reads and writes videos, in MPEG-4 part 2, which "
            'browsers do not play: pip install "nmsfree[video]"'
        )
        return False
    import av.logging

    av.logging.set_level(av.logging.PANIC)  # what cannot be decoded is said by us
    return True


class Video:
    """Frames of a video file; iterate over it inside `with`.

    InputError if it cannot be opened, or holds no frame that can be decoded.
    """

    def __init__(self, path: Path) -> None:
        self._name = shown(path)
        if path.exists() and not path.is_file():
            raise InputError(f"{self._name}: is a pipe or device, expected a regular file")
        with plain_name(path) as name:
            opened = _open_with_pyav(name) if has_pyav() else _open_with_opencv(name)
        if opened is None:
            raise InputError(
                f"{self._name}: not a video that can be decoded (corrupt or unknown format)"
            )
        self._frames, self.close, rate, count = opened
        self.fps = rate if 0 < rate <= 1000 else FALLBACK_FPS
        self.frame_count = count if count > 0 else None  # None: the file does not say

    def __iter__(self) -> Iterator[Encoded]:
        """Yield the frames, rotated as the file says.

        InputError after the last one, if there was none or clearly fewer than announced.
        """
        done = 0
        for load, time in self._frames:
            yield Encoded(load, done / self.fps if time is None else time)
            done += 1
        if done == 0:
            raise InputError(f"{self._name}: no frame can be read")
        if self.frame_count and done < self.frame_count * (1 - COUNT_TOLERANCE) - 1:
            raise InputError(
                f"{self._name}: ends after {done} of {self.frame_count} frames (truncated?)"
            )

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# How to make the next pictures and when they are shown, how to close, frames a second, how many.
_Opened = tuple[
    Iterator[tuple[Callable[[], Image], float | None]], Callable[[], object], float, int
]


def _open_with_opencv(name: str) -> _Opened | None:
    capture = cv2.VideoCapture(name)
    if not capture.isOpened():
        return None

    def frames() -> Iterator[tuple[Callable[[], Image], float | None]]:
        while (frame := capture.read()[1]) is not None:
            yield partial(np.asarray, frame, np.uint8), None

    rate, count = (capture.get(p) for p in (cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT))
    return frames(), capture.release, float(rate), int(count)


def _open_with_pyav(name: str) -> _Opened | None:
    import av
    from av.error import FFmpegError

    try:
        # What a file names (playlists do) may be files only.
        container = av.open(f"file:{name}", options={"protocol_whitelist": "file"})
    except (FFmpegError, OSError, ValueError):
        return None
    if not container.streams.video:
        container.close()
        return None
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"  # several frames at once
    rate = float(stream.average_rate or FALLBACK_FPS)
    count = stream.frames or round((container.duration or 0) / av.time_base * rate)
    return _timed(frames_of(container, stream)), container.close, rate, count


def _timed(frames: Iterator[Any]) -> Iterator[tuple[Callable[[], Image], float | None]]:
    from av.error import FFmpegError

    first: float | None = None
    with suppress(FFmpegError):  # how many are missing then is counted
        for frame in frames:
            first = frame.time if first is None else first
            time = None if frame.time is None or first is None else frame.time - first
            yield partial(picture_of, frame), time


def frames_of(container: Any, stream: Any) -> Iterator[Any]:
    """Yield PyAV's frames of a stream; one that is damaged is passed over, as players do.

    FFmpegError if nothing more can be read.
    """
    from av.error import FFmpegError

    for packet in container.demux(stream):
        with suppress(FFmpegError):
            yield from packet.decode()


def picture_of(frame: Any) -> Image:
    """Make a picture of a frame of PyAV's, BGR uint8 [h, w, 3], turned as it is to be shown."""
    picture: Image = frame.to_ndarray(format="bgr24")
    turns = round(frame.rotation / 90) % 4  # to the left
    return np.ascontiguousarray(np.rot90(picture, turns)) if turns else picture
