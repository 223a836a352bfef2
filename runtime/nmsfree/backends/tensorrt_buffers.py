"""What one lane has on the GPU: a stream, events, and buffers, each with a page-locked twin."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmsfree.backends.tensorrt_bindings import INPUT, Binding
from nmsfree.cuda.base import Cuda, DeviceMemory, Event, Stream

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
