"""What `nmsfree detect` reads: image files, folders, globs, videos, cameras, addresses of streams.

The walk over a folder is the one of datasets, too.
"""

import glob
import logging
import os
import re
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nmsfree.text import shown

logger = logging.getLogger(__name__)

WRITTEN_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
IMAGE_SUFFIXES = (
    *WRITTEN_SUFFIXES,
    *(".jpe", ".jfif", ".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif"),
)
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".ts")
LIVE_SCHEMES = ("rtsp", "rtsps", "http", "https", "udp", "rtp", "tcp")
CAMERA_DIGITS = 4  # of its index
NAMED = 3  # files in a line about those that were left out


@dataclass(frozen=True)
class Source:
    """One thing to look at."""

    kind: Literal["image", "video", "camera", "url"]  # what it is
    # As it is reported: the path as the user wrote it, the camera's index, or the URL without user,
    # password and query.
    name: str
    root: Path | None = None  # folder below which it was found; None for a camera or URL
    url: str = field(default="", repr=False)  # with its password: never shown

    @property
    def is_live(self) -> bool:
        """Whether it goes on by itself, so that late frames are dropped."""
        return self.kind in ("camera", "url")


class Frame(NamedTuple):
    """One image of a source; only the frames of videos and live sources have numbers and times."""

    source: Source
    image: NDArray[np.uint8]  # BGR [h, w, 3], rotated as its file says
    number: int | None = None  # of a live source, dropped frames counted, too
    time: float | None = None  # seconds after its first frame
    fps: float = 0.0  # of the source on average
    arrived: float | None = None  # of a live source: `time.monotonic` when it had been decoded
    size: tuple[int, int] | None = None  # height, width in the file, of a picture that is reduced


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
    expanded here if the shell did not; a whole number that is no file is a camera; a URL of one of
    `LIVE_SCHEMES` is a live source. Beside the sources a line is returned for every argument that
    leads to none.
    """
    sources: dict[str, Source] = {}
    problems: list[str] = []
    for argument in arguments:
        found = _find(argument)
        if not found:
            problems.append(_explain(argument))
        for source in found:
            if source.is_live:
                identity = source.url or source.name
            else:
                identity = os.path.realpath(source.name)
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
    if argument.partition("://")[0].lower() in LIVE_SCHEMES and "://" in argument:
        return [Source("url", without_secrets(argument), url=argument)]
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
    if "://" in argument:
        schemes = ", ".join(LIVE_SCHEMES)
        return f"{without_secrets(argument)}: expected a URL of one of: {schemes}"
    return (
        f"{shown(argument)}: no such file, expected an image, video, folder, pattern, camera index "
        "or URL"
    )


def without_secrets(url: str) -> str:
    """Return a URL fit to show: without user, password, query and fragment."""
    scheme, _, rest = url.partition("://")
    host = re.split("[/?#]", rest, maxsplit=1)[0]
    if "@" in host or ":" in host:  # of a password that has a slash, the host begins after its end
        rest = rest.rpartition("@")[2]
    return shown(f"{scheme}://{re.split('[?#]', rest, maxsplit=1)[0]}")


def _file(path: Path) -> Source:
    """A file named by the user: a video by its suffix, else an image, whatever it is called."""
    kind: Literal["image", "video"] = "video" if path.suffix.lower() in VIDEO_SUFFIXES else "image"
    return Source(kind, str(path), path.parent)
