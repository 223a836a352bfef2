"""CUDA through pycuda, for applications that use it already.

pycuda wraps neither CUDA graphs nor streams of other libraries; TensorRT-RTX replays its own graph
all the same. Names used here are those of pycuda's documentation (`pycuda.driver`, 2020.1 on).
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from nmsfree.cuda.base import DeviceMemory, Event, Stream, cuda_error, no_driver, wrong_gpu
from nmsfree.errors import EngineError, InputError, MissingExtraError

# By GPU. Kept for the process: letting go of one, pycuda pushes it and does not pop it again.
_primary_contexts: dict[int, Any] = {}
NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING, for which pycuda has no name


class PyCuda:
    """`base.Cuda` with pycuda, in the device's primary context (as `pycuda.autoprimaryctx`).

    A worker thread needs no context of its own: `active` pushes it, and pops it afterwards.

    Raises:
        InputError: `pycuda.autoinit` was imported, whose context nothing else can use.
        MissingExtraError: pycuda is not installed.
        EngineError: no driver, or no such GPU.
    """

    can_capture = False

    def __init__(self, index: int = 0) -> None:
        if "pycuda.autoinit" in sys.modules:
            raise InputError(
                "pycuda.autoinit made a CUDA context of its own, whose arrays and streams nothing "
                "else can use: import pycuda.autoprimaryctx in its place"
            )
        self._driver = load_driver()
        self.name = f"pycuda {version('pycuda')}"
        self.index = index
        self._call("cuInit", self._driver.init)
        if not 0 <= index < self.device_count():
            raise wrong_gpu(index, self.device_count())
        self._device = self._driver.Device(index)
        if index not in _primary_contexts:
            retain = self._device.retain_primary_context
            _primary_contexts[index] = self._call("cuDevicePrimaryCtxRetain", retain)
        self._context = _primary_contexts[index]
        self._pinned: dict[int, Any] = {}  # address → the allocation behind an array

    def _call(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call pycuda; `name` is CUDA's, for an error that does not tell it."""
        try:
            return function(*arguments)
        except self._driver.Error as error:  # "cuMemAlloc failed: out of memory"
            told, failed, text = str(error).partition(" failed: ")
            raise cuda_error(told if failed else name, "", text if failed else told) from None

    def device_count(self) -> int:
        return int(self._call("cuDeviceGetCount", self._driver.Device.count))

    def device_name(self) -> str:
        return str(self._device.name())

    def sm(self) -> int:
        major, minor = self._device.compute_capability()
        return int(major) * 10 + int(minor)

    @contextmanager
    def active(self) -> Iterator[None]:
        self._call("cuCtxPushCurrent", self._context.push)
        try:
            yield
        finally:
            self._context.pop()

    def create_stream(self) -> Stream:
        native = self._call("cuStreamCreate", self._driver.Stream, NON_BLOCKING)
        return Stream(int(native.handle), native)

    def adopt_stream(self, stream: object) -> Stream:
        if not isinstance(stream, self._driver.Stream):
            raise InputError(
                f"stream is a {type(stream).__name__}, expected a pycuda.driver.Stream: pycuda "
                "takes no other, give cuda='cuda-python' to use it"
            )
        return Stream(int(stream.handle), stream, owned=False, origin=stream)

    def synchronize(self, stream: Stream) -> None:
        self._call("cuStreamSynchronize", stream.native.synchronize)

    def wait_for(self, stream: Stream, producer: int) -> None:
        """Waits on the host for the whole context: pycuda cannot name another library's stream."""
        self._call("cuCtxSynchronize", self._context.synchronize)

    def destroy_stream(self, _: object) -> None:
        """Nothing to call: pycuda frees it with its last reference, ours."""

    destroy_event = destroy_graph = destroy_stream

    def free_memory(self) -> int:
        return int(self._call("cuMemGetInfo", self._driver.mem_get_info)[0])

    def allocate(self, nbytes: int) -> DeviceMemory:
        native = self._call("cuMemAlloc", self._driver.mem_alloc, nbytes)
        return DeviceMemory(int(native), nbytes, native)

    def free(self, memory: DeviceMemory) -> None:
        self._call("cuMemFree", memory.native.free)

    def gpu_of(self, address: int) -> int | None:
        """None: pycuda does not wrap `cuPointerGetAttribute`."""
        return None

    def allocate_pinned(self, nbytes: int) -> NDArray[np.uint8]:
        make = self._driver.pagelocked_empty
        array: NDArray[np.uint8] = self._call("cuMemHostAlloc", make, nbytes, np.uint8)
        self._pinned[array.ctypes.data] = array.base
        return array

    def free_pinned(self, array: NDArray[np.uint8]) -> None:
        self._call("cuMemFreeHost", self._pinned.pop(array.ctypes.data).free)

    def copy_in(self, address: int, pinned: NDArray[Any], stream: Stream) -> None:
        copy = self._driver.memcpy_htod_async
        self._call("cuMemcpyHtoDAsync", copy, address, pinned, stream.native)

    def copy_out(self, pinned: NDArray[Any], address: int, stream: Stream) -> None:
        copy = self._driver.memcpy_dtoh_async
        self._call("cuMemcpyDtoHAsync", copy, pinned, address, stream.native)

    def create_event(self) -> Event:
        return self._call("cuEventCreate", self._driver.Event)

    def record(self, event: Event, stream: Stream) -> None:
        self._call("cuEventRecord", event.record, stream.native)

    def elapsed_ms(self, start: Event, end: Event) -> float:
        return float(self._call("cuEventElapsedTime", end.time_since, start))

    def begin_capture(self, *_: object) -> NoReturn:
        raise EngineError("pycuda cannot record CUDA graphs: give cuda='cuda-python'")

    end_capture = launch = begin_capture

    def close(self) -> None:
        """Nothing to free: the primary context is the application's as well."""


def load_driver() -> Any:
    try:
        return importlib.import_module("pycuda.driver")
    except ModuleNotFoundError:
        raise MissingExtraError("CUDA through pycuda", "nmsfree[pycuda]") from None
    except ImportError as error:
        raise no_driver(str(error)) from None
