"""How fast a run goes, how long it will take, and whether it waits for data."""

import time
from collections.abc import Callable

from nmsfree_training.events import StepEvent

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
