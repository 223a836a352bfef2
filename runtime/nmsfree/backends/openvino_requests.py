"""As many infer requests as runs go on at once: a thread takes one, and gives it back."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nmsfree.backends.forks import forked, never_free
from nmsfree.errors import ModelError


class Requests:
    """Infer requests of one compiled model.

    None of them belongs to a thread: one that is freed because its thread ends, in the moment in
    which another thread frees the model, can abort the process.
    """

    def __init__(self, compiled: Any) -> None:
        self._compiled: Any = compiled
        self._idle: list[Any] = []
        self._lock = threading.Lock()
        self._forked = False

    @contextmanager
    def take(self) -> Iterator[Any]:
        """A request for this thread alone; one that failed is not used again.

        Raises:
            ModelError: it is closed.
            EngineError: it was made before this process was forked.
        """
        with self._lock:
            if self._forked:
                raise forked("OpenVINO")
            if self._compiled is None:
                raise ModelError("the detector is closed: open it again")
            request = self._idle.pop() if self._idle else self._compiled.create_infer_request()
        yield request
        with self._lock:
            if self._compiled is not None:
                self._idle.append(request)

    def after_fork(self) -> None:
        """In a forked child: none of this may be used or freed."""
        never_free(self._compiled, *self._idle)
        self._idle, self._compiled, self._forked = [], None, True
        self._lock = threading.Lock()

    def close(self) -> None:
        """Free the model; runs that still go on finish first, and free theirs."""
        with self._lock:
            self._forked = False
            idle, self._idle, compiled, self._compiled = self._idle, [], self._compiled, None
        idle.clear()  # before the model
        del compiled
