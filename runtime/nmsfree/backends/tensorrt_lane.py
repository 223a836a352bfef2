"""One lane: an execution context with a stream and buffers of its own, for one thread at a time.

Everything is allocated when the lane is made; a run allocates the returned copies only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmsfree.backends.tensorrt_bindings import INPUT, Binding
from nmsfree.backends.tensorrt_engine import LoadedEngine
from nmsfree.cuda.arrays import DeviceImages, read_device_array
from nmsfree.cuda.base import DeviceMemory, Event, Graph, Stream
from nmsfree.engines.vendor_log import Message

Outputs = Mapping[str, NDArray[Any]]
FAILED = "cannot run the engine"
ADVICE = "`nmsfree doctor` says what is missing"


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
        self._graph: Graph | None = None
        self._memory: dict[str, DeviceMemory] = {}
        self._pinned: dict[str, NDArray[np.uint8]] = {}
        self._events: list[Event] = []
        self._stream: Stream | None = None
        self._context: Any = None
        with self._cuda.active():
            try:
                self._allocate(stream, from_device)
                if not from_device:
                    self._warm_up()
            except BaseException:
                self._free()
                raise

    def _allocate(self, stream: Stream | None, from_device: bool) -> None:
        engine, cuda = self._engine, self._cuda
        self._stream = stream or cuda.create_stream()
        self._context = engine.create_context()
        for _ in range(4):
            self._events.append(cuda.create_event())
        for binding in engine.outputs if from_device else (engine.input, *engine.outputs):
            nbytes = binding.nbytes(engine.largest)
            self._memory[binding.name] = cuda.allocate(nbytes)
            self._pinned[binding.name] = cuda.allocate_pinned(nbytes)
        with engine.failures(FAILED, ADVICE) as messages:
            for name, memory in self._memory.items():
                self._set_address(name, memory.address, messages)
            if engine.dynamic:
                self._set_batch(engine.largest, messages)

    def _warm_up(self) -> None:
        """Run with black images, so that the first real run is as fast as any; then record.

        A library that captures graphs itself does so in the second run.
        """
        engine, cuda = self._engine, self._cuda
        images = self._pinned[INPUT]
        images[:] = 0
        cuda.copy_in(self._memory[INPUT].address, images, self._live)
        with engine.failures(FAILED, ADVICE) as messages:
            for _ in range(engine.warmup_runs):
                self._execute(self._live, messages)
            cuda.synchronize(self._live)
            if engine.capturable:
                self._graph = self._record(messages)

    def _record(self, messages: list[Message]) -> Graph:
        """Record the engine as a CUDA graph, in a stream that nobody else puts work into."""
        cuda = self._cuda
        private = cuda.create_stream()
        try:
            cuda.begin_capture(private)
            self._execute(private, messages)
            return cuda.end_capture(private)
        finally:
            cuda.destroy_stream(private)

    @property
    def _live(self) -> Stream:
        assert self._stream is not None
        return self._stream

    def _execute(self, stream: Stream, messages: list[Message]) -> None:
        success = self._context.execute_async_v3(stream.handle)
        self._engine.demand(success, FAILED, messages, ADVICE)

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
            return read_device_array(images, self._cuda, self._live)

    def run(self, images: NDArray[np.uint8] | DeviceImages) -> tuple[Outputs, Timings]:
        """Run uint8 [N, H, W, 3]; N is at most the engine's largest batch.

        Returns:
            Copies of the outputs by name, [N, …], and how long the stages took.

        Raises:
            EngineError: the GPU or the engine failed; the lane may not be used again.
        """
        cuda, stream, engine = self._cuda, self._live, self._engine
        start, loaded, computed, done = self._events
        count = images.shape[0]
        with cuda.active(), engine.failures(FAILED, ADVICE) as messages:
            cuda.record(start, stream)
            self._load(images, messages)
            cuda.record(loaded, stream)
            self._compute(count, messages)
            cuda.record(computed, stream)
            views = {b.name: self._fetch(b, count) for b in engine.outputs}
            cuda.record(done, stream)
            cuda.synchronize(stream)
            stages = ((start, loaded), (loaded, computed), (computed, done))
            timings = Timings(*(cuda.elapsed_ms(*stage) for stage in stages))
        return {name: view.copy() for name, view in views.items()}, timings

    def _load(self, images: NDArray[np.uint8] | DeviceImages, messages: list[Message]) -> None:
        if isinstance(images, DeviceImages):
            self._set_address(INPUT, images.address, messages)
            return
        pinned = self._pinned[INPUT][: images.nbytes]
        np.copyto(pinned.reshape(images.shape), images)
        self._cuda.copy_in(self._memory[INPUT].address, pinned, self._live)

    def _compute(self, count: int, messages: list[Message]) -> None:
        if self._graph is not None:
            self._cuda.launch(self._graph, self._live)
            return
        if count != self._batch:
            self._set_batch(count, messages)
        self._execute(self._live, messages)

    def _fetch(self, binding: Binding, count: int) -> NDArray[Any]:
        """Ask for an output; the view holds it once the stream is done."""
        pinned = self._pinned[binding.name][: binding.nbytes(count)]
        self._cuda.copy_out(pinned, self._memory[binding.name].address, self._live)
        return pinned.view(binding.dtype).reshape(count, *binding.shape[1:])

    def close(self) -> None:
        """Wait for what is still running, then free everything."""
        with self._cuda.active():
            self._free()

    def _free(self) -> None:
        """Drops every reference while the CUDA context is current: pycuda frees with the last."""
        cuda = self._cuda
        if self._stream is not None:
            cuda.synchronize(self._stream)
        if self._graph is not None:
            cuda.destroy_graph(self._graph)
        self._graph = self._context = None
        while self._events:
            cuda.destroy_event(self._events.pop())
        while self._memory:
            cuda.free(self._memory.popitem()[1])
        while self._pinned:
            cuda.free_pinned(self._pinned.popitem()[1])
        if self._stream is not None:
            cuda.destroy_stream(self._stream)
        self._stream = None
