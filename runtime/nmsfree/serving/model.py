"""One model at work: its detector, who may ask it, and whether it still answers as it should."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from nmsfree.detector import Detector
from nmsfree.errors import EngineError, NmsfreeError
from nmsfree.images import Reduce, Reduction
from nmsfree.machine import processors
from nmsfree.preprocess import reduction_for
from nmsfree.serving.batching import Batches
from nmsfree.serving.metrics import Metrics
from nmsfree.serving.options import Limits
from nmsfree.text import shown

logger = logging.getLogger(__name__)

MISSED = 3  # canaries in a row without an answer: the engine hangs


class Refused(Exception):
    """A request that is not served, with the HTTP status that says why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Served:
    """A detector behind a name.

    Args:
        detector: its file must have a canary, which is run at once.
        threads: runs at once.
        reduced: decode JPEGs at a part of their size.

    Raises:
        ModelError: the file has no canary.
        EngineError: it answers the canary wrong.
    """

    def __init__(
        self,
        name: str,
        detector: Detector,
        threads: int,
        limits: Limits,
        metrics: Metrics,
        reduced: bool = False,
    ) -> None:
        self.name, self.detector, self._limits, self._metrics = name, detector, limits, metrics
        self.reduction: Reduction | Reduce = reduction_for(detector.spec) if reduced else 1
        self._admitted = 0
        self._problem, self._checked = "", 0.0
        found = detector.self_check()
        if not found.ok:
            raise EngineError(
                f"{shown(name)}: {found}: this engine is not to be trusted with this file"
            )
        self._note("")
        stages = {
            s: metrics.stages.labels(name, s) for s in ("receive", "decode", "queue", "network")
        }
        self._observers = stages | {"batch": metrics.batches.labels(name)}
        most = min(limits.max_batch, detector.spec.batch or limits.max_batch)
        self.capacity = threads * most  # pictures in the engine
        # One picture a run, and a run for each processor: a thread that decodes gains nothing.
        self.decodes = most == 1 and threads >= processors()
        self.batches = Batches(detector, threads, most, limits.max_wait_ms / 1000, self.observe)

    def observe(self, what: str, value: float) -> None:
        """Count the seconds of a stage, or the pictures of a "batch"."""
        self._observers[what].observe(value)

    @property
    def ready(self) -> bool:
        """Whether the canary was answered right, and lately."""
        overdue = time.monotonic() - self._checked > MISSED * self._limits.canary_seconds
        return not self._problem and not overdue

    def check(self) -> None:
        """Run the canary; a wrong answer takes the model out of service until a right one."""
        try:
            problem = self.detector.self_check().problem
        except NmsfreeError as error:
            problem = str(error)
        if problem and not self._problem:
            logger.error("%s: not ready: its canary: %s", shown(self.name), problem)
        elif self._problem and not problem:
            logger.warning("%s: ready again", shown(self.name))
        self._note(problem)

    def _note(self, problem: str) -> None:
        self._problem, self._checked = problem, time.monotonic()
        self._metrics.ready.labels(self.name).set(not problem)

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Count a request while it is in work; refuse it where that is too much."""
        if not self.ready:
            reason = self._problem or "its canary got no answer"
            raise Refused(503, f"model {self.name!r} is not ready: {reason}")
        if self._admitted >= self._limits.max_queue:
            raise Refused(503, f"{self._admitted} requests are in work: try again later")
        self._admitted += 1
        self._metrics.admitted.labels(self.name).set(self._admitted)
        try:
            yield
        finally:
            self._admitted -= 1
            self._metrics.admitted.labels(self.name).set(self._admitted)

    def close(self) -> None:
        """Finish what waits and free the engine."""
        self.batches.close()
        self.detector.close()
