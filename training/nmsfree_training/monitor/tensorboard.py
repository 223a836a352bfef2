"""A run in TensorBoard: `tensorboard --logdir FOLDER`."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from nmsfree_training.monitor.callbacks import EpochEvent, StepEvent, is_metric

if TYPE_CHECKING:
    from nmsfree_training.monitor.event_file import EventFile


class TensorBoardWatcher:
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
        self._file: EventFile | None = None

    def on_step(self, event: StepEvent) -> None:
        """Add a point to the curves of training when one is due."""
        self._iteration = event.iteration
        self._steps.append(event)
        if event.iteration % self._every == 0 or event.step == event.steps:
            self._add_point()

    def on_epoch(self, event: EpochEvent) -> None:
        """Add the metrics and pictures of the epoch's evaluation."""
        metrics = {k: v for k, v in event.record.items() if is_metric(k)}
        if metrics:
            named = {f"val/{name}": value for name, value in metrics.items()}
            self._open().scalars(named, self._iteration)
        for name, picture in event.pictures:
            self._open().image(f"predictions/{name}", picture, self._iteration)

    def on_evaluate(self, done: int, total: int) -> None:
        """Do nothing: there is no curve of it."""

    def message(self, text: str) -> None:
        """Do nothing: it is for the console."""

    def close(self) -> None:
        """Write what is left and close the file."""
        self._add_point()
        if self._file is not None:
            self._file.close()

    def _add_point(self) -> None:
        if self._steps:
            named = {f"train/{k}": v for k, v in _summary(self._steps).items()}
            self._open().scalars(named, self._iteration)
            self._steps = []

    def _open(self) -> "EventFile":
        """The file of this session; its first call imports TensorBoard."""
        if self._file is None:
            from nmsfree_training.monitor.event_file import EventFile

            self._file = EventFile(self._folder, self._first + 1 if self._first else None)
        return self._file


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
