"""Live sources: a thread for each keeps its newest frame, and connects again when it is lost."""

import logging
import math
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from nmsfree.errors import InputError, import_extra
from nmsfree.streams.sources import Frame, Source
from nmsfree.streams.video import FALLBACK_FPS, has_pyav, picture_of

logger = logging.getLogger(__name__)

CONNECT_SECONDS, READ_SECONDS = 5.0, 5.0  # longest waits for an answer, and for a frame
FIRST_PATIENCE = 10.0  # seconds until a URL that never gave a frame is given up
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds before connecting again; doubled each time
TAKE_SECONDS = 0.2  # longest wait for new frames: so soon an interrupted run ends
STOP_SECONDS = 1.0  # longest wait for the threads at the end
OPTIONS = {
    # Little is read before the first frame.
    "probesize": "500000",  # bytes
    "analyzeduration": "1000000",  # microseconds
    "rtsp_transport": "tcp",
    "overrun_nonfatal": "1",  # of UDP that comes faster than it is read
    # No files: what a server sends may name further places.
    "protocol_whitelist": "rtsp,rtsps,rtp,srtp,http,https,httpproxy,tls,tcp,udp,crypto",
}

Load = Callable[[], NDArray[np.uint8]]


class _LostError(Exception):
    """A source gives no more frames; the message says why, without the URL."""


class _Arrived(NamedTuple):
    load: Load  # makes the picture
    number: int
    when: float  # time.monotonic


class LiveSource:
    """A live source, and the thread that reads it until it is stopped or given up.

    Args:
        new: shared by all sources; notified at every frame, and held while their state changes.
        max_frames: stop after this many have been taken.
        give_up: seconds without a frame after which it is given up; None as in `stream`.
    """

    def __init__(
        self,
        source: Source,
        new: threading.Condition,
        max_frames: int | None,
        give_up: float | None,
    ) -> None:
        self.source, self.new = source, new
        self.name = f"camera {source.name}" if source.kind == "camera" else source.name
        self.received = self.taken = self.connected = 0  # frames, frames, times
        self.last_taken = 0.0  # time.monotonic
        self._max_frames, self._give_up = max_frames, give_up
        self._newest: _Arrived | None = None
        self._problem: InputError | None = None  # why it was given up
        self._began, self._last = math.nan, time.monotonic()  # when the first and last frame came
        self._fps = FALLBACK_FPS
        self.stop = threading.Event()  # lets the thread end soon
        # It may hang in a library or in the system's look-up of a name: nothing waits for it.
        self.thread = threading.Thread(target=self._keep_reading, daemon=True)
        self.thread.start()

    def __str__(self) -> str:
        """A line for the user."""
        seconds = self._last - self._began
        rate = f", {self.received / seconds:.1f} frames/s" if seconds > 1 else ""
        late = self.received - self.taken - (self._newest is not None)
        again = f", connected {self.connected} times" if self.connected > 1 else ""
        return f"{self.name}: {self.received} frames{rate}, {late} late and dropped{again}"

    @property
    def has_more(self) -> bool:
        """Whether a frame or a problem may still be taken."""
        if self.stop.is_set():
            return False
        return self.thread.is_alive() or self.has_news

    @property
    def has_news(self) -> bool:
        """Whether a frame or a problem can be taken."""
        return self._newest is not None or self._problem is not None

    def take(self) -> Callable[[], Frame] | InputError | None:
        """What makes the newest frame, or why there is none; while `new` is held."""
        if self._newest is None or self.stop.is_set():
            problem, self._problem = self._problem, None
            return problem
        arrived, self._newest = self._newest, None
        self.taken, self.last_taken = self.taken + 1, time.monotonic()
        if self.taken == self._max_frames:
            self.stop.set()
        self.new.notify_all()  # a recording waits until its frame is taken
        return partial(self._frame, arrived)

    def _frame(self, found: _Arrived) -> Frame:
        after = found.when - self._began
        return Frame(self.source, found.load(), found.number, after, self._fps, found.when)

    def _keep_reading(self) -> None:
        wait = FIRST_WAIT
        while not self.stop.is_set():
            before = self.received
            try:
                self._read()
                break
            except _LostError as error:
                reason = error
            if self.received > before:
                wait = FIRST_WAIT
            silent = time.monotonic() - self._last
            if silent + wait > self._patience():
                with self.new:
                    self._problem = InputError(f"{self.name}: {reason}")
                break
            logger.warning("%s: %s: trying again in %g s", self.name, reason, wait)
            self.stop.wait(wait)
            wait = min(2 * wait, LONGEST_WAIT)
        with self.new:
            self.new.notify_all()

    def _patience(self) -> float:
        if self._give_up is not None:
            return self._give_up
        if self.received:
            return math.inf
        return FIRST_PATIENCE if self.source.kind == "url" else 0

    def _read(self) -> None:
        """Read until the end of a recording, or until the source is stopped."""
        opened = _open_url(self.source.url) if self.source.url else _open_camera(self.source.name)
        with closing(opened.frames):
            self._fps = opened.fps
            self.connected += 1
            for load in opened.frames:
                with self.new:
                    while opened.is_recording and self._newest and not self.stop.is_set():
                        self.new.wait(TAKE_SECONDS)
                    if self.stop.is_set():
                        return
                    self._last = time.monotonic()
                    if self.received == 0:
                        self._began = self._last
                    self._newest = _Arrived(load, self.received, self._last)
                    self.received += 1
                    self.new.notify_all()


class _Opened(NamedTuple):
    frames: Generator[Load, None, None]
    fps: float
    is_recording: bool  # it has an end, and waits


def _open_camera(index: str) -> _Opened:
    capture = cv2.VideoCapture(int(index))
    if not capture.isOpened():
        raise _LostError("cannot be opened (absent, busy or not permitted)")

    def frames() -> Generator[Load, None, None]:
        try:
            while (frame := capture.read()[1]) is not None:
                yield partial(np.asarray, frame, np.uint8)
        finally:
            capture.release()
        raise _LostError("gives no more frames")

    return _Opened(frames(), capture.get(cv2.CAP_PROP_FPS) or FALLBACK_FPS, False)


def _open_url(url: str) -> _Opened:
    import av
    from av.error import FFmpegError

    try:
        container = av.open(url, options=OPTIONS, timeout=(CONNECT_SECONDS, READ_SECONDS))
    except (FFmpegError, OSError, ValueError) as error:
        raise _LostError(f"no connection ({_why(error)})") from None
    if not container.streams.video:
        container.close()
        raise _LostError("holds no video")
    stream = container.streams.video[0]
    stream.thread_type = "SLICE"  # threads for frames would keep some back

    def frames() -> Generator[Load, None, None]:
        last = time.monotonic()
        try:
            for packet in container.demux():  # of sound, too: a video that stops must be noticed
                if packet.stream_index == stream.index:
                    with suppress(FFmpegError):  # damaged: the next key frame mends it
                        for frame in packet.decode():
                            yield partial(picture_of, frame)
                            last = time.monotonic()
                if time.monotonic() - last > READ_SECONDS:
                    raise _LostError(f"no frame for {READ_SECONDS:g} s")
        except (FFmpegError, OSError) as error:
            raise _LostError(f"lost ({_why(error)})") from None
        finally:
            container.close()
        if not is_recording:
            raise _LostError("has ended")

    # A single picture is one, too: FFmpeg's formats jpeg_pipe, png_pipe …
    is_recording = (container.duration or 0) > 0 or container.format.name.endswith("_pipe")
    return _Opened(frames(), float(stream.average_rate or FALLBACK_FPS), is_recording)


def _why(error: Exception) -> str:
    """What FFmpeg says, without the URL, which may hold a password."""
    if type(error).__name__ == "ExitError":
        return f"no answer for {READ_SECONDS:g} s"
    return getattr(error, "strerror", None) or type(error).__name__


@contextmanager
def live_sources(
    sources: Sequence[Source], max_frames: int | None, give_up: float | None
) -> Iterator[list[LiveSource]]:
    """Read all sources for the block; a second after its end nothing of them is left."""
    if any(source.kind == "url" for source in sources):
        import_extra("av", "a live source", "nmsfree[video]")
        has_pyav()
    new = threading.Condition()
    running = [LiveSource(source, new, max_frames, give_up) for source in sources]
    try:
        yield running
    finally:
        for source in running:
            source.stop.set()
        end = time.monotonic() + STOP_SECONDS
        for source in running:
            source.thread.join(max(0.0, end - time.monotonic()))


def take(sources: Sequence[LiveSource], rows: int) -> list[Frame | InputError]:
    """Wait a little for new frames, and return one of each source, at most `rows`.

    Those that waited longest come first.
    """
    new = sources[0].new
    with new:
        new.wait_for(lambda: any(source.has_news for source in sources), TAKE_SECONDS)
        waited = sorted(sources, key=lambda source: source.last_taken)
        ready = [source.take() for source in [one for one in waited if one.has_news][:rows]]
    return [one() if callable(one) else one for one in ready if one is not None]
