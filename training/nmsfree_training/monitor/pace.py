"""How fast a run goes, how long it will take, and whether it waits for data."""

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import psutil
import torch

from nmsfree_training.monitor.callbacks import StepEvent

SHORT, LONG = 20, 500  # steps over which the shown rate and the remaining time are averaged


class RunningMean:
    """Mean of all values until there are `window` of them, then one that forgets old values.

    The first value only stands in until the second comes: a first step also warms caches up,
    picks convolution algorithms and starts workers.
    """

    def __init__(self, window: int) -> None:
        self.value = 0.0
        self.count = 0
        self._window = window

    def add(self, value: float) -> None:
        """Take in one value."""
        self.count += 1
        self.value += (value - self.value) / min(max(self.count - 1, 1), self._window)


class Pace:
    """Follows the steps of a run, from wherever it starts or resumes.

    Args:
        clock: seconds from some moment on; measures what lies between epochs.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
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

    def epoch_remaining(self) -> float:
        """Seconds to the last step of this epoch."""
        if self.last is None:
            return 0.0
        return (self.last.steps - self.last.step) * self._step_seconds.value

    def remaining(self) -> float:
        """Seconds to the end of the run.

        Evaluation and saving count as they took so far in this session; before the end of its
        first epoch nothing is known of them and they are left out.
        """
        if self.last is None:
            return 0.0
        epochs = self.last.epochs - self.last.epoch - 1  # after this one
        training = self.epoch_remaining() + epochs * self.last.steps * self._step_seconds.value
        if not self._gaps:
            return training
        gap = sum(self._gaps) / len(self._gaps)
        ended = self.last.step == self.last.steps
        spent = self._clock() - self._last_time if ended else 0.0
        return training + epochs * gap + max(0.0, gap - spent)


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0 else 0.0


@dataclass(frozen=True)
class MemoryUse:
    """In bytes.

    Attributes:
        ram: of this process and its children. Pages that several of them share count once
            where the system tells (Linux), and in each of them elsewhere.
        gpu: reserved by this process on its present CUDA device; None without one.
        gpu_total: of that device; None without one.
    """

    ram: int
    gpu: int | None
    gpu_total: int | None


class MemoryMeter:
    """Measures at most every `every` seconds: listing a large server's processes takes long."""

    def __init__(self, every: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._every, self._clock = every, clock
        self._next = -float("inf")
        self._use = MemoryUse(0, None, None)

    def read(self) -> MemoryUse:
        """Return the last measurement, taken now if it is due."""
        now = self._clock()
        if now >= self._next:
            self._use, self._next = _measure(), now + self._every
        return self._use


def _measure() -> MemoryUse:
    process = psutil.Process()
    total = 0
    for one in (process, *process.children(recursive=True)):
        with suppress(psutil.Error):  # a worker may end meanwhile
            total += _ram(one)
    # Asking for the device would initialise CUDA in a process that trains on the CPU.
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return MemoryUse(total, None, None)
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return MemoryUse(total, torch.cuda.memory_reserved(), int(properties.total_memory))


def _ram(process: psutil.Process) -> int:
    if psutil.LINUX:
        with suppress(psutil.AccessDenied):  # some containers hide how pages are shared
            return int(process.memory_full_info().pss)
    return int(process.memory_info().rss)


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
    if 0 < per_second < 1:
        return f"{number_text(1 / per_second)} s/it"
    return f"{number_text(per_second)} it/s"


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


def gigabytes_text(count: int) -> str:
    """Bytes as "1.4" gigabytes."""
    return f"{count / 1e9:.1f}"
