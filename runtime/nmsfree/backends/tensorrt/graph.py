"""CUDA graphs of one engine: whether its runs replay one, and how one is recorded.

TensorRT-RTX records by itself, and goes on without a graph where it cannot; with full TensorRT the
recording is ours. Either way it is known once a run has warmed up, not before.
"""

import logging
import threading
from collections.abc import Callable
from contextlib import suppress

from nmsfree.backends.tensorrt.log import Message
from nmsfree.cuda.base import Cuda, Graph, Stream
from nmsfree.errors import EngineError

_logger = logging.getLogger(__name__)
# "The engine is not graph capturable. Falling back to not using CUDA graphs.", a warning.
FALLS_BACK = "not graph capturable"


class GraphUse:
    """What the threads that run an engine found out about its CUDA graph.

    One that failed counts for all: nobody is promised a graph that some runs do without.

    Args:
        possible: False where there can be none.
    """

    def __init__(self, possible: bool) -> None:
        self._lock = threading.Lock()
        self._used: bool | None = None if possible else False

    @property
    def used(self) -> bool | None:
        """Whether runs replay a graph; None: nothing has been run yet."""
        return self._used

    def works(self) -> None:
        """A graph is there."""
        with self._lock:
            if self._used is None:
                self._used = True

    def fails(self, why: object) -> None:
        """There is none; the first to notice warns of it."""
        with self._lock:
            news = self._used is not False
            self._used = False
        if news:
            _logger.warning("no CUDA graph, runs take a little longer: %s", why)


def falls_back(messages: list[Message]) -> bool:
    """Whether TensorRT-RTX said that it does without a graph; it does not say of which engine."""
    return any(FALLS_BACK in message.text for message in messages)


def record(cuda: Cuda, work: Callable[[Stream], None]) -> Graph:
    """Record work as a CUDA graph, in a stream that nobody else puts work into.

    Raises:
        EngineError: it cannot be recorded; the thread may go on without.
    """
    private = cuda.create_stream()
    try:
        cuda.begin_capture(private)
        try:
            work(private)
        except BaseException:
            with suppress(EngineError):  # an open recording forbids this thread to allocate
                cuda.destroy_graph(cuda.end_capture(private))
            raise
        return cuda.end_capture(private)
    finally:
        cuda.destroy_stream(private)
