"""One execution context with a stream and buffers of its own, for one thread at a time.

Everything is allocated when it is made; a run allocates the returned copies only.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmsfree.backends.base import RawDetections
from nmsfree.backends.tensorrt.engine import INPUT, Binding, LoadedEngine, demand
from nmsfree.backends.tensorrt.log import Message
from nmsfree.cuda.arrays import DeviceImages, read_device_array
from nmsfree.cuda.base import Cuda, DeviceMemory, Event, Graph, Stream, free_all
from nmsfree.errors import EngineError

MARKS = 4  # events: the ends of the three stages of a run, and its start

FAILED = "cannot run the engine", "`nmsfree doctor` says what is missing"
NOT_RECORDED = "cannot record the engine as a CUDA graph", "it runs without one"


@dataclass(frozen=True)
class Timings:
    """Milliseconds of one run on the GPU's clock."""

    h2d: float  # images from host to device; 0 for images that were there
    network: float
    d2h: float  # outputs from device to host


class ExecutionContext:
    """Runs the engine; not thread-safe, `ContextPool` gives it to one thread at a time.

    Args:
        stream: a stream of the user's that all contexts work in; None: a stream of its own.
        from_device: it runs images that are on the GPU, so it has no input buffers. Such a context
            records no CUDA graph of its own, since that would fix the address of the images.
    """

    def __init__(self, engine: LoadedEngine, stream: Stream | None, from_device: bool) -> None:
        self._engine, self._cuda = engine, engine.cuda
        self._batch = engine.largest
        # Empty at first, so that what was made before a failure can be freed.
        self._stream: Any = None
        self._events: list[Event] = []
        self._device: dict[str, DeviceMemory] = {}
        self._pinned: dict[str, NDArray[np.uint8]] = {}
        self._graph: Graph | None = None
        self._context: Any = None
        with self._cuda.active():
            try:
                self._context = engine.create_context()
                bindings = engine.outputs if from_device else (engine.input, *engine.outputs)
                self._allocate(stream, bindings)
                with engine.failures(*FAILED):
                    for name, memory in self._device.items():
                        demand(self._context.set_tensor_address(name, memory.address))
                    if engine.dynamic:
                        self._set_batch(engine.largest)
                if not from_device:
                    self._warm_up()
            except BaseException:
                with suppress(EngineError):  # after a failure; the first error says most
                    free_all(self._frees())
                raise

    def _allocate(self, stream: Stream | None, bindings: Iterable[Binding]) -> None:
        cuda = self._cuda
        self._stream = stream or cuda.create_stream()
        for _ in range(MARKS):
            self._events.append(cuda.create_event())
        for binding in bindings:
            nbytes = binding.nbytes(self._engine.largest)
            self._device[binding.name] = cuda.allocate(nbytes)
            self._pinned[binding.name] = cuda.allocate_pinned(nbytes)

    def _warm_up(self) -> None:
        """Run with black images, so that the first real run is as fast as any; then record.

        A library that captures graphs itself does so in the second run.
        """
        engine = self._engine
        self._load(np.zeros(engine.input.shape, np.uint8))
        with engine.failures(*FAILED) as messages:
            for _ in range(2 if engine.vendor.captures_graphs else 1):
                self._execute(self._stream)
            self._cuda.synchronize(self._stream)
            self._ask_for_graph(messages)
        engine.cache_kernels_of(engine.largest)
        if engine.capturable and engine.graph.used is not False:
            try:
                with engine.failures(*NOT_RECORDED):
                    self._graph = record(self._cuda, self._execute)
            except EngineError as error:
                engine.graph.fails(error)
            else:
                engine.graph.works()

    def _ask_for_graph(self, messages: list[Message]) -> None:
        """Ask, after a first run, whether the library replays a graph of its own.

        What it says is listened to in every run: another batch size may have another answer.
        """
        engine, graph = self._engine, self._engine.graph
        if not engine.vendor.captures_graphs or graph.used is False:
            return
        able = graph.used or self._context.is_stream_capturable(self._stream.handle)
        engine.notice_graph(messages, able)
        if graph.used is None:
            graph.works()

    def _execute(self, stream: Stream) -> None:
        demand(self._context.execute_async_v3(stream.handle))

    def _set_batch(self, images: int) -> None:
        demand(self._context.set_input_shape(INPUT, (images, *self._engine.input.shape[1:])))
        self._batch = images

    def take(self, images: Any) -> DeviceImages:
        """Let this context's stream wait for images on the GPU."""
        with self._cuda.active():
            return read_device_array(images, self._cuda, self._stream)

    def run(self, images: NDArray[np.uint8] | DeviceImages) -> tuple[RawDetections, Timings]:
        """Run uint8 [N, H, W, 3], N at most the engine's largest batch: copies of the outputs.

        EngineError: the GPU or the engine failed; this context may not be used again.
        """
        cuda, stream, engine = self._cuda, self._stream, self._engine
        start, loaded, computed, done = self._events
        count = images.shape[0]
        with cuda.active(), engine.failures(*FAILED) as messages:
            cuda.record(start, stream)
            self._load(images)
            cuda.record(loaded, stream)
            if self._graph is not None:
                cuda.launch(self._graph, stream)
            else:
                if count != self._batch:
                    self._set_batch(count)
                self._execute(stream)
            cuda.record(computed, stream)
            views = {b.name: self._fetch(b, count) for b in engine.outputs}
            cuda.record(done, stream)
            cuda.synchronize(stream)
            stages = ((start, loaded), (loaded, computed), (computed, done))
            timings = Timings(*(cuda.elapsed_ms(*stage) for stage in stages))
            self._ask_for_graph(messages)
            engine.cache_kernels_of(count)
        return RawDetections(**{name: view.copy() for name, view in views.items()}), timings

    def _load(self, images: NDArray[np.uint8] | DeviceImages) -> None:
        """Ask for images to be copied to the GPU; a NumPy array may be overwritten at once."""
        if isinstance(images, DeviceImages):
            demand(self._context.set_tensor_address(INPUT, images.address))
            return
        pinned = self._pinned[INPUT][: images.nbytes]
        np.copyto(pinned.reshape(images.shape), images)
        self._cuda.copy_in(self._device[INPUT].address, pinned, self._stream)

    def _fetch(self, binding: Binding, count: int) -> NDArray[Any]:
        """Ask for an output; the view holds it once the stream is done."""
        pinned = self._pinned[binding.name][: binding.nbytes(count)]
        self._cuda.copy_out(pinned, self._device[binding.name].address, self._stream)
        return pinned.view(binding.dtype).reshape(count, *binding.shape[1:])

    def close(self) -> None:
        """Wait for what is still running, then free everything, whatever fails."""
        try:
            with self._cuda.active():
                free_all(self._frees())
        finally:
            self._graph = self._context = None  # whatever happens: neither outlives the engine

    def _frees(self) -> Iterator[Callable[[], object]]:
        """The calls that free everything, in their order; the CUDA context must be current.

        No reference is left behind a call: pycuda frees with the last.
        """
        cuda, stream, self._stream = self._cuda, self._stream, None
        if stream is not None:
            yield partial(cuda.synchronize, stream)
        if self._graph is not None:
            yield partial(cuda.destroy_graph, self._graph)
        self._graph = self._context = None
        while self._events:
            yield partial(cuda.destroy_event, self._events.pop())
        while self._device:
            yield partial(cuda.free, self._device.popitem()[1])
        while self._pinned:
            yield partial(cuda.free_pinned, self._pinned.popitem()[1])
        if stream is not None:
            yield partial(cuda.destroy_stream, stream)
        del stream


def record(cuda: Cuda, work: Callable[[Stream], None]) -> Graph:
    """Record work as a CUDA graph, in a stream that nobody else puts work into.

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
