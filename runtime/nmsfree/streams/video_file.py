"""An annotated video: H.264 by PyAV (the extra `video`), or else MPEG-4 part 2 by OpenCV."""

from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from nmsfree.errors import InputError
from nmsfree.files import PartFile, cannot_write, plain_name
from nmsfree.streams.video import has_pyav
from nmsfree.text import shown

Image = NDArray[np.uint8]
# The first one that is there. OpenH264's licence is BSD; x264's, which PyAV's wheels have, the GPL.
ENCODERS = {"libopenh264": {}, "libx264": {"preset": "veryfast", "crf": "23"}}
BITS_PER_PIXEL = 0.12  # of a frame: 6 Mbit/s at 1080p and 25 frames a second; x264 goes by `crf`
KEY_SECONDS = 2  # between key frames, where players jump to
TICKS = 90_000  # a second; times of frames are written in these
BT601_LIMITED = {"colorspace": 6, "color_range": 1, "color_primaries": 6, "color_trc": 6}


class VideoFile:
    """An mp4 video that appears under its name when it is finished.

    H.264, 4:2:0, its index in front, as browsers play it. Odd sides get a row or column more.

    InputError if it cannot be written, or not be read back when it is finished.
    """

    def __init__(self, path: Path, fps: float, height: int, width: int) -> None:
        self._file = PartFile(path, suffix=".mp4")
        self._size, self._frames = (height, width), 0
        self._stack = ExitStack()  # the name stays: the encoder opens it again at the end
        self._failed = False
        if self._file.part is None:  # a stream takes no mp4, which is written back and forth
            self._file.discard()
            raise cannot_write(path, "an mp4 needs a regular file")
        self._name = self._stack.enter_context(plain_name(self._file.part))
        encoder = _H264 if has_pyav() else _Mpeg4
        try:
            self._encoder: _H264 | _Mpeg4 = encoder(self._name, fps, height, width)
        except (OSError, ValueError) as error:
            raise self._fail(error) from None

    def write(self, picture: Image, time: float | None = None) -> None:
        """Add a frame, BGR uint8 [height, width, 3] of the size given at the start.

        Args:
            time: when it is shown, in seconds; None is one frame after the one before.

        Raises:
            InputError: it has another size, or the disk is full.
        """
        if picture.shape[:2] != self._size:
            (height, width), (h, w) = self._size, picture.shape[:2]
            raise InputError(
                f"{shown(self._file.path)}: ends after {self._frames} frames of {height} × {width} "
                f"pixels, as the next has {h} × {w}"
            )
        try:
            self._encoder.write(picture, time)
        except OSError as error:
            raise self._fail(error) from None
        self._frames += 1

    def finish(self) -> None:
        """Complete the file; of one that failed before, nothing is left to do.

        InputError: it has not all frames that were written, or the last one does not decode. It is
        not kept.
        """
        if self._failed:
            return
        try:
            self._encoder.close()
            found = self._encoder.count_frames(self._name)
        except OSError as error:
            raise self._fail(error) from None
        if found != self._frames:
            reason = f"{found} of its {self._frames} frames can be read back"
            raise self._fail(reason, "make sure that the disk has room")
        self._stack.close()
        self._file.finish()

    def _fail(self, reason: object, advice: str = "") -> InputError:
        self._failed = True
        self._file.discard()
        self._stack.close()
        return cannot_write(self._file.path, reason, advice)


class _Mpeg4:
    """OpenCV's encoder; it says nothing of a full disk."""

    def __init__(self, name: str, fps: float, height: int, width: int) -> None:
        codec = cv2.VideoWriter.fourcc(*"mp4v")
        self._writer = cv2.VideoWriter(name, codec, fps, (width, height))
        if not self._writer.isOpened():
            raise OSError(None, "OpenCV opened no mp4 encoder here")

    def write(self, picture: Image, _: float | None) -> None:
        self._writer.write(picture)

    def close(self) -> None:
        self._writer.release()

    @staticmethod
    def count_frames(name: str) -> int:
        """The number of frames, 0 if the last one does not decode."""
        video = cv2.VideoCapture(name)
        found = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
        video.set(cv2.CAP_PROP_POS_FRAMES, found - 1)
        whole = video.read()[0]
        video.release()
        return found if whole else 0


class _H264:
    """PyAV's encoder. Its errors are of FFmpeg's, of the class OSError."""

    def __init__(self, name: str, fps: float, height: int, width: int) -> None:
        import av

        codec = next((name for name in ENCODERS if name in av.codecs_available), None)
        if codec is None:
            raise OSError(None, f"this PyAV has none of the encoders {', '.join(ENCODERS)}")
        rate = Fraction(fps).limit_denominator(1001)
        self._container = av.open(name, "w", format="mp4", options={"movflags": "+faststart"})
        stream: Any = self._container.add_stream(codec, rate, options=ENCODERS[codec])
        stream.width, stream.height = width + width % 2, height + height % 2
        stream.pix_fmt, context = "yuv420p", stream.codec_context
        context.time_base = Fraction(1, TICKS)
        context.gop_size = max(1, round(KEY_SECONDS * fps))
        context.bit_rate = int(BITS_PER_PIXEL * width * height * fps)
        for name, value in BT601_LIMITED.items():
            setattr(context, name, value)
        self._stream = stream
        self._step, self._last = max(1, round(TICKS / fps)), -1

    def write(self, picture: Image, time: float | None) -> None:
        import av

        height, width = picture.shape[:2]
        if height % 2 or width % 2:
            picture = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), "edge")
        planes = np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2YUV_I420), np.uint8)
        frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
        wanted = self._last + self._step if time is None else round(time * TICKS)
        self._last = max(wanted, self._last + 1, 0)
        frame.pts, frame.time_base = self._last, Fraction(1, TICKS)
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        self._container.mux(self._stream.encode(None))
        self._container.close()

    @staticmethod
    def count_frames(name: str) -> int:
        """The number of frames, 0 if the last one does not decode."""
        import av

        with av.open(f"file:{name}") as container:
            stream = container.streams.video[0]
            container.seek(stream.duration or 0, stream=stream)  # to the last key frame
            return stream.frames if list(container.decode(stream)) else 0
