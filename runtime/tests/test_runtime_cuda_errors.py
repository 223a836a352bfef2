"""What goes wrong in CUDA, in our words: no driver, no GPU, codes, missing packages, pycuda."""

import gc
import sys
import weakref
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from pycuda_driver import pycuda_installed
from runtime_helpers import refused

from nmsfree import EngineError, InputError, MissingExtraError
from nmsfree.cuda import cuda_python, open_cuda
from nmsfree.cuda.base import stream_handle

pytest.importorskip("cuda.bindings", reason="needs cuda-python, which macOS has not")

pytestmark = pytest.mark.usefixtures("small_heap")
DOCTOR = "`nmsfree doctor` says what is missing"


class Driver:
    """`cuda.bindings.driver` on a machine that answers as told: every call gives `status`."""

    CUresult = SimpleNamespace(CUDA_SUCCESS=0)
    NAMES = {  # noqa: RUF012
        35: (b"CUDA_ERROR_INSUFFICIENT_DRIVER", b"CUDA driver version is insufficient"),
        100: (b"CUDA_ERROR_NO_DEVICE", b"no CUDA-capable device is detected"),
        803: (b"CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", b"system has unsupported display driver"),
        12345: (None, None),
    }

    def __init__(self, status: int = 0, count: int = 1) -> None:
        self.status, self.count = status, count

    def cuInit(self, flags: int) -> tuple[int]:
        return (self.status,)

    def cuDeviceGetCount(self) -> tuple[int, int]:
        return (0, self.count)

    def cuGetErrorName(self, status: int) -> tuple[int, bytes | None]:
        return (0, self.NAMES[status][0])

    def cuGetErrorString(self, status: int) -> tuple[int, bytes | None]:
        return (0, self.NAMES[status][1])


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (
            100,
            "CUDA: cuInit failed (no CUDA-capable device is detected, CUDA_ERROR_NO_DEVICE): "
            f"this machine has no NVIDIA GPU that can be used: {DOCTOR}",
        ),
        (
            35,
            "CUDA: cuInit failed (CUDA driver version is insufficient, "
            "CUDA_ERROR_INSUFFICIENT_DRIVER): update the NVIDIA driver",
        ),
        (
            803,
            "CUDA: cuInit failed (system has unsupported display driver, "
            "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH): restart the machine to finish the driver's update",
        ),
        (12345, f"CUDA: cuInit failed (no reason given): {DOCTOR}"),
    ],
)
def test_a_code_of_cuda_becomes_one_line(
    monkeypatch: pytest.MonkeyPatch, status: int, message: str
) -> None:
    monkeypatch.setattr(cuda_python, "load_driver", lambda: Driver(status))
    assert refused(cuda_python.CudaPython, EngineError) == message


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            "libcuda.so.1\nwas not found",
            f"no NVIDIA driver that can be used (libcuda.so.1 was not found): {DOCTOR}",
        ),
        (
            "function cuInit is not found",
            "the NVIDIA driver is too old (function cuInit is not found): update it",
        ),
    ],
)
def test_a_machine_without_a_driver_says_so(
    monkeypatch: pytest.MonkeyPatch, said: str, message: str
) -> None:
    class NoDriver(Driver):
        def cuInit(self, flags: int) -> tuple[int]:
            raise RuntimeError(said)

    monkeypatch.setattr(cuda_python, "load_driver", NoDriver)
    assert refused(cuda_python.CudaPython, EngineError) == message


def test_the_real_package_says_so_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """On machines without a driver; its exception is NVIDIA's, not ours."""
    from nmsfree.machine import find_gpus

    pytest.importorskip("cuda.bindings.driver")
    if find_gpus().cuda is not None:
        pytest.skip("this machine has a driver")
    message = refused(lambda: open_cuda("cuda-python"), EngineError)
    assert message.startswith("no NVIDIA driver that can be used (")
    assert message.endswith(f"): {DOCTOR}")


@pytest.mark.parametrize(
    ("index", "count", "message"),
    [
        (0, 0, f"no NVIDIA GPU found: {DOCTOR}"),
        (2, 2, "GPU 2 does not exist, this machine has 2, counted from 0"),
    ],
)
def test_a_gpu_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, index: int, count: int, message: str
) -> None:
    monkeypatch.setattr(cuda_python, "load_driver", lambda: Driver(count=count))
    assert refused(lambda: cuda_python.CudaPython(index), EngineError) == message


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("cuda.bindings.driver", "pycuda", "pycuda.driver"):
        monkeypatch.setitem(sys.modules, module, None)
    message = refused(lambda: open_cuda("cuda-python"), MissingExtraError)
    assert message == (
        'running an engine needs a package that is not installed: pip install "cuda-python"'
    )
    message = refused(lambda: open_cuda("pycuda"), MissingExtraError)
    assert message == (
        'CUDA through pycuda needs a package that is not installed: pip install "nmsfree[pycuda]"'
    )


def test_a_users_stream_is_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """CuPy and PyTorch destroy a stream with the last reference to its object."""

    class CupyStream:
        ptr = 8

    driver: Any = Driver()
    vars(driver).update(
        cuDeviceGet=lambda index: (0, index),
        cuDevicePrimaryCtxRetain=lambda device: (0, "context"),
        CUstream=lambda handle: f"stream {handle}",
    )
    monkeypatch.setattr(cuda_python, "load_driver", lambda: driver)
    monkeypatch.setattr(cuda_python, "version", lambda name: "13")
    theirs = CupyStream()
    alive = weakref.ref(theirs)
    ours = cuda_python.CudaPython().adopt_stream(theirs)
    del theirs
    gc.collect()
    assert alive() is not None
    assert (ours.handle, ours.native, ours.owned) == (8, "stream 8", False)
    del ours
    gc.collect()
    assert alive() is None


def test_another_layer_is_refused() -> None:
    message = refused(lambda: open_cuda("cupy"), InputError)  # type: ignore[arg-type]
    assert message == "cuda is 'cupy', expected 'cuda-python' or 'pycuda'"


@pytest.fixture
def with_pycuda() -> Iterator[list[str]]:
    """An application that has imported pycuda; gives what is called."""
    with pycuda_installed() as log:
        yield log


def test_pycuda_is_taken_where_the_application_uses_it(with_pycuda: list[str]) -> None:
    cuda = open_cuda()
    assert (cuda.name, cuda.can_capture, cuda.sm()) == ("pycuda 2026.1", False, 89)
    assert with_pycuda == ["init", "retain primary"]
    with cuda.active():
        stream = cuda.create_stream()
        cuda.wait_for(stream, 5)
    assert with_pycuda[2:] == ["push", "stream 1", "synchronize context", "pop"]
    assert stream.handle == 77


def test_pycuda_keeps_one_context_for_the_process(with_pycuda: list[str]) -> None:
    """Letting go of it would leave a context pushed in the thread."""
    first = open_cuda()
    first.close()
    second = open_cuda()
    with second.active():
        second.close()
    assert with_pycuda == ["init", "retain primary", "init", "push", "pop"]


def test_the_context_of_pycuda_is_popped_after_a_failure(with_pycuda: list[str]) -> None:
    cuda = open_cuda("pycuda")
    with pytest.raises(KeyError), cuda.active():
        raise KeyError
    assert with_pycuda[-1] == "pop"


def test_errors_of_pycuda_become_one_line(
    with_pycuda: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = open_cuda("pycuda")
    driver: Any = sys.modules["pycuda.driver"]
    for call, said in (
        ("mem_alloc", "cuMemAlloc failed: out of memory"),
        ("pagelocked_empty", "something odd"),
    ):
        failing = Mock(side_effect=driver.Error(said))
        monkeypatch.setattr(driver, call, failing)
    assert refused(lambda: cuda.allocate(1), EngineError) == (
        "CUDA: cuMemAlloc failed (out of memory): "
        "close other programs on the GPU, or run smaller batches"
    )
    assert refused(lambda: cuda.allocate_pinned(1), EngineError) == (
        f"CUDA: cuMemHostAlloc failed (something odd): {DOCTOR}"
    )
    stream: Any = SimpleNamespace()
    assert refused(lambda: cuda.begin_capture(stream), EngineError) == (
        "pycuda cannot record CUDA graphs: give cuda='cuda-python'"
    )


def test_pycuda_takes_its_own_streams_only(with_pycuda: list[str]) -> None:
    cuda = open_cuda("pycuda")
    native = sys.modules["pycuda.driver"].Stream()  # type: ignore[attr-defined]
    assert cuda.adopt_stream(native).handle == 77
    assert refused(lambda: cuda.adopt_stream(5), InputError) == (
        "stream is a int, expected a pycuda.driver.Stream: pycuda takes no other, give "
        "cuda='cuda-python' to use it"
    )


def test_a_context_of_its_own_is_refused(
    monkeypatch: pytest.MonkeyPatch, with_pycuda: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pycuda.autoinit", ModuleType("pycuda.autoinit"))
    assert refused(open_cuda, InputError) == (
        "pycuda.autoinit made a CUDA context of its own, whose arrays and streams nothing else "
        "can use: import pycuda.autoprimaryctx in its place"
    )


def test_streams_of_every_library_are_read() -> None:
    protocol = type("S", (), {"__cuda_stream__": lambda self: (0, 5)})()
    for stream, handle in (
        (3, 3),
        (protocol, 5),
        (SimpleNamespace(cuda_stream=6), 6),  # PyTorch
        (SimpleNamespace(handle=7), 7),  # pycuda
        (SimpleNamespace(ptr=8), 8),  # CuPy
    ):
        assert stream_handle(stream) == handle
    assert refused(lambda: stream_handle(np.zeros(1)), InputError) == (
        "stream is a ndarray, expected a CUDA stream of cuda-python, PyTorch, CuPy or pycuda, or "
        "its number"
    )
