"""A fake of pycuda, which cannot be installed without CUDA."""

import ctypes
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nmsfree.cuda import pycuda


class PycudaDriver(ModuleType):
    """A fake of `pycuda.driver` on the host's memory, written from its documentation.

    It does at once what it is asked to, and writes into `log` what is done to contexts and streams.
    """

    class Error(Exception):
        """Of every call that fails."""

    class Event:
        def record(self, stream: Any = None) -> None:
            self.time = time.perf_counter()

        def time_since(self, event: "PycudaDriver.Event") -> float:
            return 1000 * (self.time - event.time)

    class Allocation:
        """On the device, or page-locked; NumPy makes an array of the second."""

        def __init__(self, nbytes: int) -> None:
            self.content = (ctypes.c_uint8 * nbytes)()
            data = ctypes.addressof(self.content), False
            self.__array_interface__ = {
                "shape": (nbytes,), "typestr": "|u1", "data": data, "version": 3
            }  # fmt: skip

        def __int__(self) -> int:
            return ctypes.addressof(self.content)

        def free(self) -> None:
            del self.content

    def __init__(self, log: list[str]) -> None:
        super().__init__("pycuda.driver")

        class Context:
            def push(self) -> None:
                log.append("push")

            @staticmethod
            def pop() -> None:
                log.append("pop")

            @staticmethod
            def synchronize() -> None:
                log.append("synchronize context")

        class Device:
            def __init__(self, number: int) -> None: ...

            @staticmethod
            def count() -> int:
                return 1

            def retain_primary_context(self) -> Context:
                log.append("retain primary")
                return Context()

            def name(self) -> str:
                return "GPU"

            def compute_capability(self) -> tuple[int, int]:
                return (8, 9)

        class Stream:
            handle = 77

            def __init__(self, flags: int = 0) -> None:
                log.append(f"stream {flags}")

            def synchronize(self) -> None: ...

        self.Device, self.Stream = Device, Stream
        self.init = lambda flags=0: log.append("init")

    def mem_get_info(self) -> tuple[int, int]:
        return 1 << 29, 1 << 30

    def mem_alloc(self, nbytes: int) -> Any:
        return self.Allocation(nbytes)

    def pagelocked_empty(
        self, shape: int, dtype: Any, order: str = "C", mem_flags: int = 0
    ) -> NDArray[np.uint8]:
        return np.asarray(self.Allocation(shape))

    def memcpy_htod_async(self, dest: int, src: NDArray[Any], stream: Any = None) -> None:
        ctypes.memmove(dest, src.ctypes.data, src.nbytes)

    def memcpy_dtoh_async(self, dest: NDArray[Any], src: int, stream: Any = None) -> None:
        ctypes.memmove(dest.ctypes.data, src, dest.nbytes)


@contextmanager
def pycuda_installed() -> Iterator[list[str]]:
    """An application that has imported pycuda, for the block; gives what is called."""
    log: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "pycuda", ModuleType("pycuda"))
        patch.setitem(sys.modules, "pycuda.driver", PycudaDriver(log))
        patch.setattr(pycuda, "version", lambda name: "2026.1")
        patch.setattr(pycuda, "_primary_contexts", {})
        yield log
