"""CUDA through NVIDIA's cuda-python (`cuda.bindings`), the driver interface."""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmsfree.cuda.base import (
    DeviceMemory,
    Event,
    Graph,
    Stream,
    cuda_error,
    no_driver,
    stream_handle,
    wrong_gpu,
)
from nmsfree.errors import import_extra


class CudaPython:
    """`base.Cuda` with cuda-python, in the device's primary context.

    Raises:
        MissingExtraError: cuda-python is not installed.
        EngineError: no driver, or no such GPU.
    """

    can_capture = True

    def __init__(self, index: int = 0) -> None:
        self._driver = load_driver()
        self.name = f"cuda-python {version('cuda-bindings')}"
        self.index = index
        self._call(self._driver.cuInit, 0)
        if not 0 <= index < self.device_count():
            raise wrong_gpu(index, self.device_count())
        self._device = self._call(self._driver.cuDeviceGet, index)
        self._context = self._call(self._driver.cuDevicePrimaryCtxRetain, self._device)

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a driver function; return what it gives besides its status."""
        try:
            status, *values = function(*arguments)
        except RuntimeError as error:  # the driver's library is missing, or lacks the function
            raise no_driver(str(error)) from None
        if status != self._driver.CUresult.CUDA_SUCCESS:
            explained = self._driver.cuGetErrorName(status), self._driver.cuGetErrorString(status)
            code, text = ((found[1] or b"").decode() for found in explained)
            raise cuda_error(function.__name__, code, text)
        return values[0] if values else None

    def device_count(self) -> int:
        return int(self._call(self._driver.cuDeviceGetCount))

    def device_name(self) -> str:
        name: bytes = self._call(self._driver.cuDeviceGetName, 128, self._device)
        return name.split(b"\0")[0].decode()

    def sm(self) -> int:
        kinds = self._driver.CUdevice_attribute
        major, minor = (
            int(self._call(self._driver.cuDeviceGetAttribute, kind, self._device))
            for kind in (
                kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        )
        return major * 10 + minor

    @contextmanager
    def active(self) -> Iterator[None]:
        self._call(self._driver.cuCtxPushCurrent, self._context)
        try:
            yield
        finally:
            self._call(self._driver.cuCtxPopCurrent)

    def create_stream(self) -> Stream:
        flags = self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING
        native = self._call(self._driver.cuStreamCreate, int(flags))
        return Stream(int(native), native)

    def adopt_stream(self, stream: object) -> Stream:
        handle = stream_handle(stream)
        return Stream(handle, self._driver.CUstream(handle), owned=False, origin=stream)

    def synchronize(self, stream: Stream) -> None:
        self._call(self._driver.cuStreamSynchronize, stream.native)

    def wait_for(self, stream: Stream, producer: int) -> None:
        flags = self._driver.CUevent_flags.CU_EVENT_DISABLE_TIMING
        event = self._call(self._driver.cuEventCreate, int(flags))
        try:
            self._call(self._driver.cuEventRecord, event, self._driver.CUstream(producer))
            self._call(self._driver.cuStreamWaitEvent, stream.native, event, 0)
        finally:
            self._call(self._driver.cuEventDestroy, event)  # the driver keeps it until it passed

    def destroy_stream(self, stream: Stream) -> None:
        if stream.owned:
            self._call(self._driver.cuStreamDestroy, stream.native)

    def free_memory(self) -> int:
        return int(self._call(self._driver.cuMemGetInfo))  # then comes all of it

    def allocate(self, nbytes: int) -> DeviceMemory:
        native = self._call(self._driver.cuMemAlloc, nbytes)
        return DeviceMemory(int(native), nbytes, native)

    def free(self, memory: DeviceMemory) -> None:
        self._call(self._driver.cuMemFree, memory.native)

    def gpu_of(self, address: int) -> int | None:
        kinds = self._driver.CUpointer_attribute
        asked = (
            kinds.CU_POINTER_ATTRIBUTE_MEMORY_TYPE,
            kinds.CU_POINTER_ATTRIBUTE_IS_MANAGED,
            kinds.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL,
        )
        # The call for several takes an address that CUDA does not know, the one for one fails.
        answers = self._call(self._driver.cuPointerGetAttributes, len(asked), asked, address)
        place, managed, ordinal = answers
        on_gpu = place == self._driver.CUmemorytype.CU_MEMORYTYPE_DEVICE
        return int(ordinal) if on_gpu and not managed else None

    def allocate_pinned(self, nbytes: int) -> NDArray[np.uint8]:
        flags = self._driver.CU_MEMHOSTALLOC_PORTABLE
        address = int(self._call(self._driver.cuMemHostAlloc, nbytes, int(flags)))
        return np.frombuffer(memoryview((ctypes.c_uint8 * nbytes).from_address(address)), np.uint8)

    def free_pinned(self, array: NDArray[np.uint8]) -> None:
        self._call(self._driver.cuMemFreeHost, array.ctypes.data)

    def copy_in(self, address: int, pinned: NDArray[Any], stream: Stream) -> None:
        source, target = pinned.ctypes.data, self._driver.CUdeviceptr(address)
        self._call(self._driver.cuMemcpyHtoDAsync, target, source, pinned.nbytes, stream.native)

    def copy_out(self, pinned: NDArray[Any], address: int, stream: Stream) -> None:
        target, source = pinned.ctypes.data, self._driver.CUdeviceptr(address)
        self._call(self._driver.cuMemcpyDtoHAsync, target, source, pinned.nbytes, stream.native)

    def create_event(self) -> Event:
        flags = self._driver.CUevent_flags.CU_EVENT_DEFAULT
        return self._call(self._driver.cuEventCreate, int(flags))

    def record(self, event: Event, stream: Stream) -> None:
        self._call(self._driver.cuEventRecord, event, stream.native)

    def elapsed_ms(self, start: Event, end: Event) -> float:
        return float(self._call(self._driver.cuEventElapsedTime, start, end))

    def destroy_event(self, event: Event) -> None:
        self._call(self._driver.cuEventDestroy, event)

    def begin_capture(self, stream: Stream) -> None:
        # Thread-local: what other threads do meanwhile, allocations included, is none of its.
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call(self._driver.cuStreamBeginCapture, stream.native, mode)

    def end_capture(self, stream: Stream) -> Graph:
        recorded = self._call(self._driver.cuStreamEndCapture, stream.native)
        try:
            return self._call(self._driver.cuGraphInstantiate, recorded, 0)
        finally:
            self._call(self._driver.cuGraphDestroy, recorded)

    def launch(self, graph: Graph, stream: Stream) -> None:
        self._call(self._driver.cuGraphLaunch, graph, stream.native)

    def destroy_graph(self, graph: Graph) -> None:
        self._call(self._driver.cuGraphExecDestroy, graph)

    def close(self) -> None:
        if self._context is not None:
            self._context = None
            self._call(self._driver.cuDevicePrimaryCtxRelease, self._device)


def load_driver() -> Any:
    """Import `cuda.bindings.driver`; it imports without a driver or GPU."""
    # Of two extras, hence its own name.
    return import_extra("cuda.bindings.driver", "running an engine", "cuda-python")
