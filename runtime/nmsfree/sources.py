"""What `nmsfree detect` reads: image files, folders, globs, videos and cameras, one at a time."""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from nmsfree.errors import InputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".ts")
FALLBACK_FPS = 25.0  # for cameras and files that do not say
COUNT_TOLERANCE = 0.05  # a container's frame count is often an estimate from its duration


@dataclass(frozen=True)
class Source:
    """One thing to look at.

    Attributes:
        kind: what it is.
        name: as it is reported: the path as the user wrote it, or the camera's index.
        root: folder below which it was found; None for a camera.
    """

    kind: Literal["image", "video", "camera"]
    name: str
    root: Path | None = None


def expand(arguments: Sequence[str]) -> tuple[list[Source], list[str]]:
    """Turn what the user wrote into sources, in that order and each once.

    A folder gives the images below it, sorted, hidden ones left out; a pattern (`*`, `?`, `[…]`,
    `**`) is expanded here if the shell did not; a whole number that is no file is a camera.

    Returns:
        The sources, and one line for every argument that leads to none.
    """
    sources: list[Source] = []
    problems: list[str] = []
    seen: set[str] = set()
    for argument in arguments:
        found = _find(argument)
        if not found:
            problems.append(_explain(argument))
        for source in found:
            identity = source.name if source.kind == "camera" else os.path.realpath(source.name)
            if identity not in seen:
                seen.add(identity)
                sources.append(source)
    return sources, problems


def _find(argument: str) -> list[Source]:
    path = Path(argument)
    if path.is_dir():
        return _in_folder(path)
    if path.exists():
        return [_file(path)]
    if argument.isdecimal():
        return [Source("camera", argument)]
    found: list[Source] = []
    if glob.has_magic(argument):
        for name in sorted(glob.glob(argument, recursive=True)):  # noqa: PTH207 (absolute ones too)
            matched = Path(name)
            if matched.is_dir():
                continue  # `a/**` names every folder beside the files in it
            if matched.suffix.lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES:
                found.append(_file(matched))
    return found


def _explain(argument: str) -> str:
    if Path(argument).is_dir():
        return f"{argument}: no image in this folder ({' '.join(IMAGE_SUFFIXES)})"
    if glob.has_magic(argument):
        return f"{argument}: no image or video matches this pattern"
    return f"{argument}: no such file, expected an image, video, folder, pattern or camera index"


def _file(path: Path) -> Source:
    """A file named by the user: a video by its suffix, else an image, whatever it is called."""
    kind: Literal["image", "video"] = "video" if path.suffix.lower() in VIDEO_SUFFIXES else "image"
    return Source(kind, str(path), path.parent)


def _in_folder(folder: Path) -> list[Source]:
    paths: list[Path] = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths += [
            Path(parent, name)
            for name in files
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES
        ]
    return [Source("image", str(path), folder) for path in sorted(paths)]


class Video:
    """Frames of a video file or camera; iterate over it inside `with`.

    Args:
        source: a video or camera; a camera is opened here and nowhere else.

    Attributes:
        fps: frames per second, for the file that is written.
        frame_count: frames to expect; None for a camera or a file that does not say.

    Raises:
        InputError: it cannot be opened, or holds no frame that can be decoded.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        camera = source.kind == "camera"
        self._capture = cv2.VideoCapture(int(source.name) if camera else source.name)
        if not self._capture.isOpened():
            raise InputError(
                f"camera {source.name}: cannot be opened (absent, busy or not permitted)"
                if camera
                else f"{source.name}: not a video that can be decoded (corrupt or unknown format)"
            )
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = float(fps) if 0 < fps <= 1000 else FALLBACK_FPS
        count = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.frame_count = count if count > 0 and not camera else None

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """Yield BGR uint8 [h, w, 3] frames, rotated as the file says.

        Raises:
            InputError: after the last frame, if there was none or clearly fewer than announced.
        """
        done = 0
        while True:
            read, frame = self._capture.read()
            if not read:
                break
            done += 1
            yield np.asarray(frame, dtype=np.uint8)
        self._check_complete(done)

    def _check_complete(self, done: int) -> None:
        if done == 0:
            raise InputError(f"{self._source.name}: no frame can be read")
        if self.frame_count and done < self.frame_count * (1 - COUNT_TOLERANCE) - 1:
            raise InputError(
                f"{self._source.name}: ends after {done} of {self.frame_count} frames (truncated?)"
            )

    def close(self) -> None:
        """Free the decoder or camera."""
        self._capture.release()

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
