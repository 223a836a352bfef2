"""One lane: an execution context with a stream and buffers of its own, for one thread at a time.

Everything is allocated when the lane is made; a run allocates the returned copies only.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmsfree.backends.tensorrt.engine import INPUT, Binding, LoadedEngine
from nmsfree.backends.tensorrt.graph import record
from nmsfree.backends.tensorrt.log import Message
from nmsfree.cuda.arrays import DeviceImages, read_device_array
from nmsfree.cuda.base import Cuda, DeviceMemory, Event, Graph, Stream, free_all
from nmsfree.errors import EngineError

MARKS = 4  # events: the ends of the three stages of a run, and its start


class Buffers:
    """Made empty and filled by `allocate`, so that what was made before a failure can be freed."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._stream: Stream | None = None
        self.events: list[Event] = []
        self.device: dict[str, DeviceMemory] = {}
        self._pinned: dict[str, NDArray[np.uint8]] = {}

    def allocate(self, stream: Stream | None, bindings: Iterable[Binding], images: int) -> None:
        """Make everything.

        Args:
            stream: the user's; None: one of our own.
            images: the most that a run has.

        Raises:
            EngineError: the GPU's memory does not suffice.
        """
        cuda = self._cuda
        self._stream = stream or cuda.create_stream()
        for _ in range(MARKS):
            self.events.append(cuda.create_event())
        for binding in bindings:
            nbytes = binding.nbytes(images)
            self.device[binding.name] = cuda.allocate(nbytes)
            self._pinned[binding.name] = cuda.allocate_pinned(nbytes)

    @property
    def stream(self) -> Stream:
        assert self._stream is not None
        return self._stream

    def load(self, images: NDArray[np.uint8]) -> None:
        """Ask for images to be copied to the GPU; the array may be overwritten at once."""
        pinned = self._pinned[INPUT][: images.nbytes]
        np.copyto(pinned.reshape(images.shape), images)
        self._cuda.copy_in(self.device[INPUT].address, pinned, self.stream)

    def fetch(self, binding: Binding, count: int) -> NDArray[Any]:
        """Ask for an output; the view holds it once the stream is done."""
        pinned = self._pinned[binding.name][: binding.nbytes(count)]
        self._cuda.copy_out(pinned, self.device[binding.name].address, self.stream)
        return pinned.view(binding.dtype).reshape(count, *binding.shape[1:])

    def wait(self) -> None:
        """Return when the stream is done, if there is one."""
        if self._stream is not None:
            self._cuda.synchronize(self._stream)

    def frees(self) -> Iterator[Callable[[], object]]:
        """The calls that free everything, one after the other.

        No reference is left behind the call: pycuda frees with the last.
        """
        cuda = self._cuda
        while self.events:
            yield partial(cuda.destroy_event, self.events.pop())
        while self.device:
            yield partial(cuda.free, self.device.popitem()[1])
        while self._pinned:
            yield partial(cuda.free_pinned, self._pinned.popitem()[1])
        if self._stream is not None:
            yield partial(cuda.destroy_stream, self._stream)
        self._stream = None


Outputs = Mapping[str, NDArray[Any]]
FAILED = "cannot run the engine"
ADVICE = "`nmsfree doctor` says what is missing"
NOT_RECORDED, WITHOUT = "cannot record the engine as a CUDA graph", "it runs without one"


@dataclass(frozen=True)
class Timings:
    """Milliseconds of one run on the GPU's clock, NMS on the host's.

    Attributes:
        h2d: images from host to device; 0 for images that were there.
        network: the engine.
        d2h: outputs from device to host.
        nms: NMS on the host; 0 where the engine has none, or has it inside.
    """

    h2d: float
    network: float
    d2h: float
    nms: float = 0.0


class Lane:
    """Runs the engine; not thread-safe, `tensorrt_lanes.Lanes` gives it to one thread at a time.

    Args:
        engine: shared by all lanes.
        stream: a stream of the user's that all lanes work in; None: a stream of its own.
        from_device: it runs images that are on the GPU, so it has no input buffers. Such a lane
            records no CUDA graph of its own, since that would fix the address of the images.

    Raises:
        EngineError: the GPU's memory does not suffice, or the engine cannot be prepared.
    """

    def __init__(self, engine: LoadedEngine, stream: Stream | None, from_device: bool) -> None:
        self._engine, self._cuda = engine, engine.cuda
        self._batch = engine.largest
        self._buffers = Buffers(engine.cuda)
        self._graph: Graph | None = None
        self._context: Any = None
        with self._cuda.active():
            try:
                self._prepare(stream, from_device)
                if not from_device:
                    self._warm_up()
            except BaseException:
                with suppress(EngineError):  # after a failure; the first error says most
                    free_all(self._frees())
                raise

    def _prepare(self, stream: Stream | None, from_device: bool) -> None:
        engine = self._engine
        self._context = engine.create_context()
        bindings = engine.outputs if from_device else (engine.input, *engine.outputs)
        self._buffers.allocate(stream, bindings, engine.largest)
        with engine.failures(FAILED, ADVICE) as messages:
            for name, memory in self._buffers.device.items():
                self._set_address(name, memory.address, messages)
            if engine.dynamic:
                self._set_batch(engine.largest, messages)

    def _warm_up(self) -> None:
        """Run with black images, so that the first real run is as fast as any; then record.

        A library that captures graphs itself does so in the second run.
        """
        engine, stream = self._engine, self._buffers.stream
        self._buffers.load(np.zeros(engine.input.shape, np.uint8))
        with engine.failures(FAILED, ADVICE) as messages:
            for _ in range(engine.warmup_runs):
                self._execute(stream, messages)
            self._cuda.synchronize(stream)
            self._ask_for_graph(messages)
        engine.keep_kernels_of(engine.largest)
        if engine.capturable and engine.graph.used is not False:
            self._record()

    def _ask_for_graph(self, messages: list[Message]) -> None:
        """Ask, after a first run, whether the library replays a graph of its own.

        What it says is listened to in every run: another batch size may have another answer.
        """
        engine, graph = self._engine, self._engine.graph
        if not engine.vendor.captures_graphs or graph.used is False:
            return
        able = graph.used or self._context.is_stream_capturable(self._buffers.stream.handle)
        engine.notice_graph(messages, able)
        if graph.used is None:
            graph.works()

    def _record(self) -> None:
        """Record the engine as a CUDA graph; it runs without one where that fails."""
        engine = self._engine
        try:
            with engine.failures(NOT_RECORDED, WITHOUT) as messages:
                execute = partial(
                    self._execute, messages=messages, failed=NOT_RECORDED, advice=WITHOUT
                )
                self._graph = record(self._cuda, execute)
        except EngineError as error:
            engine.graph.fails(error)
        else:
            engine.graph.works()

    def _execute(
        self, stream: Stream, messages: list[Message], failed: str = FAILED, advice: str = ADVICE
    ) -> None:
        success = self._context.execute_async_v3(stream.handle)
        self._engine.demand(success, failed, messages, advice)

    def _set_address(self, name: str, address: int, messages: list[Message]) -> None:
        success = self._context.set_tensor_address(name, address)
        self._engine.demand(success, FAILED, messages, ADVICE)

    def _set_batch(self, images: int, messages: list[Message]) -> None:
        success = self._context.set_input_shape(INPUT, (images, *self._engine.input.shape[1:]))
        self._engine.demand(success, FAILED, messages, ADVICE)
        self._batch = images

    def take(self, images: Any) -> DeviceImages:
        """Let this lane's stream wait for images on the GPU.

        Raises:
            InputError: another GPU, type or layout.
        """
        with self._cuda.active():
            return read_device_array(images, self._cuda, self._buffers.stream)

    def run(self, images: NDArray[np.uint8] | DeviceImages) -> tuple[Outputs, Timings]:
        """Run uint8 [N, H, W, 3]; N is at most the engine's largest batch.

        Returns:
            Copies of the outputs by name, [N, …], and how long the stages took.

        Raises:
            EngineError: the GPU or the engine failed; the lane may not be used again.
        """
        cuda, stream, engine = self._cuda, self._buffers.stream, self._engine
        start, loaded, computed, done = self._buffers.events
        count = images.shape[0]
        with cuda.active(), engine.failures(FAILED, ADVICE) as messages:
            cuda.record(start, stream)
            self._load(images, messages)
            cuda.record(loaded, stream)
            self._compute(count, messages)
            cuda.record(computed, stream)
            views = {b.name: self._buffers.fetch(b, count) for b in engine.outputs}
            cuda.record(done, stream)
            cuda.synchronize(stream)
            stages = ((start, loaded), (loaded, computed), (computed, done))
            timings = Timings(*(cuda.elapsed_ms(*stage) for stage in stages))
            self._ask_for_graph(messages)
            engine.keep_kernels_of(count)
        return {name: view.copy() for name, view in views.items()}, timings

    def _load(self, images: NDArray[np.uint8] | DeviceImages, messages: list[Message]) -> None:
        if isinstance(images, DeviceImages):
            self._set_address(INPUT, images.address, messages)
        else:
            self._buffers.load(images)

    def _compute(self, count: int, messages: list[Message]) -> None:
        if self._graph is not None:
            self._cuda.launch(self._graph, self._buffers.stream)
            return
        if count != self._batch:
            self._set_batch(count, messages)
        self._execute(self._buffers.stream, messages)

    def close(self) -> None:
        """Wait for what is still running, then free everything, whatever fails.

        Raises:
            EngineError: the GPU failed.
        """
        try:
            with self._cuda.active():
                free_all(self._frees())
        finally:
            self._graph = self._context = None  # whatever happens: neither outlives the engine

    def _frees(self) -> Iterator[Callable[[], object]]:
        """The calls that free everything, in their order; the CUDA context must be current."""
        yield self._buffers.wait
        if self._graph is not None:
            yield partial(self._cuda.destroy_graph, self._graph)
        self._graph = self._context = None
        yield from self._buffers.frees()
