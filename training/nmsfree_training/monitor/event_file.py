"""TensorBoard's event file, written with the message types that TensorBoard itself brings.

Neither `torch.utils.tensorboard` nor TensorBoard's own writer will do: both import TensorFlow
where it is installed, which takes seconds and prints warnings, and write from a thread, which
loader workers are then forked beside. Each event here is in the file when the call returns, so
that a killed run loses none. TensorBoard is imported with this module (0.2 s).
"""

import os
import socket
import time
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from nmsfree.files import writing

FILE_VERSION = "brain.Event:2"  # the first record; from version 2 on, readers honour purges
COLORSPACE = 3  # of `Summary.Image`: RGB
JPEG_QUALITY = 92


class EventFile:
    """One new event file in a folder, made if missing; earlier files stay.

    Args:
        folder: what `tensorboard --logdir` is pointed at.
        purge_from: readers drop what earlier files say of this step and later ones; None: keep.

    Raises:
        InputError: the file cannot be written.
    """

    def __init__(self, folder: Path, purge_from: int | None = None) -> None:
        # Readers go through a folder's files by name: a later file needs a larger one. Their
        # common form has seconds here; the nanoseconds keep two files of one second in order.
        moment = time.time_ns()
        stamp = f"{moment // 10**9:010d}.{moment % 10**9:09d}"
        self._path = folder / f"events.out.tfevents.{stamp}.{socket.gethostname()}.{os.getpid()}"
        with writing(self._path):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = RecordWriter(self._path.open("xb"))
        self._write(Event(wall_time=time.time(), file_version=FILE_VERSION))
        if purge_from is not None:
            start = SessionLog(status=SessionLog.START)
            self._write(Event(wall_time=time.time(), step=purge_from, session_log=start))

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Add one point to each of the named curves."""
        points = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._add(points, step)

    def image(self, tag: str, picture: NDArray[np.uint8], step: int) -> None:
        """Add a picture.

        Args:
            tag: its name; pictures of one name and several steps get a slider.
            picture: uint8 [h, w, 3], BGR.
            step: where on the slider.
        """
        quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        _, encoded = cv2.imencode(".jpg", picture, quality)  # reads BGR, stores RGB
        height, width = picture.shape[:2]
        image = Summary.Image(
            height=height,
            width=width,
            colorspace=COLORSPACE,
            encoded_image_string=encoded.tobytes(),
        )
        self._add([Summary.Value(tag=tag, image=image)], step)

    def _add(self, values: list[Summary.Value], step: int) -> None:
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def _write(self, event: Event) -> None:
        with writing(self._path):
            self._file.write(event.SerializeToString())
            self._file.flush()

    def close(self) -> None:
        """Close the file; further calls do nothing."""
        if not self._file.closed:
            self._file.close()
