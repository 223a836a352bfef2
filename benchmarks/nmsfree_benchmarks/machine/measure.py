"""The measurement: calls timed in turn, one round after another, and what the times say.

All calls of a group are timed in one run. A round gives every call a turn on the same images, in
an order that is shuffled anew (with a fixed seed), so that a change of the machine's speed meets
all calls alike and none always follows the same other one. Raw times are kept.

A turn is a pause, a few untimed calls, then the timed ones: an application runs one model again
and again. Without the untimed calls a small model is charged for the caches and threads of the
engine before it (measured with two threads: 4.1 ms instead of 2.6 in ONNX Runtime, 17.6 instead of
8.2 in PyTorch).

Inside a timer: from the decoded picture in memory to detections in its pixels, on the host.
Outside: reading files, loading models, warm-up. Garbage collection is off while times are taken.
The pause is there because the idle worker threads of PyTorch and ONNX Runtime spin for a moment
and would take a core from the next engine.
"""

import gc
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

STAGES = ("preprocess", "network", "postprocess")
# Calls that a percentile needs. With fewer it is little more than the slowest call, which says
# nothing of a tail: of 100 calls one lies beyond the p99, of 20 one beyond the p95, two the p90.
CALLS_FOR = {90: 20, 95: 20, 99: 100}
WIDE_SPREAD = 0.10  # interquartile range / median above which a measurement distrusts itself

Image = NDArray[np.uint8]  # [h, w, 3], BGR
Call = Callable[[Image], Sequence[int]]  # runs on an image; nanoseconds of each of its parts
Times = NDArray[np.int64]  # [timed calls, parts], nanoseconds


class Stopwatch:
    """Marks between the stages of one call; the parts sum to the whole by construction."""

    def __init__(self) -> None:
        self._marks: list[int] = []

    def start(self) -> None:
        self._marks = [time.perf_counter_ns()]

    def mark(self) -> None:
        self._marks.append(time.perf_counter_ns())

    def laps(self) -> list[int]:
        """Nanoseconds between the marks since `start`."""
        return [b - a for a, b in zip(self._marks, self._marks[1:], strict=False)]


@dataclass(frozen=True)
class Plan:
    """How long and how often.

    Attributes:
        seconds: rounds are added while another one fits into this time.
        min_rounds, max_rounds: bounds whatever the time.
        warmup_rounds: untimed rounds at the start.
        pause: seconds of idling before each turn.
        lead_in, burst: untimed and timed calls of a turn.
    """

    seconds: float
    min_rounds: int = 10
    max_rounds: int = 400
    warmup_rounds: int = 1
    pause: float = 0.005
    lead_in: int = 0
    burst: int = 1


def take_turns(
    calls: Mapping[str, Call],
    images: Sequence[Image],
    plan: Plan,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Times]:
    """Time all calls, interleaved.

    Args:
        calls: by name.
        images: distinct pictures; each round takes the next `plan.burst` of them, and starts over.
        progress: called as (rounds done, rounds expected) after each round.

    Returns:
        Per call its raw times; row r is the same image of the same round for every call.
    """
    order = random.Random(0)
    names = list(calls)
    for index in range(plan.warmup_rounds):
        for name in names:
            calls[name](images[index % len(images)])
    times: dict[str, list[Sequence[int]]] = {name: [] for name in names}
    start = time.monotonic()
    rounds = 0
    with collector_off():
        while rounds < plan.min_rounds or _fits(rounds, time.monotonic() - start, plan):
            order.shuffle(names)
            first = rounds * plan.burst
            turn = [images[i % len(images)] for i in range(first, first + plan.burst)]
            for name in names:
                time.sleep(plan.pause)
                times[name] += _take_turn(calls[name], turn, plan.lead_in)
            rounds += 1
            progress(rounds, _expected(rounds, time.monotonic() - start, plan))
    return {name: np.array(times[name], dtype=np.int64) for name in calls}


def _take_turn(call: Call, images: Sequence[Image], lead_in: int) -> list[Sequence[int]]:
    for _ in range(lead_in):
        call(images[0])
    return [call(image) for image in images]


def _fits(rounds: int, elapsed: float, plan: Plan) -> bool:
    """Whether one more round ends within the time."""
    return rounds < plan.max_rounds and elapsed * (rounds + 1) / rounds <= plan.seconds


def _expected(rounds: int, elapsed: float, plan: Plan) -> int:
    in_time = int(plan.seconds * rounds / elapsed)
    return max(rounds, plan.min_rounds, min(in_time, plan.max_rounds))


@contextmanager
def collector_off() -> Iterator[None]:
    """Switch garbage collection off, and back on if it was."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@dataclass(frozen=True)
class Summary:
    """What the totals of one call say.

    Attributes:
        p50, p90, p99: percentiles in milliseconds, linear between neighbours; None where there are
            not the calls for one, see `CALLS_FOR`.
        spread: interquartile range / median.
        drift: median of the last third by that of the first, minus 1; 0 for fewer than 6 calls.
    """

    p50: float
    p90: float | None
    p99: float | None
    spread: float
    drift: float = 0.0

    @property
    def fps(self) -> float:
        """Images in a second, one after another: 1 / median."""
        return 1000 / self.p50

    @property
    def fps_text(self) -> str:
        """FPS with one decimal, with two below 10: large networks on processors differ there."""
        return f"{self.fps:.1f}" if self.fps >= 10 else f"{self.fps:.2f}"

    @property
    def percentiles(self) -> tuple[float, float | None, float | None]:
        return self.p50, self.p90, self.p99

    @property
    def trusted(self) -> bool:
        return self.spread <= WIDE_SPREAD


def summarize(times: Times) -> Summary:
    """Summarise the totals of raw times [rounds, parts]."""
    totals = times.sum(axis=1) / 1e6
    p25, p50, p75 = np.percentile(totals, (25, 50, 75)).tolist()
    p90, p99 = percentile(totals, 90), percentile(totals, 99)
    return Summary(p50, p90, p99, (p75 - p25) / p50, _drift(totals))


def percentile(values: NDArray[np.float64], percent: int) -> float | None:
    """Return a percentile of `CALLS_FOR`; None of fewer values than it needs."""
    if len(values) < CALLS_FOR[percent]:
        return None
    return float(np.percentile(values, percent))


def _drift(totals: NDArray[np.float64]) -> float:
    third = len(totals) // 3
    if third < 2:
        return 0.0
    return float(np.median(totals[-third:]) / np.median(totals[:third]) - 1)


def shares(times: Times, in_graph: Times | None = None) -> dict[str, float]:
    """Share of each stage, 0 … 1, summing to 1; from the medians of the stages.

    Args:
        times: [rounds, 3]. Eager: preprocess, network, post-processing. ONNX Runtime:
            preprocess, the whole graph, mapping to source pixels.
        in_graph: times [rounds, 1] of the part of that graph behind the head's raw maps, run by
            itself in the same rounds. It is taken off the graph's time and counted as
            post-processing; the rest is the network. (The other way round, timing the network's
            part alone and taking the difference, would drown a millisecond in the noise of
            hundreds.)
    """
    preprocess, network, postprocess = np.median(times, axis=0).tolist()
    if in_graph is not None:
        part = min(network, float(np.median(in_graph)))
        network, postprocess = network - part, postprocess + part
    total = preprocess + network + postprocess
    parts = (preprocess, network, postprocess)
    return {stage: part / total for stage, part in zip(STAGES, parts, strict=True)}


def ratio(times: Times, reference: Times) -> float:
    """Median total of `times` by that of `reference`."""
    return float(np.median(times.sum(axis=1)) / np.median(reference.sum(axis=1)))
