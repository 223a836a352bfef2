"""The loop of `nmsfree detect`: read, detect, write, count."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from nmsfree.detect_output import Output
from nmsfree.detections import Detections
from nmsfree.errors import InputError
from nmsfree.images import read_image
from nmsfree.progress import progress_bar
from nmsfree.sources import Source, Video

Look = Callable[[list[NDArray[np.uint8]]], list[Detections]]


class Frame(NamedTuple):
    """One image to look at, BGR uint8 [h, w, 3]; `number` and `fps` are those of a video."""

    source: Source
    image: NDArray[np.uint8]
    number: int | None = None
    fps: float = 0.0


@dataclass
class Totals:
    """What a run has done."""

    images: int = 0
    objects: int = 0
    seconds: float = 0.0  # in the detector; reading and drawing excluded
    problems: list[str] = field(default_factory=list)  # a line for each unreadable source
    interrupted: bool = False

    def __str__(self) -> str:
        images = f"{self.images} image{'' if self.images == 1 else 's'}"
        objects = f"{self.objects} object{'' if self.objects == 1 else 's'}"
        speed = f", {1000 * self.seconds / self.images:.1f} ms/image" if self.images else ""
        return f"{'interrupted after ' if self.interrupted else ''}{images}, {objects}{speed}"


class Run:
    """One pass over sources; a new one for every pass.

    Args:
        look: finds the objects of up to `batch` images, BGR uint8 [h, w, 3].
        output: takes what was found.
        batch: how many images to give to `look` at once.
        max_frames: stop each video or camera after this many; None goes on to its end.
    """

    def __init__(self, look: Look, output: Output, batch: int, max_frames: int | None) -> None:
        self._look = look
        self._output = output
        self._batch = batch
        self._max_frames = max_frames
        self._totals = Totals()

    def over(self, sources: list[Source]) -> Totals:
        """Work through the sources; Ctrl-C ends this early and well."""
        with progress_bar() as bar:
            bar.add_task("detect", total=len(sources))
            try:
                for chunk in _chunks(self._frames(sources, bar), self._batch):
                    self._detect(chunk)
                    bar.update(bar.task_ids[0], completed=self._totals.images)
            except KeyboardInterrupt:
                self._totals.interrupted = True
        return self._totals

    def _frames(self, sources: list[Source], bar: Progress) -> Iterator[Frame]:
        """Read the sources one by one; those that cannot be read become problems."""
        for source in sources:
            try:
                if source.kind == "image":
                    yield Frame(source, read_image(source.name))
                else:
                    yield from self._video_frames(source, bar)
            except InputError as error:
                self._totals.problems.append(str(error))

    def _video_frames(self, source: Source, bar: Progress) -> Iterator[Frame]:
        with Video(source) as video:
            known = [count for count in (video.frame_count, self._max_frames) if count is not None]
            _correct_total(bar, min(known, default=None))
            for number, image in enumerate(islice(video, self._max_frames)):
                yield Frame(source, image, number, video.fps)

    def _detect(self, chunk: list[Frame]) -> None:
        start = time.perf_counter()
        results = self._look([frame.image for frame in chunk])
        self._totals.seconds += time.perf_counter() - start
        for frame, detections in zip(chunk, results, strict=True):
            self._output.add(frame.source, frame.number, frame.image, detections, frame.fps)
            self._totals.images += 1
            self._totals.objects += len(detections)


def _correct_total(bar: Progress, frames: int | None) -> None:
    """A source that was counted as one image turns out to be a video of `frames`, None: endless."""
    task = bar.tasks[0]
    task.total = None if frames is None or task.total is None else task.total - 1 + frames


def _chunks(frames: Iterable[Frame], size: int) -> Iterator[list[Frame]]:
    iterator = iter(frames)
    while chunk := list(islice(iterator, size)):
        yield chunk
