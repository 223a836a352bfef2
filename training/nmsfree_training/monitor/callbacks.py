"""What a run tells its callbacks, how fast it goes by that, and how its numbers are written."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Clock = Callable[[], float]  # seconds from some moment on


@dataclass(frozen=True)
class StepEvent:
    """One optimizer step is done."""

    epoch: int  # from 0
    epochs: int  # of the whole run
    step: int  # within the epoch, 1 … `steps`
    steps: int  # of one epoch
    iteration: int  # optimizer steps done in the whole run, those before a resume included
    # Weighted means over the images of this step: "loss" (the total) and its parts "o2m_cls",
    # "o2m_box", "o2o_cls", "o2o_box", as far as the network has these heads. On a GPU they are
    # those of two steps before, and there are none in the first two.
    losses: dict[str, float]
    learning_rate: float  # of the first parameter group, as used in this step
    images: int  # images of this step, all processes together
    wait: float  # seconds of this step spent waiting for the loader
    seconds: float  # duration of the whole step, `wait` included
    # L2 norm of all gradients before clipping; None where it was not computed.
    grad_norm: float | None


@dataclass(frozen=True, eq=False)
class EpochEvent:
    """One epoch is done, and its evaluation where one was due."""

    # The line written to `metrics.jsonl`: "epoch" (from 1), mean losses over the epoch under the
    # names of `StepEvent.losses`, "lr" (of the last step), "seconds", "images_per_second",
    # "wait_share" (0 … 1, of the training time), where there are any "skipped" (steps whose
    # gradient was not finite, with fp16) and "left_out" (images that could not be used so far, of
    # the first process), and after an evaluation "AP", "AP50", … (0 … 1).
    record: dict[str, float]
    # (name, uint8 [h, w, 3] BGR) validation images with predictions drawn.
    pictures: tuple[tuple[str, NDArray[np.uint8]], ...]
    best: bool  # this epoch's weights are the best so far


class Callback:
    """Is told what a run does; never changes it. These do nothing: others override some."""

    def on_step(self, event: StepEvent) -> None:
        """Take note of an optimizer step."""

    def on_epoch(self, event: EpochEvent) -> None:
        """Take note of the end of an epoch, after its evaluation."""

    def on_evaluate(self, done: int, total: int) -> None:
        """Take note of images evaluated so far, of all to evaluate."""

    def log(self, text: str) -> None:
        """Pass on one line for the user: a resume, a fallback, a warning."""

    def close(self) -> None:
        """Release the screen or the file; called once or more, also after an error."""


class Callbacks(Callback):
    """Calls several, in their order; all are closed, the last first, even if one cannot be."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._callbacks = callbacks

    def on_step(self, event: StepEvent) -> None:
        for callback in self._callbacks:
            callback.on_step(event)

    def on_epoch(self, event: EpochEvent) -> None:
        for callback in self._callbacks:
            callback.on_epoch(event)

    def on_evaluate(self, done: int, total: int) -> None:
        for callback in self._callbacks:
            callback.on_evaluate(done, total)

    def log(self, text: str) -> None:
        for callback in self._callbacks:
            callback.log(text)

    def close(self) -> None:
        with ExitStack() as stack:
            for callback in self._callbacks:
                stack.callback(callback.close)


# In a record, what is neither a training loss nor a validation metric.
BOOKKEEPING = frozenset(
    {"epoch", "lr", "seconds", "images_per_second", "wait_share", "skipped", "left_out"}
)


def is_loss(name: str) -> bool:
    """Whether a name in a line of `metrics.jsonl` is a training loss: the total or a part."""
    return name == "loss" or name.endswith(("_cls", "_box"))


def is_metric(name: str) -> bool:
    """Whether a name in a line of `metrics.jsonl` is a validation metric ("AP", "AP50", …)."""
    return name not in BOOKKEEPING and not is_loss(name)


# Pace.

SHORT, LONG = 20, 500  # steps over which the shown rate and the remaining time are averaged


class RunningMean:
    """Mean of all values until there are `window` of them, then one that forgets old values.

    The first value only stands in until the second comes: a first step also warms caches up,
    picks convolution algorithms and starts workers.
    """

    def __init__(self, window: int) -> None:
        self.value, self.count, self._window = 0.0, 0, window

    def add(self, value: float) -> None:
        """Take in one value."""
        self.count += 1
        self.value += (value - self.value) / min(max(self.count - 1, 1), self._window)


class Pace:
    """How fast a run goes, how long it will take, and whether it waits for data.

    Follows the steps from wherever the run starts or resumes; the clock measures what lies between
    epochs.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._short = {name: RunningMean(SHORT) for name in ("seconds", "wait", "images")}
        self._step_seconds = RunningMean(LONG)
        self._losses: dict[str, RunningMean] = {}
        self._gaps: list[float] = []  # seconds of evaluation and saving after each epoch
        self._last_time = 0.0
        self._waited, self._worked, self._counted = 0.0, 0.0, 0
        self.last: StepEvent | None = None

    def step(self, event: StepEvent) -> None:
        """Take note of a step."""
        now = self._clock()
        if self.last is not None and self.last.epoch != event.epoch:
            self._gaps.append(max(0.0, now - self._last_time - event.seconds))
        self._step_seconds.add(event.seconds)
        for name, mean in self._short.items():
            mean.add(getattr(event, name))
        for name, value in event.losses.items():
            self._losses.setdefault(name, RunningMean(SHORT)).add(value)
        # The first one waits for the workers to start, however many there are.
        if event.step > 1 and self.last is not None:
            self._waited += event.wait
            self._worked += event.seconds
            self._counted += 1
        self.last, self._last_time = event, now

    @property
    def losses(self) -> dict[str, float]:
        """Losses averaged over the last steps."""
        return {name: mean.value for name, mean in self._losses.items()}

    @property
    def steps_per_second(self) -> float:
        """Over the last steps; 0 before the first."""
        return _ratio(1.0, self._short["seconds"].value)

    @property
    def images_per_second(self) -> float:
        """Over the last steps, of all processes together; 0 before the first."""
        return _ratio(self._short["images"].value, self._short["seconds"].value)

    @property
    def wait_share(self) -> float:
        """Share of the last steps' time spent waiting for data, 0 … 1."""
        return _ratio(self._short["wait"].value, self._short["seconds"].value)

    def steady_wait_share(self, steps: int, seconds: float) -> float:
        """Share of this session's time spent waiting for data, first steps of epochs left out.

        It is 0 until this many steps and seconds were seen.
        """
        enough = self._counted >= steps and self._worked >= seconds
        return _ratio(self._waited, self._worked) if enough else 0.0

    def remaining(self) -> float:
        """Seconds to the end of the run.

        Evaluation and saving count as they took so far in this session; before the end of its
        first epoch nothing is known of them and they are left out.
        """
        if self.last is None:
            return 0.0
        epochs = self.last.epochs - self.last.epoch - 1  # after this one
        steps = self.last.steps - self.last.step + epochs * self.last.steps
        training = steps * self._step_seconds.value
        if not self._gaps:
            return training
        gap = sum(self._gaps) / len(self._gaps)
        ended = self.last.step == self.last.steps
        spent = self._clock() - self._last_time if ended else 0.0
        return training + epochs * gap + max(0.0, gap - spent)


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0 else 0.0


# How numbers are written.

HOUR, DAY = 3600, 86400  # seconds


def clock_text(seconds: float) -> str:
    """Remaining time: "4:07", "1:02:03" from an hour on, "2 d 03 h" from two days on."""
    whole = max(0, round(seconds))
    if whole >= 2 * DAY:
        return f"{whole // DAY} d {whole % DAY // HOUR:02d} h"
    minutes, rest = divmod(whole, 60)
    if whole < HOUR:
        return f"{minutes}:{rest:02d}"
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def duration_text(seconds: float) -> str:
    """Time that something took: "8.4 s" below a minute, then as `clock_text`."""
    return f"{seconds:.1f} s" if seconds < 59.95 else clock_text(seconds)


def rate_text(per_second: float) -> str:
    """Steps in a second, "4.2 it/s", or seconds of a step where one takes longer, "3.1 s/it"."""
    slow = 0 < per_second < 1
    return f"{number_text(1 / per_second)} s/it" if slow else f"{number_text(per_second)} it/s"


def number_text(value: float) -> str:
    """About three digits: "0.31", "4.2", "67"."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 20 else f"{value:.{1 if abs(value) >= 1 else 2}f}"


def loss_text(value: float) -> str:
    """Three decimals, so that columns align; large losses in powers of ten."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.1e}"
