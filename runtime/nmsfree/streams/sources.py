"""What `nmsfree detect` reads: image files, folders, globs, videos and cameras, one at a time.

The walk over a folder is the one of datasets, too.
"""

import glob
import logging
import os
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from nmsfree.errors import InputError
from nmsfree.files import plain_name
from nmsfree.text import as_path, shown

logger = logging.getLogger(__name__)

WRITTEN_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
IMAGE_SUFFIXES = (
    *WRITTEN_SUFFIXES,
    *(".jpe", ".jfif", ".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif"),
)
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".ts")
CAMERA_DIGITS = 4  # of its index
FALLBACK_FPS = 25.0  # for cameras and files that do not say
NAMED = 3  # files in a line about those that were left out
COUNT_TOLERANCE = 0.05  # a container's frame count is often an estimate from its duration


@dataclass(frozen=True)
class Source:
    """One thing to look at."""

    kind: Literal["image", "video", "camera"]  # what it is
    name: str  # as it is reported: the path as the user wrote it, or the camera's index
    root: Path | None = None  # folder below which it was found; None for a camera


def find_images(folder: Path, passed: Iterable[str] = ()) -> list[Path]:
    """Return the image files of a folder tree, sorted; one warning says what was left out and why.

    Links to folders are followed, each folder once. Left out are hidden files and folders, files
    with another suffix (not worth a word if it is in `passed`), pipes and devices, and folders
    that cannot be read. A folder that is missing holds nothing.
    """
    found: list[Path] = []
    left_out: dict[str, list[str]] = defaultdict(list)
    known = frozenset(passed)
    seen: set[tuple[int, int]] = set()
    folders, linked = deque([folder]), deque[Path]()
    while folders or linked:  # links last: a folder is found under its own name
        place = (folders or linked).popleft()
        try:
            about = place.stat()
            if (about.st_dev, about.st_ino) in seen:
                left_out["linked twice or in a circle"].append(_below(place, folder))
                continue
            seen.add((about.st_dev, about.st_ino))
            with os.scandir(place) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            if place != folder or not isinstance(error, FileNotFoundError):
                left_out[f"not to be read ({error.strerror})"].append(_below(place, folder))
            continue
        for entry in entries:
            path, suffix = place / entry.name, Path(entry.name).suffix.lower()
            kind = _kind(entry)
            if entry.name.startswith("."):
                if kind == "folder" or suffix in IMAGE_SUFFIXES:
                    left_out["hidden"].append(_below(path, folder))
            elif kind == "folder":
                (linked if entry.is_symlink() else folders).append(path)
            elif suffix not in IMAGE_SUFFIXES:
                if suffix not in known:
                    left_out["of other kinds"].append(_below(path, folder))
            elif kind == "file":
                found.append(path)
            else:
                left_out["no regular files"].append(_below(path, folder))
    _warn_of(folder, left_out)
    return sorted(found)


def _kind(entry: "os.DirEntry[str]") -> Literal["folder", "file", "other"]:
    try:
        if entry.is_dir():
            return "folder"
        # A broken link counts as a file: reading it tells.
        return "file" if entry.is_file() or not Path(entry.path).exists() else "other"
    except OSError:
        return "file"


def _below(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _warn_of(place: object, left_out: Mapping[str, Sequence[str]]) -> None:
    """Say in one line what a walk left out: how many for each reason, and the first names."""
    parts = []
    for reason, names in left_out.items():
        more = ", …" if len(names) > NAMED else ""
        named = ", ".join(shown(name, 60) for name in names[:NAMED])
        parts.append(f"{len(names)} {reason} ({named}{more})")
    if parts:
        _warn_once(f"{shown(place)}: left out: {'; '.join(parts)}")


@lru_cache(maxsize=4096)
def _warn_once(line: str) -> None:
    """A dataset is listed for training, for checking and for every evaluation."""
    logger.warning("%s", line)


def expand(arguments: Sequence[str]) -> tuple[list[Source], list[str]]:
    """Turn what the user wrote into sources, in that order and each once.

    A folder gives the images below it, see `find_images`; a pattern (`*`, `?`, `[…]`, `**`) is
    expanded here if the shell did not; a whole number that is no file is a camera. Beside the
    sources a line is returned for every argument that leads to none.
    """
    sources: dict[str, Source] = {}
    problems: list[str] = []
    for argument in arguments:
        found = _find(argument)
        if not found:
            problems.append(_explain(argument))
        for source in found:
            identity = source.name if source.kind == "camera" else os.path.realpath(source.name)
            sources.setdefault(identity, source)
    return [*sources.values()], problems


def _find(argument: str) -> list[Source]:
    path, known = Path(argument), IMAGE_SUFFIXES + VIDEO_SUFFIXES
    if path.is_dir():
        return [Source("image", str(file), path) for file in find_images(path)]
    if path.exists():
        return [_file(path)]
    if argument.isdecimal() and len(argument) <= CAMERA_DIGITS:
        return [Source("camera", argument)]
    if not glob.has_magic(argument):
        return []
    matched = map(Path, sorted(glob.glob(argument, recursive=True)))  # noqa: PTH207 (absolute too)
    files = [path for path in matched if not path.is_dir()]  # `a/**` names every folder, too
    others = [str(path) for path in files if path.suffix.lower() not in known]
    _warn_of(argument, {"of other kinds": others} if others else {})
    return [_file(path) for path in files if path.suffix.lower() in known]


def _explain(argument: str) -> str:
    if Path(argument).is_dir():
        return f"{shown(argument)}: no image in this folder ({' '.join(IMAGE_SUFFIXES)})"
    if glob.has_magic(argument):
        return f"{shown(argument)}: no image or video matches this pattern"
    expected = "an image, video, folder, pattern or camera index"
    try:
        as_path(argument, "a source", expected)
    except InputError as error:  # a URL
        return str(error)
    return f"{shown(argument)}: no such file, expected {expected}"


def _file(path: Path) -> Source:
    """A file named by the user: a video by its suffix, else an image, whatever it is called."""
    kind: Literal["image", "video"] = "video" if path.suffix.lower() in VIDEO_SUFFIXES else "image"
    return Source(kind, str(path), path.parent)


class Video:
    """Frames of a video file or camera; iterate over it inside `with`.

    InputError if it cannot be opened, or holds no frame that can be decoded.
    """

    def __init__(self, source: Source) -> None:
        camera = source.kind == "camera"
        path, self._name = Path(source.name), shown(source.name)
        if camera:
            self._capture = cv2.VideoCapture(int(source.name))
        elif path.exists() and not path.is_file():
            raise InputError(f"{self._name}: is a pipe or device, expected a regular file")
        else:
            with plain_name(path) as name:
                self._capture = cv2.VideoCapture(name)
        if not self._capture.isOpened():
            raise InputError(
                f"camera {source.name}: cannot be opened (absent, busy or not permitted)"
                if camera
                else f"{self._name}: not a video that can be decoded (corrupt or unknown format)"
            )
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = float(fps) if 0 < fps <= 1000 else FALLBACK_FPS
        count = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        # None for a camera or a file that does not say how many to expect
        self.frame_count = count if count > 0 and not camera else None

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """Yield BGR uint8 [h, w, 3] frames, rotated as the file says.

        InputError after the last one, if there was none or clearly fewer than announced.
        """
        done = 0
        while (frame := self._capture.read()[1]) is not None:
            done += 1
            yield np.asarray(frame, dtype=np.uint8)
        if done == 0:
            raise InputError(f"{self._name}: no frame can be read")
        if self.frame_count and done < self.frame_count * (1 - COUNT_TOLERANCE) - 1:
            raise InputError(
                f"{self._name}: ends after {done} of {self.frame_count} frames (truncated?)"
            )

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *_: object) -> None:
        self._capture.release()
