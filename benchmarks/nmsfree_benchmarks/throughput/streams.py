"""Several threads that share one Detector, each as fast as it can, for a fixed time."""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from nmsfree.detector import Detector
from nmsfree_benchmarks.machine.measure import Image


@dataclass(frozen=True)
class Window:
    """What one fixed time gave.

    Attributes:
        elapsed_ns: from the common start to the end of the last call.
        images: that were finished.
        processor_ns: processor time of the whole process, spinning threads included.
        calls_ns: how long every call took.
    """

    elapsed_ns: int
    images: int
    processor_ns: int
    calls_ns: tuple[int, ...]


def run_window(
    detector: Detector, pictures: Sequence[Image], batch: int, streams: int, seconds: float
) -> Window:
    """Let threads call `detector.batch` until the time is over; a call that has begun is finished.

    Args:
        pictures: BGR uint8 [h, w, 3]; every stream begins with another one.
        batch: images of a call.
        streams: threads.
    """
    clock = _Clock(streams, seconds)
    with ThreadPoolExecutor(streams, thread_name_prefix="nmsfree-stream") as pool:
        running = [
            pool.submit(_stream, detector, _turn(pictures, number, batch), clock)
            for number in range(streams)
        ]
        found = [stream.result() for stream in running]
    calls = tuple(nanoseconds for one, _ in found for nanoseconds in one)
    elapsed = max(end for _, end in found) - clock.start
    return Window(elapsed, batch * len(calls), time.process_time_ns() - clock.processor, calls)


class _Clock:
    """One start for all threads, once the last of them is there."""

    def __init__(self, streams: int, seconds: float) -> None:
        self.start = self.end = self.processor = 0
        self._seconds = seconds
        self._gate = threading.Barrier(streams, action=self._set)

    def wait(self) -> None:
        self._gate.wait()

    def _set(self) -> None:
        self.processor = time.process_time_ns()
        self.start = time.perf_counter_ns()
        self.end = self.start + int(self._seconds * 1e9)


def _stream(detector: Detector, batches: list[list[Image]], clock: _Clock) -> tuple[list[int], int]:
    """Call until the time is over; nanoseconds of each call, and when the last one ended."""
    calls: list[int] = []
    clock.wait()
    before = clock.start
    while before < clock.end:
        detector.batch(batches[len(calls) % len(batches)])
        after = time.perf_counter_ns()
        calls.append(after - before)
        before = after
    return calls, before


def _turn(pictures: Sequence[Image], first: int, batch: int) -> list[list[Image]]:
    """Batches of the pictures, in turn; every picture leads one of them."""
    count = len(pictures)
    return [[pictures[(first + start + i) % count] for i in range(batch)] for start in range(count)]
