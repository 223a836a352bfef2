"""Decode → detect → what is done with the answers, each in threads of its own."""

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmsfree.detections import Detections
from nmsfree.detector import IMAGES_PER_RUN, Detector, Threshold
from nmsfree.errors import InputError
from nmsfree.images import Reduce, Reduction, read_reduced
from nmsfree.machine import processors
from nmsfree.preprocess import in_file, reduction_for
from nmsfree.streams.flow import Stage, flow
from nmsfree.streams.live import LiveSource, live_sources, take
from nmsfree.streams.sources import Frame, Source, expand
from nmsfree.streams.video import Encoded, Video
from nmsfree.text import FilePath

CORES = processors()
DECODERS = min(CORES, 4)  # threads; a video's own decoder has more
RUNS = 2  # of the detector at once: one prepares its image while another is in the network
AHEAD = DECODERS + RUNS + 2  # images under way, all of them in memory
LIVE_AHEAD = 3  # one at each of: detect, draw, write

# Finds the objects of images, BGR uint8 [h, w, 3].
Look = Callable[[list[NDArray[np.uint8]]], list[Detections]]
Answer = tuple[Frame, Detections]


def stream(
    source: FilePath | int | Sequence[FilePath | int],
    detector: Detector,
    *,
    threshold: Threshold | None = None,
    classes: Iterable[str | int] | None = None,
    max_detections: int | None = None,
    max_frames: int | None = None,
    give_up: float | None = None,
    reduced: bool = False,
) -> Iterator[Answer]:
    """Yield every frame with what is in it, while the next ones are decoded and in the network.

    Frames of a file come in order and none is left out; reading waits for who takes the answers.
    Live sources run all at once, and only their newest frames are looked at.

    Args:
        source: an image, video, folder, pattern, a camera's index (0 or "0"), a URL (rtsp,
            http, udp …), or several of these.
        detector: one of a fixed batch gets so many frames at a time.
        threshold, classes, max_detections: as for `Detector`.
        max_frames: stop each video or live source after this many.
        give_up: seconds without a frame after which a live source is an error; None tries for ever
            again, but one that never gave a frame for ten seconds.
        reduced: decode JPEG files at ½, ¼ or ⅛ of their size where that is no smaller than the
            model's input. Boxes are in pixels of the file all the same, whose size is `frame.size`.

    Raises:
        InputError: a source or an argument cannot be used; what came before it has been yielded.

    Example:
        >>> for frame, detections in nmsfree.stream("street.mp4", detector):
        ...     print(frame.number, frame.time, len(detections), frame.image.shape)
    """
    several = [source] if isinstance(source, str | os.PathLike | int) else source
    found, problems = expand(
        [str(one) if isinstance(one, int) else os.fspath(one) for one in several]
    )
    if problems:
        raise InputError("; ".join(problems))
    look = partial(
        detector.batch, threshold=threshold, classes=classes, max_detections=max_detections
    )
    look([])  # refuses wrong arguments
    chunks = answers_of(
        found,
        look,
        detector.spec.batch,
        max_frames=max_frames,
        give_up=give_up,
        reduction=reduction_for(detector.spec) if reduced else 1,
    )
    with closing(chunks):
        for answer in chain.from_iterable(chunks):
            if isinstance(answer, InputError):
                raise answer
            yield answer


def answers_of(
    sources: Sequence[Source],
    look: Look,
    batch: int | None,
    *,
    max_frames: int | None = None,
    give_up: float | None = None,
    reduction: Reduction | Reduce = 1,
    then: Sequence[Stage] = (),
    on_video: Callable[[int | None], None] = lambda frames: None,
    on_live: Callable[[Sequence[LiveSource]], None] = lambda sources: None,
) -> Generator[list[Any], None, None]:
    """Yield the answers for files, then those for live sources, a list for each call of `look`.

    The list holds (frame, detections), or an InputError for a source that cannot be read, in its
    place; the rest is done.

    Args:
        look: finds the objects of up to `batch` images; several threads call it.
        batch: None for an open one.
        max_frames, give_up: as for `stream`.
        reduction: of JPEG files as they are decoded; boxes are in the file's pixels all the same.
        then: stages that take such lists; theirs are yielded.
        on_video: is told how many frames a video has, or None if it does not say.
        on_live: is told the live sources when they start.
    """
    files = [source for source in sources if not source.is_live]
    live = [source for source in sources if source.is_live]
    if files:
        chunks = _chunked(_undecoded(files, max_frames, reduction, on_video), batch or 1)
        stages = [
            Stage("decode", _decode, DECODERS),
            Stage("detect", partial(_detect, look), RUNS),
        ]
        yield from flow(chunks, [*stages, *then], max(3, AHEAD // (batch or 1)))
    if live:
        rows = batch or min(len(live), IMAGES_PER_RUN)
        with live_sources(live, max_frames, give_up) as running:
            on_live(running)
            newest = Stage("detect", lambda _: _detect(look, take(running, rows)))
            yield from flow(_while_alive(running), [newest, *then], LIVE_AHEAD)


Undecoded = Callable[[], Frame] | InputError


def _undecoded(
    sources: Sequence[Source],
    max_frames: int | None,
    reduction: Reduction | Reduce,
    on_video: Callable[[int | None], None],
) -> Generator[Undecoded, None, None]:
    for source in sources:
        if source.kind == "image":
            yield partial(_picture, source, reduction)
            continue
        try:
            with Video(Path(source.name)) as video:
                known = [n for n in (video.frame_count, max_frames) if n is not None]
                on_video(min(known) if known else None)
                for number, frame in enumerate(islice(video, max_frames)):
                    yield partial(_frame, source, number, frame, video.fps)
        except InputError as error:
            yield error


def _picture(source: Source, reduction: Reduction | Reduce) -> Frame:
    image, size = read_reduced(source.name, reduction)
    return Frame(source, image, size=None if image.shape[:2] == size else size)


def _frame(source: Source, number: int, frame: Encoded, fps: float) -> Frame:
    return Frame(source, frame.load(), number, frame.time, fps)


def _chunked(
    items: Generator[Undecoded, None, None], size: int
) -> Generator[list[Undecoded], None, None]:
    try:
        while chunk := list(islice(items, size)):
            yield chunk
    finally:
        items.close()


def _decode(chunk: list[Undecoded]) -> list[Frame | InputError]:
    frames: list[Frame | InputError] = []
    for item in chunk:
        try:
            frames.append(item if isinstance(item, InputError) else item())
        except InputError as error:
            frames.append(error)
    return frames


def _detect(look: Look, chunk: list[Frame | InputError]) -> list[Answer | InputError]:
    images = [frame.image for frame in chunk if isinstance(frame, Frame)]
    found = iter(look(images) if images else [])
    return [
        (frame, in_file(next(found), frame.image, frame.size))
        if isinstance(frame, Frame)
        else frame
        for frame in chunk
    ]


def _while_alive(sources: Sequence[LiveSource]) -> Generator[None, None, None]:
    """A place in the flow for each time that the newest frames are taken."""
    while any(source.has_more for source in sources):
        yield None
