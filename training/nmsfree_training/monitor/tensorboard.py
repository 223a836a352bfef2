"""A run in TensorBoard: `tensorboard --logdir FOLDER`.

The event file is written with the message types that TensorBoard itself brings. Neither
`torch.utils.tensorboard` nor TensorBoard's own writer will do: both import TensorFlow where it is
installed, which takes seconds and prints warnings, and write from a thread, which loader workers
are then forked beside. Each event is in the file when the call returns, so a killed run loses none.
"""

import math
import os
import socket
import time
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from nmsfree.files import writing
from nmsfree_training.monitor.callbacks import Callback, EpochEvent, StepEvent, is_metric

FILE_VERSION = "brain.Event:2"  # the first record; from version 2 on, readers honour purges
COLORSPACE = 3  # of `Summary.Image`: RGB
JPEG_QUALITY = 92


class TensorBoardCallback(Callback):
    """Writes curves and pictures; the x-axis is the number of optimizer steps.

    `train/…` holds the losses, `lr`, `grad_norm`, `images_per_second`, `wait_share` and `epoch`,
    each a mean over `every` steps (the rate and the epoch: of the last of them); `val/…` the
    metrics of each evaluation, `predictions/…` its pictures. Nothing is written, and TensorBoard
    not imported, before the first event.

    Args:
        folder: for the event file, made if missing. One file is added for each session.
        iteration: optimizer steps done when this session starts: of a resumed run, what was
            written after that step is no longer shown.
        every: optimizer steps between two points.
    """

    def __init__(self, folder: Path, iteration: int = 0, every: int = 10) -> None:
        self._folder, self._every = folder, every
        self._first = self._iteration = iteration
        self._steps: list[StepEvent] = []  # since the last point
        self._opened: EventFile | None = None

    @property
    def _file(self) -> "EventFile":
        if self._opened is None:
            self._opened = EventFile(self._folder, self._first + 1 if self._first else None)
        return self._opened

    def on_step(self, event: StepEvent) -> None:
        """Add a point to the curves of training when one is due."""
        self._iteration = event.iteration
        self._steps.append(event)
        if event.iteration % self._every == 0 or event.step == event.steps:
            self._add_point()

    def on_epoch(self, event: EpochEvent) -> None:
        """Add the metrics and pictures of the epoch's evaluation."""
        metrics = {f"val/{k}": v for k, v in event.record.items() if is_metric(k)}
        if metrics:
            self._file.scalars(metrics, self._iteration)
        for name, picture in event.pictures:
            self._file.image(f"predictions/{name}", picture, self._iteration)

    def close(self) -> None:
        """Write what is left and close the file."""
        self._add_point()
        if self._opened is not None:
            self._opened.close()

    def _add_point(self) -> None:
        if self._steps:
            named = {f"train/{k}": v for k, v in _summary(self._steps).items()}
            self._file.scalars(named, self._iteration)
            self._steps = []


def _summary(steps: list[StepEvent]) -> dict[str, float]:
    """One point of each curve, from one step or more."""
    last, seconds = steps[-1], sum(s.seconds for s in steps)
    names = dict.fromkeys(name for step in steps for name in step.losses)
    point = {name: _mean([s.losses[name] for s in steps if name in s.losses]) for name in names}
    point |= {"lr": last.learning_rate, "epoch": last.epoch + (last.step / last.steps)}
    norms = [s.grad_norm for s in steps if s.grad_norm is not None]
    if norms:
        # A skipped fp16 step (its norm is infinite) must not hide the others.
        point["grad_norm"] = _mean([n for n in norms if math.isfinite(n)] or norms)
    if seconds > 0:
        point["images_per_second"] = sum(s.images for s in steps) / seconds
        point["wait_share"] = sum(s.wait for s in steps) / seconds
    return point


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


class EventFile:
    """One new event file in a folder, made if missing; earlier files stay.

    Readers drop what earlier files say of the step `purge_from` and later ones.

    Raises:
        InputError: the file cannot be written.
    """

    def __init__(self, folder: Path, purge_from: int | None = None) -> None:
        # Takes 0.2 s: not before there is something to write.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        # Readers go through a folder's files by name: a later file needs a larger one. Their
        # common form has seconds here; the nanoseconds keep two files of one second in order.
        moment = time.time_ns()
        stamp = f"{moment // 10**9:010d}.{moment % 10**9:09d}"
        self._path = folder / f"events.out.tfevents.{stamp}.{socket.gethostname()}.{os.getpid()}"
        with writing(self._path):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = RecordWriter(self._path.open("xb"))
        self._write(file_version=FILE_VERSION)
        if purge_from is not None:
            self._write(step=purge_from, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Add one point to each of the named curves."""
        points = [self._summary.Value(tag=tag, simple_value=v) for tag, v in values.items()]
        self._write(step=step, summary=self._summary(value=points))

    def image(self, tag: str, picture: NDArray[np.uint8], step: int) -> None:
        """Add a picture, uint8 [h, w, 3] BGR; those of one tag and several steps get a slider."""
        quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        _, encoded = cv2.imencode(".jpg", picture, quality)  # reads BGR, stores RGB
        image = self._summary.Image(
            height=picture.shape[0],
            width=picture.shape[1],
            colorspace=COLORSPACE,
            encoded_image_string=encoded.tobytes(),
        )
        value = self._summary.Value(tag=tag, image=image)
        self._write(step=step, summary=self._summary(value=[value]))

    def _write(self, **event: object) -> None:
        with writing(self._path):
            self._file.write(self._event(wall_time=time.time(), **event).SerializeToString())
            self._file.flush()

    def close(self) -> None:
        """Close the file; further calls do nothing."""
        if not self._file.closed:
            self._file.close()
