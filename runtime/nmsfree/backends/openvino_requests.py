"""As many infer requests as runs go on at once: a thread takes one, and gives it back."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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

    @contextmanager
    def take(self) -> Iterator[Any]:
        """A request for this thread alone.

        Raises:
            ModelError: it is closed.
        """
        with self._lock:
            if self._compiled is None:
                raise ModelError("the detector is closed: open it again")
            request = self._idle.pop() if self._idle else self._compiled.create_infer_request()
        try:
            yield request
        finally:
            with self._lock:
                if self._compiled is not None:
                    self._idle.append(request)

    def close(self) -> None:
        """Free the model; runs that still go on finish first, and free theirs."""
        with self._lock:
            idle, self._idle, compiled, self._compiled = self._idle, [], self._compiled, None
        idle.clear()  # before the model
        del compiled
