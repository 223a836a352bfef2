"""What `nmsfree detect` leaves behind; a file gets its final name only when it is complete."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import cv2
import numpy as np
from numpy.typing import NDArray

from nmsfree.decode import whole_number
from nmsfree.detections import Detections
from nmsfree.draw import draw, zoom_for
from nmsfree.errors import InputError
from nmsfree.files import (
    LinesFile,
    PartFile,
    cannot_write,
    check_outputs,
    plain_name,
    problems_in,
    remove_leftovers,
    writing,
)
from nmsfree.images import write_picture
from nmsfree.streams.sources import WRITTEN_SUFFIXES, Source
from nmsfree.text import shown

LINES_NAME = "detections.jsonl"


def lines_of(source: Source, frame: int | None, detections: Detections) -> Iterator[str]:
    """Yield one JSON object for each detection: image, (frame,) box xyxy, class, id, score.

    Those of an image that may hold more have `"truncated": true`.
    """
    head: dict[str, Any] = {"image": source.name}
    if frame is not None:
        head["frame"] = frame
    for box, confidence, class_id, class_name in detections:
        found = {"box": [round(v, 3) for v in box], "class": class_name, "class_id": class_id}
        found["score"] = round(confidence, 6)
        yield json.dumps(head | found | ({"truncated": True} if detections.truncated else {}))


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


class VideoFile:
    """An mp4 video (MPEG-4 part 2) that appears under its name when it is finished.

    InputError if it cannot be written, or not be read back when it is finished.
    """

    def __init__(self, path: Path, fps: float, height: int, width: int) -> None:
        self._file = PartFile(path, suffix=".mp4")
        self._size, self._frames = (height, width), 0
        codec = cv2.VideoWriter.fourcc(*"mp4v")
        self._writer = cv2.VideoWriter()
        if self._file.part is not None:  # a stream takes no mp4, which is written back and forth
            with plain_name(self._file.part) as name:
                self._writer.open(name, codec, fps, (width, height))
        if not self._writer.isOpened():
            self._file.discard()
            raise cannot_write(path, "OpenCV opened no mp4 encoder here")

    def write(self, picture: NDArray[np.uint8]) -> None:
        """Add a frame, BGR uint8 [height, width, 3] of the size given at the start.

        InputError if it has another size, of which OpenCV would say nothing.
        """
        if picture.shape[:2] != self._size:
            (height, width), (h, w) = self._size, picture.shape[:2]
            raise InputError(
                f"{shown(self._file.path)}: ends after {self._frames} frames of {height} × {width} "
                f"pixels, as the next has {h} × {w}"
            )
        self._writer.write(picture)
        self._frames += 1

    def finish(self) -> None:
        self._writer.release()  # says nothing of a full disk
        if not self._is_whole():
            self._file.discard()
            raise InputError(
                f"{shown(self._file.path)}: its {self._frames} frames cannot be read back, so it "
                "is not kept: make sure that the disk has room"
            )
        self._file.finish()

    def _is_whole(self) -> bool:
        """Whether the file has the frames that were written, and the last one decodes."""
        assert self._file.part is not None  # it was opened
        with plain_name(self._file.part) as name:
            video = cv2.VideoCapture(name)
        found = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
        video.set(cv2.CAP_PROP_POS_FRAMES, self._frames - 1)
        whole = found == self._frames and video.read()[0]
        video.release()
        return whole


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
        inputs = [*(Path(source.name) for source in names if source.kind != "camera"), model]
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
        self._video: tuple[Source, VideoFile] | None = None

    def add(
        self,
        source: Source,
        frame: int | None,
        image: NDArray[np.uint8],
        detections: Detections,
        fps: float = 0.0,
    ) -> None:
        """Write what was found in one image, or in one frame of a video of `fps`."""
        text = "".join(line + "\n" for line in lines_of(source, frame, detections))
        for file in list(self._lines):
            try:
                file.write(text)
            except InputError as error:
                self.problems.append(str(error))
                self._lines.remove(file)
        if self._stdout is not None:
            self._print(self._stdout, text)
        if source in self._paths:
            try:
                picture = draw(image, detections, zoom=zoom_for(*image.shape[:2]))
                if source.kind == "image":
                    write_picture(self._paths[source], picture)
                else:
                    self._add_frame(source, picture, fps)
            except InputError as error:
                self.problems.append(str(error))
                del self._paths[source]

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

    def _add_frame(self, source: Source, picture: NDArray[np.uint8], fps: float) -> None:
        if self._video is None or self._video[0] != source:
            self._finish_video()
            video = VideoFile(self._paths[source], fps, *picture.shape[:2])
            self._video = (source, video)
        self._video[1].write(picture)

    def _finish_video(self) -> None:
        if self._video is not None:
            video, self._video = self._video[1], None
            with problems_in(self.problems):
                video.finish()

    def __enter__(self) -> "Output":
        return self

    def __exit__(self, *_: object) -> None:
        self._finish_video()
        for file in self._lines:
            with problems_in(self.problems):
                file.finish()
