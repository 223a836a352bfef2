"""What the backends need of CUDA: one protocol, a few handles, and errors in our own words."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nmsfree.errors import EngineError, InputError

LEGACY_DEFAULT_STREAM = 1  # CUDA's own number for "the default stream", where 0 may mean none


@dataclass(frozen=True)
class Stream:
    """A queue of work on the GPU; `native` is the implementation's own object."""

    handle: int  # what CUDA calls it; TensorRT and the array protocols take this number
    native: Any = field(repr=False)
    owned: bool = True  # made by us, so freed by us; a user's stream is neither
    # The application's object, kept because many destroy their stream when collected.
    origin: Any = field(default=None, repr=False)


@dataclass(frozen=True)
class DeviceMemory:
    """`nbytes` bytes of GPU memory at `address`."""

    address: int
    nbytes: int
    native: Any = field(repr=False)


Event = Any  # the implementation's: a point in a stream whose time is known
Graph = Any  # the implementation's: a recorded sequence of work, launched as one


class Cuda(Protocol):
    """CUDA on one GPU, in the device's primary context: the one that PyTorch and others share.

    Every call but the first three attributes, `active` and `close` must be made within
    `with cuda.active():`, which may nest and is safe in any thread. Every call may raise
    EngineError.
    """

    name: str  # "cuda-python 13.4.4"
    index: int  # which GPU
    can_capture: bool  # whether graphs can be recorded

    def device_count(self) -> int:
        """GPUs of this machine."""

    def device_name(self) -> str: ...

    def sm(self) -> int:
        """Compute capability, 89 for 8.9."""

    def active(self) -> AbstractContextManager[None]:
        """Make the primary context current in this thread; afterwards, what was before."""

    def create_stream(self) -> Stream:
        """A stream that does not wait for the default stream, nor that for it."""

    def adopt_stream(self, stream: object) -> Stream:
        """Use a stream of the application's, which stays its own; InputError: it cannot be used."""

    def synchronize(self, stream: Stream) -> None:
        """Return when everything in the stream is done."""

    def wait_for(self, stream: Stream, producer: int) -> None:
        """Let work put into `stream` from now on wait for all that is in `producer` by now."""

    def destroy_stream(self, stream: Stream) -> None:
        """Free a stream that `create_stream` made; a user's is left alone."""

    def free_memory(self) -> int:
        """Bytes of the GPU's memory that nobody uses."""

    def allocate(self, nbytes: int) -> DeviceMemory: ...

    def free(self, memory: DeviceMemory) -> None: ...

    def gpu_of(self, address: int) -> int | None:
        """Number of the GPU whose memory an address is in.

        None where nobody tells, and for memory that every GPU reads: of the host, or managed.
        """

    def allocate_pinned(self, nbytes: int) -> NDArray[np.uint8]:
        """Page-locked host memory, uint8 [nbytes]: the GPU copies from and to it by itself."""

    def free_pinned(self, array: NDArray[np.uint8]) -> None:
        """Free what `allocate_pinned` returned: that very array."""

    def copy_in(self, address: int, pinned: NDArray[Any], stream: Stream) -> None:
        """Copy a contiguous part of a page-locked array to the GPU, in order of the stream."""

    def copy_out(self, pinned: NDArray[Any], address: int, stream: Stream) -> None:
        """Copy from the GPU to a contiguous part of a page-locked array."""

    def create_event(self) -> Event: ...

    def record(self, event: Event, stream: Stream) -> None: ...

    def elapsed_ms(self, start: Event, end: Event) -> float:
        """Milliseconds on the GPU between two events that have passed."""

    def destroy_event(self, event: Event) -> None: ...

    def begin_capture(self, stream: Stream) -> None:
        """Record this thread's work in the stream instead of doing it."""

    def end_capture(self, stream: Stream) -> Graph: ...

    def launch(self, graph: Graph, stream: Stream) -> None: ...

    def destroy_graph(self, graph: Graph) -> None: ...

    def close(self) -> None:
        """Give the primary context back."""


DOCTOR = "`nmsfree doctor` says what is missing"
NO_MEMORY = "close other programs on the GPU, or run smaller batches"
_ADVICE = {
    "CUDA_ERROR_NO_DEVICE": f"this machine has no NVIDIA GPU that can be used: {DOCTOR}",
    "CUDA_ERROR_INSUFFICIENT_DRIVER": "update the NVIDIA driver",
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": "restart the machine to finish the driver's update",
    "CUDA_ERROR_OUT_OF_MEMORY": NO_MEMORY,
}


def no_driver(reason: str) -> EngineError:
    """The error where the driver's library cannot be loaded, or lacks a function."""
    line = " ".join(reason.split())[:200]
    if line.lower().startswith("function "):  # "function cuX is not found"
        return EngineError(f"the NVIDIA driver is too old ({line}): update it")
    return EngineError(f"no NVIDIA driver that can be used ({line}): {DOCTOR}")


def cuda_error(call: str, code: str, text: str) -> EngineError:
    """The error for a CUDA call that failed: the one place where codes become our words.

    The code is "CUDA_ERROR_…", or "" where the implementation does not tell.
    """
    detail = ", ".join(part for part in (text, code) if part) or "no reason given"
    if "out of memory" in text:  # pycuda tells the description alone
        code = "CUDA_ERROR_OUT_OF_MEMORY"
    elif "no device" in text:
        code = "CUDA_ERROR_NO_DEVICE"
    return EngineError(f"CUDA: {call} failed ({detail}): {_ADVICE.get(code, DOCTOR)}")


def wrong_gpu(index: int, count: int) -> EngineError:
    """The error for a GPU that is not there."""
    if count == 0:
        return EngineError(f"no NVIDIA GPU found: {DOCTOR}")
    return EngineError(f"GPU {index} does not exist, this machine has {count}, counted from 0")


def stream_handle(stream: object) -> int:
    """Return the number of a stream: an int itself, `__cuda_stream__`, PyTorch, CuPy, pycuda."""
    if isinstance(stream, int) and not isinstance(stream, bool):
        return stream
    protocol = getattr(stream, "__cuda_stream__", None)
    if callable(protocol):
        return int(protocol()[1])  # (version, handle)
    for name in ("cuda_stream", "handle", "ptr"):  # PyTorch, pycuda, CuPy
        value = getattr(stream, name, None)
        if value is not None:
            return int(value)
    raise InputError(
        f"stream is a {type(stream).__name__}, expected a CUDA stream of cuda-python, PyTorch, "
        "CuPy or pycuda, or its number"
    )


def free_all(steps: Iterable[Callable[[], object]]) -> None:
    """Take every step, whatever those before it raise; then raise the first error.

    After a failed kernel every call on a GPU fails, and what is not freed now is never freed.
    """
    first: BaseException | None = None
    for step in steps:
        try:
            step()
        except BaseException as error:  # noqa: BLE001 (the first of them is raised below)
            first = first or error
    try:
        if first is not None:
            raise first
    finally:
        del first  # else it and this frame would keep one another, and what the frame knows
