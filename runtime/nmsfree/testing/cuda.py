"""CUDA without a GPU, for tests: memory is numpy's, and streams are as lazy as real ones.

Work put into a stream is done when somebody waits for the stream, not before: code that forgets to
wait, or overwrites a buffer that is still to be read, gets wrong numbers here too. It refuses what
a real GPU would crash on: calls without a context, unknown or freed addresses, copies past the end,
copies of memory that is not page-locked. It counts what is alive.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmsfree.cuda.base import DeviceMemory, Event, Graph, Stream, cuda_error, stream_handle

Work = Callable[[], None]
FIRST_ADDRESS = 0x7F00_0000_0000
ALIGNMENT = 512  # bytes, CUDA's

# All of them but `active` need a context.
CALLS = "active create_stream synchronize wait_for destroy_stream free_memory allocate free"
CALLS += " allocate_pinned free_pinned copy_in copy_out create_event record elapsed_ms"
CALLS += " destroy_event begin_capture end_capture launch destroy_graph enqueue gpu_of"


class FakeCuda:
    """`base.Cuda` on numpy arrays; `can_capture=False` behaves as pycuda, which has no graphs."""

    def __init__(self, index: int = 0, sm: int = 89, can_capture: bool = True) -> None:
        self.name, self.index, self.can_capture = "fake CUDA", index, can_capture
        self.alive: Counter[str] = Counter()  # streams, events, graphs, allocations that exist
        self.done: Counter[str] = Counter()  # operations, by their kind
        self.fail: set[str] = set()  # those of `CALLS` that fail from now on
        self.elsewhere: dict[int, int] = {}  # addresses that are on another GPU, and on which
        self.room = 1 << 33  # bytes that are free
        self.closed = False
        self._sm = sm
        self._depth = threading.local()
        self._lock = threading.RLock()
        self._queues: dict[int, list[Work]] = {0: [], 1: [], 2: []}  # CUDA's default streams
        self._capturing: set[int] = set()
        self._memory: dict[int, NDArray[np.uint8]] = {}
        self._pinned: dict[int, NDArray[np.uint8]] = {}
        self._next = FIRST_ADDRESS
        self._clock = 0.0  # ms
        for name in CALLS.split():
            setattr(self, name, partial(self._attempt, getattr(self, name)))

    def _attempt(self, call: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        """A call that shall fail does so first: what it would free stays alive."""
        if call.__name__ in self.fail:
            raise cuda_error(call.__name__, "", "as asked")
        current = getattr(self._depth, "value", 0) > 0 or call.__name__ == "active"
        assert current, "no CUDA context is current in this thread"
        return call(*arguments, **keywords)

    def live(self) -> dict[str, int]:
        """What is alive now, without the kinds of which there is nothing."""
        return {kind: count for kind, count in self.alive.items() if count}

    def device_count(self) -> int:
        return self.index + 1

    def device_name(self) -> str:
        return "Fake GPU"

    def sm(self) -> int:
        return self._sm

    @contextmanager
    def active(self) -> Iterator[None]:
        assert not self.closed, "the context was given back"
        self._depth.value = getattr(self._depth, "value", 0) + 1
        try:
            yield
        finally:
            self._depth.value -= 1

    def _count(self, kind: str, change: int) -> None:
        with self._lock:
            self.alive[kind] += change

    def create_stream(self) -> Stream:
        with self._lock:
            handle = max(self._queues) + 1
            self._queues[handle] = []
            self.alive["streams"] += 1
        return Stream(handle, handle)

    def adopt_stream(self, stream: object) -> Stream:
        handle = stream_handle(stream)
        self._queues.setdefault(handle, [])
        return Stream(handle, handle, owned=False, origin=stream)

    def enqueue(self, handle: int, work: Work, kind: str) -> None:
        """Put work into a stream: for the fake TensorRT, and for tests' producers."""

        def counted() -> None:
            work()
            self.done[kind] += 1

        with self._lock:
            self._queues[handle].append(counted)

    def synchronize(self, stream: Stream) -> None:
        assert stream.handle not in self._capturing, "a stream that records cannot be waited for"
        self._run(stream.handle)

    def _run(self, handle: int) -> None:
        with self._lock:  # one GPU: work is done in order, whoever waits for it
            queue, self._queues[handle] = self._queues[handle], []
            for work in queue:
                work()

    def wait_for(self, stream: Stream, producer: int) -> None:
        self.enqueue(stream.handle, lambda: self._run(producer), "waits")

    def destroy_stream(self, stream: Stream) -> None:
        if stream.owned:
            broken = bool(self.fail & {"synchronize", "end_capture"})  # then work is never done
            assert broken or stream.handle not in self._capturing, "the stream is recording"
            self._capturing.discard(stream.handle)
            work = self._queues.pop(stream.handle)
            assert broken or not work, "the stream still has work to do"
            self.alive["streams"] -= 1

    def free_memory(self) -> int:
        return self.room

    def allocate(self, nbytes: int) -> DeviceMemory:
        with self._lock:
            address = self._next
            self._next += (nbytes // ALIGNMENT + 2) * ALIGNMENT  # a gap behind each
            self._memory[address] = np.full(nbytes, 0xA5, np.uint8)
            self.alive["device allocations"] += 1
            self.done["allocations"] += 1
        return DeviceMemory(address, nbytes, None)

    def free(self, memory: DeviceMemory) -> None:
        with self._lock:
            del self._memory[memory.address]
            self.alive["device allocations"] -= 1

    def gpu_of(self, address: int) -> int | None:
        with self._lock:
            known = any(a <= address < a + m.size for a, m in self._memory.items())
        return self.elsewhere.get(address, self.index) if known else None

    def memory(self, address: int, nbytes: int) -> NDArray[np.uint8]:
        """View GPU memory; the fake TensorRT reads and writes it."""
        with self._lock:
            for start, content in self._memory.items():
                if start <= address and address + nbytes <= start + content.size:
                    return content[address - start : address - start + nbytes]
        raise AssertionError(f"illegal address {address:#x}, {nbytes} bytes")

    def allocate_pinned(self, nbytes: int) -> NDArray[np.uint8]:
        array = np.full(nbytes, 0x5A, np.uint8)
        with self._lock:
            self._pinned[array.ctypes.data] = array
            self.alive["pinned allocations"] += 1
            self.done["allocations"] += 1
        return array

    def free_pinned(self, array: NDArray[np.uint8]) -> None:
        with self._lock:
            del self._pinned[array.ctypes.data]
            self.alive["pinned allocations"] -= 1

    def _check_pinned(self, array: NDArray[Any]) -> None:
        assert array.flags.c_contiguous
        first, last = array.ctypes.data, array.ctypes.data + array.nbytes
        with self._lock:
            inside = any(a <= first and last <= a + p.size for a, p in self._pinned.items())
        assert inside, "the host memory is not page-locked"

    def copy_in(self, address: int, pinned: NDArray[Any], stream: Stream) -> None:
        self._check_pinned(pinned)
        target = self.memory(address, pinned.nbytes)
        source = pinned.reshape(-1).view(np.uint8)
        self.enqueue(stream.handle, lambda: np.copyto(target, source), "copies in")

    def copy_out(self, pinned: NDArray[Any], address: int, stream: Stream) -> None:
        self._check_pinned(pinned)
        source = self.memory(address, pinned.nbytes)
        target = pinned.reshape(-1).view(np.uint8)
        self.enqueue(stream.handle, lambda: np.copyto(target, source), "copies out")

    def create_event(self) -> Event:
        self._count("events", 1)
        return {}

    def record(self, event: Event, stream: Stream) -> None:
        def stamp() -> None:
            self._clock += 1.0
            event["time"] = self._clock

        event.pop("time", None)
        self.enqueue(stream.handle, stamp, "events")

    def elapsed_ms(self, start: Event, end: Event) -> float:
        return float(end["time"] - start["time"])

    def destroy_event(self, event: Event) -> None:
        self._count("events", -1)

    def begin_capture(self, stream: Stream) -> None:
        assert self.can_capture
        assert not self._queues[stream.handle], "the stream has work from before"
        self._capturing.add(stream.handle)

    def end_capture(self, stream: Stream) -> Graph:
        self._capturing.remove(stream.handle)
        with self._lock:
            work, self._queues[stream.handle] = self._queues[stream.handle], []
            self.alive["graphs"] += 1
        return work

    def launch(self, graph: Graph, stream: Stream) -> None:
        def replay() -> None:
            for work in graph:
                work()

        self.enqueue(stream.handle, replay, "graph launches")

    def destroy_graph(self, graph: Graph) -> None:
        self._count("graphs", -1)

    def close(self) -> None:
        self.closed = True
