"""Requests joined into batches, which threads give to one detector."""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from nmsfree.detector import Detector, Threshold
from nmsfree.errors import EngineError
from nmsfree.preprocess import in_file


class Look(NamedTuple):
    """How a picture is looked at, see `Detector.batch`; only pictures of one look share a run."""

    threshold: Threshold | None = None
    classes: tuple[str | int, ...] | None = None
    max_detections: int | None = None


@dataclass(eq=False)
class _Job:
    """What `decode_image` gives for a picture; without a look the model's input [N, H, W, 3]."""

    load: Callable[[], Any]
    look: Look | None
    answer: Future[Any] = field(default_factory=Future)
    since: float = field(default_factory=time.perf_counter)


class Batches:
    """Threads that run one detector on what waits.

    Args:
        detector: several threads call it.
        threads: how many.
        most: pictures of a run.
        wait: seconds for which the first picture of a run waits for others, where `most` is not 1.
        observe: called with "queue" and the seconds that a picture waited, "network" and the
            seconds of a run, "batch" and its pictures.
    """

    def __init__(
        self,
        detector: Detector,
        threads: int,
        most: int,
        wait: float,
        observe: Callable[[str, float], None],
    ) -> None:
        self._detector, self._most, self._wait, self._observe = detector, most, wait, observe
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._choosing = threading.Lock()  # one thread at a time fills a batch
        self._closed = False
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def add(self, load: Callable[[], Any], look: Look | None) -> Future[Any]:
        """Have a picture looked at that `load` decodes: its (height, width) and `Detections`.

        Without a look it is an input, and the answer `RawDetections`. One that is cancelled before
        its turn is passed over.
        """
        job = _Job(load, look)
        with self._changed:
            if self._closed:
                raise EngineError("the server is closed")
            self._waiting.append(job)
            self._changed.notify()
        return job.answer

    def close(self) -> None:
        """Finish what waits, then end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while jobs := self._next():
            taken = time.perf_counter()
            jobs = [job for job in jobs if job.answer.set_running_or_notify_cancel()]
            if not jobs:
                continue
            for job in jobs:
                self._observe("queue", taken - job.since)
            try:
                loaded = [job.load() for job in jobs]
                start = time.perf_counter()
                answers = self._run(loaded, jobs[0].look)
            except Exception as error:  # noqa: BLE001 (whoever asked is told)
                for job in jobs:
                    job.answer.set_exception(error)
                continue
            self._observe("network", time.perf_counter() - start)
            self._observe("batch", len(jobs))
            for job, answer in zip(jobs, answers, strict=True):
                job.answer.set_result(answer)

    def _run(self, loaded: list[Any], look: Look | None) -> list[Any]:
        if look is None:
            return [self._detector.backend.run(loaded[0])]
        found = self._detector.batch([image for image, _ in loaded], **look._asdict())
        return [
            (size, in_file(one, image, size))
            for one, (image, size) in zip(found, loaded, strict=True)
        ]

    def _next(self) -> list[_Job]:
        """Wait for the next picture, and for others with its look; nothing at the end."""
        with self._choosing, self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if not self._waiting:
                return []
            jobs = [self._waiting.popleft()]
            until = jobs[0].since + self._wait
            while jobs[0].look is not None and len(jobs) < self._most:
                if not self._waiting:
                    left = until - time.perf_counter()
                    if self._closed or left <= 0:
                        break
                    self._changed.wait(left)
                elif self._waiting[0].look == jobs[0].look:
                    jobs.append(self._waiting.popleft())
                else:
                    break
            return jobs
