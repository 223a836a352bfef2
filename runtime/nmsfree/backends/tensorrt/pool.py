"""As many execution contexts as runs go on at once: a thread takes one, and gives it back.

A pool rather than one for each thread: a server that starts a thread per request would otherwise
make, and have to free, a context per request.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nmsfree.backends.base import forked
from nmsfree.backends.tensorrt.context import ExecutionContext
from nmsfree.cuda.base import free_all
from nmsfree.errors import EngineError, InputError, ModelError


class ContextPool:
    """A pool of execution contexts, one kind for images on the host, one for images on the GPU.

    Args:
        make: is told whether the images are on the GPU.
        finish: is called once, when the pool is closed and the last context is free.
        most: contexts of both kinds together; further threads wait, first come, first served.
    """

    def __init__(
        self,
        make: Callable[[bool], ExecutionContext],
        finish: Callable[[], None],
        most: int,
    ) -> None:
        self._make, self._finish, self._most = make, finish, most
        self._made = 0
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._waiting: deque[object] = deque()
        self._idle: dict[bool, list[ExecutionContext]] = {False: [], True: []}
        self._busy = 0
        self._closed = False
        self._forked: EngineError | None = None

    @contextmanager
    def take(self, from_device: bool) -> Iterator[ExecutionContext]:
        """A context for this thread alone; one that failed is freed, not used again.

        ModelError: the pool is closed. EngineError: it was made before this process was forked, or
        a new context cannot be made.
        """
        context = self._acquire(from_device)
        healthy = False
        try:
            yield context
            healthy = True
        except InputError:
            healthy = True  # the images were refused before anything ran
            raise
        finally:
            self._release(context, from_device, healthy)

    def _acquire(self, from_device: bool) -> ExecutionContext:
        with self._lock:
            self._wait_for_turn()
            self._busy += 1
            if self._idle[from_device]:
                return self._idle[from_device].pop()
            # One of the other kind makes room.
            other = None if self._made < self._most else self._idle[not from_device].pop()
            self._made += other is None
        try:
            if other is not None:
                other.close()
            return self._make(from_device)
        except BaseException:
            self._gone()
            self._leave()
            raise

    def _wait_for_turn(self) -> None:
        """Wait, while `_lock` is held, until a context is idle or may be made."""
        me = object()
        self._waiting.append(me)
        try:
            while not self._closed and (
                self._waiting[0] is not me
                or not (self._made < self._most or any(self._idle.values()))
            ):
                self._changed.wait()
        finally:
            self._waiting.remove(me)
            self._changed.notify_all()
        if self._forked is not None:
            raise self._forked
        if self._closed:
            raise ModelError("the detector is closed: open it again")

    def _gone(self) -> None:
        with self._lock:
            self._made -= 1
            self._changed.notify_all()

    def _release(self, context: ExecutionContext, from_device: bool, healthy: bool) -> None:
        with self._lock:
            keep = healthy and not self._closed
            if keep:
                self._idle[from_device].append(context)
                self._changed.notify_all()
        try:
            if not keep:
                try:
                    context.close()
                finally:
                    self._gone()
        except EngineError:
            if healthy:  # else the run has failed already, and its error says more
                raise
        finally:
            self._leave()

    def _leave(self) -> None:
        with self._lock:
            self._busy -= 1
            last = self._closed and self._busy == 0
        if last:
            self._finish()

    def after_fork(self, engine: str) -> None:
        """In a forked child: none of this may be used or freed."""
        self._closed, self._forked = True, forked(engine)
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)

    def close(self) -> None:
        """Free the contexts that are idle; those at work finish their run and are freed then."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
            self._busy += 1  # this call itself, so that `finish` comes last
            idle = [context for contexts in self._idle.values() for context in contexts]
            self._idle = {False: [], True: []}
        free_all([*(context.close for context in idle), self._leave])
