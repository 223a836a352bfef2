"""The measurement: calls timed in turn, one round after another.

All calls of a group are timed in one run. A round gives every call a turn on the same images, in
an order that is shuffled anew (with a fixed seed): a change of the machine's speed meets all calls
alike and none always follows the same other one. Raw times are kept.

A turn is a pause, a few untimed calls, then the timed ones: an application runs one model again
and again. Without the untimed calls a small model is charged for the caches and threads of the
engine before it (measured with two threads: 4.1 ms instead of 2.6 in ONNX Runtime, 17.6 instead of
8.2 in PyTorch). In the pause the idle worker threads of PyTorch and ONNX Runtime stop spinning,
which would take a core from the next engine.

Inside a timer: from the decoded picture in memory to detections in its pixels, on the host.
Outside: reading files, loading models, warm-up. Garbage collection is off meanwhile.
"""

import gc
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]  # [h, w, 3], BGR
Call = Callable[[Image], Sequence[int]]  # runs on an image; nanoseconds of each of its parts
Times = NDArray[np.int64]  # [timed calls, parts], nanoseconds
Nanoseconds = NDArray[np.int64]  # [timed calls]
Progress = Callable[[int, int], None]  # done, in all


class Laps(tuple[int, ...]):
    """Nanoseconds of the parts of a call, and the processor time of the whole process in it."""

    processor: int

    def __new__(cls, parts: Sequence[int], processor: int) -> "Laps":
        made = super().__new__(cls, parts)
        made.processor = processor
        return made


class Stopwatch:
    """Marks between the stages of one call; the parts sum to the whole by construction."""

    def __init__(self) -> None:
        self._marks: list[int] = []
        self._processor = 0

    def start(self) -> None:
        self._processor = time.process_time_ns()
        self._marks = [time.perf_counter_ns()]

    def mark(self) -> None:
        self._marks.append(time.perf_counter_ns())

    def laps(self) -> Laps:
        """Nanoseconds between the marks since `start`."""
        processor = time.process_time_ns() - self._processor
        parts = [b - a for a, b in zip(self._marks, self._marks[1:], strict=False)]
        return Laps(parts, processor)


def timed(
    run: Callable[[Any], object], prepare: Callable[[Image], Any] = lambda image: image
) -> Call:
    """Return a call that times `run` on what `prepare` makes of an image, which is not timed."""

    def call(image: Image) -> Laps:
        own = prepare(image)
        processor, start = time.process_time_ns(), time.perf_counter_ns()
        run(own)
        took = time.perf_counter_ns() - start
        return Laps((took,), time.process_time_ns() - processor)

    return call


def between_probes(call: Call, work: Call) -> Call:
    """A call whose parts are followed by the nanoseconds of the work before and after it."""

    def probed(image: Image) -> Sequence[int]:
        before = work(image)
        parts = call(image)
        both = [*parts, *before, *work(image)]
        return Laps(both, parts.processor) if isinstance(parts, Laps) else both

    return probed


def slots(count: int) -> list[Image]:
    """Placeholders for pictures: tiny arrays that say which prepared input to take."""
    return [np.full((1, 1, 3), number, dtype=np.uint8) for number in range(count)]


def on_slots(call: Callable[[Any], Sequence[int]], inputs: Sequence[Any]) -> Call:
    """A call that takes one of the inputs in place of its placeholder."""
    return lambda image: call(inputs[int(image[0, 0, 0])])


LEAST_ROUNDS = 3  # of which a median can be told, and no interval


@dataclass(frozen=True)
class Plan:
    seconds: float  # rounds are added while another one fits into this time
    min_rounds: int = 10  # min_rounds, max_rounds: bounds whatever the time, but for `limit`
    max_rounds: int = 400
    warmup_rounds: int = 1  # untimed ones at the start
    pause: float = 0.005  # seconds of idling before each turn
    lead_in: int = 0  # untimed calls of a turn
    burst: int = 1  # timed calls of a turn
    limit: float = math.inf  # seconds after which `LEAST_ROUNDS` are enough
    fixed: bool = False  # no fewer calls where `min_rounds` of them take longer than `seconds`

    def fitted(self, calls: float, turns: int) -> "Plan":
        """The plan for this machine, where one call of each takes so many seconds all together."""
        lead_in, burst = self.lead_in, self.burst
        while not self.fixed and lead_in + burst > 1:
            if self.min_rounds * ((lead_in + burst) * calls + turns * self.pause) <= self.seconds:
                break
            # At last a single lead-in call goes, too: it matters least where a call is long.
            if lead_in > 1 or burst == 1:
                lead_in -= 1
            else:
                burst -= 1
        return replace(self, lead_in=lead_in, burst=burst)


class Rounds(dict[str, Times]):
    """Raw times by name; row r of all calls is the same image of the same round."""

    burst: int = 1  # timed calls of a turn
    processor: dict[str, Nanoseconds]  # processor time, of calls that tell it

    def figures(self, name: str) -> dict[str, list[int]]:
        """What a record says of the processor time of its calls."""
        spent = self.processor.get(name)
        return {} if spent is None else {"processor_ns": spent.tolist()}


def take_turns(
    calls: Mapping[str, Call],
    images: Sequence[Image],
    plan: Plan,
    progress: Progress = lambda done, total: None,
) -> Rounds:
    """Time all calls, interleaved.

    Each round takes the next `burst` images, and starts over; `progress` hears of the rounds done
    and expected.
    """
    order = random.Random(0)
    names = list(calls)
    plan = _warm_up(calls, images, plan)
    times: dict[str, list[Sequence[int]]] = {name: [] for name in names}
    rounds, collects = 0, gc.isenabled()
    gc.collect()
    gc.disable()
    start = time.monotonic()
    try:
        while _goes_on(rounds, time.monotonic() - start, plan):
            order.shuffle(names)
            first = rounds * plan.burst
            turn = [images[i % len(images)] for i in range(first, first + plan.burst)]
            for name in names:
                time.sleep(plan.pause)
                for _ in range(plan.lead_in):
                    calls[name](turn[0])
                times[name] += [calls[name](image) for image in turn]
            rounds += 1
            progress(rounds, _expected(rounds, time.monotonic() - start, plan))
    finally:
        if collects:
            gc.enable()
    found = Rounds({name: np.array(times[name], dtype=np.int64) for name in calls})
    found.burst = plan.burst
    found.processor = {
        name: np.array([laps.processor for laps in own], np.int64)  # type: ignore[attr-defined]
        for name, own in times.items()
        if all(isinstance(laps, Laps) for laps in own)
    }
    return found


def _warm_up(calls: Mapping[str, Call], images: Sequence[Image], plan: Plan) -> Plan:
    """Run every call untimed; returns the plan that fits what they take."""

    def all_once(round_: int) -> float:
        start = time.monotonic()
        for call in calls.values():
            call(images[round_ % len(images)])
        return time.monotonic() - start

    took = 0.0
    for index in range(plan.warmup_rounds):
        took = all_once(index)
    if plan.fitted(took, len(calls)) != plan:  # first calls are slow ones: once more
        plan = plan.fitted(all_once(plan.warmup_rounds), len(calls))
    return plan


def _goes_on(rounds: int, elapsed: float, plan: Plan) -> bool:
    """Whether there is one more round: it is needed, or ends within the time."""
    if rounds < min(LEAST_ROUNDS, plan.min_rounds):
        return True
    after = elapsed * (rounds + 1) / rounds
    if rounds < plan.min_rounds:
        return after <= plan.limit
    return rounds < plan.max_rounds and after <= plan.seconds


def _expected(rounds: int, elapsed: float, plan: Plan) -> int:
    in_time, most = (seconds * rounds / elapsed for seconds in (plan.seconds, plan.limit))
    return int(max(rounds, min(plan.min_rounds, most), min(in_time, plan.max_rounds)))
