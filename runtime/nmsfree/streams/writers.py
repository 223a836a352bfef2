"""What `nmsfree detect` leaves behind; a file gets its final name only when it is complete."""

import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from nmsfree.detections import Detections
from nmsfree.drawing import draw, zoom_for
from nmsfree.errors import InputError
from nmsfree.files import (
    LinesFile,
    check_outputs,
    problems_in,
    remove_leftovers,
    write_atomic,
    writing,
)
from nmsfree.images import encode_picture
from nmsfree.parsing import whole_number
from nmsfree.streams.sources import WRITTEN_SUFFIXES, Frame, Source
from nmsfree.streams.video_file import VideoFile

LINES_NAME = "detections.jsonl"
# A picture file's bytes, a frame of a video, why there is none, or None where none is wanted.
Drawn = bytes | NDArray[np.uint8] | InputError | None


def lines_of(frame: Frame, detections: Detections) -> Iterator[str]:
    """Yield one JSON object for each detection: image, (frame, time,) box xyxy, class, id, score.

    Those of an image that may hold more have `"truncated": true`.
    """
    head: dict[str, Any] = {"image": frame.source.name}
    if frame.number is not None:
        head["frame"] = frame.number
    if frame.time is not None:
        head["time"] = round(frame.time, 3)
    truncated = {"truncated": True} if detections.truncated else {}
    for row in detections.to_dict()["detections"]:
        yield json.dumps(head | row | truncated)


def picture_names(sources: Sequence[Source]) -> dict[Source, Path]:
    """Give every source a relative path of its own, which mirrors the folders they lie in."""
    roots = {_absolute(source.root) for source in sources if source.root is not None}
    base = ""
    with suppress(ValueError):  # several drives, or cameras alone
        base = os.path.commonpath(roots)
    names: dict[Source, Path] = {}
    taken: set[str] = set()
    for source in sources:
        wanted = name = _picture_name(source, base)
        number = 1
        while str(name).lower() in taken:  # a.avi and a.avi.mp4, or a file system without case
            number += 1
            name = wanted.with_stem(f"{wanted.stem}-{number}")
        taken.add(str(name).lower())
        names[source] = name
    return names


def _absolute(path: str | Path) -> Path:
    """Absolute path without `..`; links are kept, `Path.resolve` would follow them."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def _picture_name(source: Source, base: str) -> Path:
    if source.kind == "camera":
        return Path(f"camera-{source.name}.mp4")
    if source.kind == "url":
        return Path(f"{re.sub('[^A-Za-z0-9]+', '-', source.name).strip('-')[:100]}.mp4")
    path = _absolute(source.name)
    relative = path.relative_to(base) if base else Path(*path.parts[1:])
    kept, other = ((".mp4",), ".mp4") if source.kind == "video" else (WRITTEN_SUFFIXES, ".png")
    return relative if path.suffix.lower() in kept else relative.with_name(relative.name + other)


def new_run_folder(parent: Path) -> Path:
    """Make and return the next free numbered folder: parent/1, parent/2, …"""
    with writing(parent):
        parent.mkdir(parents=True, exist_ok=True)
        number = max((whole_number(p.name) or 0 for p in parent.iterdir()), default=0)
        remove_leftovers(parent / str(number))
        while True:
            number += 1
            with suppress(FileExistsError):  # another run was quicker
                (parent / str(number)).mkdir()
                return parent / str(number)


class Output:
    """Takes results in the order of the sources and writes lines, pictures and videos.

    Leaving the `with` block finishes every file, whatever ended it: what is done is kept. What
    cannot be written becomes a line of `problems`; the rest goes on.

    Args:
        names: path of every source's picture or video below `folder`, see `picture_names`.
        folder: where to write; None writes nothing there.
        json_target: one more place for the lines: a path, "-" for stdout, or None.
        model: the file that detects; no output may replace it.

    Raises:
        InputError: a picture would replace its source, or no file can be written there.
    """

    def __init__(
        self,
        names: dict[Source, Path],
        folder: Path | None,
        *,
        pictures: bool = True,
        json_target: str | None = None,
        model: Path | None = None,
    ) -> None:
        self.problems: list[str] = []
        self._paths: dict[Source, Path] = {}
        if folder is not None and pictures:
            self._paths = {source: folder / name for source, name in names.items()}
        inputs = [*(Path(source.name) for source in names if not source.is_live), model]
        originals = {os.path.realpath(path) for path in inputs if path is not None}
        for path in self._paths.values():
            if os.path.realpath(path) in originals:
                raise InputError(
                    f"{path}: the annotated picture would replace an input, give another --save-dir"
                )
        lines = folder / LINES_NAME if folder is not None else None
        check_outputs([lines, json_target], inputs)
        targets = [path for path in (lines, json_target) if path is not None and path != "-"]
        self._lines = [LinesFile(Path(path)) for path in targets]
        self._stdout = sys.stdout if json_target == "-" else None
        self._videos: dict[Source, VideoFile] = {}

    def draw(self, frame: Frame, detections: Detections) -> Drawn:
        """Make what `add` writes beside the lines; several threads may."""
        path = self._paths.get(frame.source)
        if path is None:
            return None
        try:
            picture = draw(frame.image, detections, zoom=zoom_for(*frame.image.shape[:2]))
            return encode_picture(path, picture) if frame.source.kind == "image" else picture
        except InputError as error:
            return error

    def add(self, frame: Frame, detections: Detections, drawn: Drawn) -> None:
        """Write what was found in one frame, and what `draw` made of it."""
        text = "".join(line + "\n" for line in lines_of(frame, detections))
        for file in list(self._lines):
            try:
                file.write(text)
            except InputError as error:
                self.problems.append(str(error))
                self._lines.remove(file)
        if self._stdout is not None:
            self._print(self._stdout, text)
        if frame.source in self._paths and drawn is not None:
            try:
                self._add_picture(frame, drawn)
            except InputError as error:
                self.problems.append(str(error))
                del self._paths[frame.source]

    def _print(self, stdout: TextIO, text: str) -> None:
        """Print lines; if the reader is gone (`| head`), the files go on."""
        try:
            stdout.write(text)
            stdout.flush()
        except BrokenPipeError:
            if not self._lines:
                raise  # nothing is left to be written
            self.problems.append("stdout: closed by its reader; the files have all lines")
            self._stdout = None
            with open(os.devnull, "w") as nothing:  # noqa: PTH123 (not a file)
                os.dup2(nothing.fileno(), stdout.fileno())  # what is buffered goes nowhere

    def _add_picture(self, frame: Frame, drawn: bytes | NDArray[np.uint8] | InputError) -> None:
        path = self._paths[frame.source]
        if isinstance(drawn, InputError):
            raise drawn
        if isinstance(drawn, bytes):
            write_atomic(path, drawn, sync=False)
            return
        if frame.source not in self._videos:
            if not frame.source.is_live:  # files come one after the other
                self._finish_videos()
            self._videos[frame.source] = VideoFile(path, frame.fps, *drawn.shape[:2])
        self._videos[frame.source].write(drawn, frame.time)

    def _finish_videos(self) -> None:
        while self._videos:
            with problems_in(self.problems):
                self._videos.popitem()[1].finish()

    def __enter__(self) -> "Output":
        return self

    def __exit__(self, *_: object) -> None:
        self._finish_videos()
        for file in self._lines:
            with problems_in(self.problems):
                file.finish()
