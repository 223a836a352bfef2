"""The CUDA interface: the same tests over the fake and, on a GPU, over both implementations."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
from pycuda_driver import pycuda_installed

from nmsfree import InputError
from nmsfree.cuda import Cuda, DeviceMemory, Stream, open_cuda
from nmsfree.errors import MissingExtraError
from nmsfree.machine import find_gpus
from nmsfree.testing.cuda import FakeCuda

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
LAYERS = [
    "fake",
    "fake without graphs",
    "pycuda on the host's memory",
    pytest.param("cuda-python", marks=pytest.mark.gpu),
    pytest.param("pycuda", marks=pytest.mark.gpu),
]


def open_layer(name: str) -> Cuda:
    if name.startswith("fake"):
        return FakeCuda(can_capture=name == "fake")
    problem = find_gpus().problem
    if problem:
        pytest.skip(f"needs a GPU: {problem}")
    try:
        return open_cuda(name)  # type: ignore[arg-type]
    except MissingExtraError as error:
        pytest.skip(str(error))


@pytest.fixture(params=LAYERS)
def cuda(request: pytest.FixtureRequest) -> Iterator[Cuda]:
    stand_in = request.param.startswith("pycuda on")
    with pycuda_installed() if stand_in else nullcontext():
        opened = open_cuda("pycuda") if stand_in else open_layer(request.param)
        yield opened
        opened.close()


@contextmanager
def buffers(cuda: Cuda, nbytes: int) -> Iterator[tuple[Stream, DeviceMemory, Bytes, Bytes]]:
    """A stream, GPU memory and two page-locked arrays, freed at the end of the block."""
    with cuda.active():
        stream, memory = cuda.create_stream(), cuda.allocate(nbytes)
        there, back = cuda.allocate_pinned(nbytes), cuda.allocate_pinned(nbytes)
        yield stream, memory, there, back
        cuda.free_pinned(there)
        cuda.free_pinned(back)
        cuda.free(memory)
        cuda.destroy_stream(stream)


def round_trip(cuda: Cuda, data: Bytes) -> bytes:
    """Host → GPU → host."""
    with buffers(cuda, data.nbytes) as (stream, memory, there, back):
        there[:] = data
        cuda.copy_in(memory.address, there, stream)
        cuda.copy_out(back, memory.address, stream)
        cuda.synchronize(stream)
        return back.tobytes()


def test_the_gpu_is_named(cuda: Cuda) -> None:
    assert cuda.device_count() > cuda.index >= 0
    assert cuda.device_name()
    assert cuda.sm() >= 50
    assert cuda.name


def test_free_memory_is_told(cuda: Cuda) -> None:
    with cuda.active():
        assert 1 << 20 < cuda.free_memory() < 1 << 50


def test_a_worker_thread_needs_no_context_of_its_own(cuda: Cuda) -> None:
    datas = [np.random.default_rng(i).integers(0, 256, 50_000, np.uint8) for i in range(16)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda data: round_trip(cuda, data), datas))
    assert found == [data.tobytes() for data in datas]


def test_it_is_known_which_gpu_an_address_is_on(cuda: Cuda) -> None:
    with cuda.active():
        memory = cuda.allocate(1000)
        told = None if cuda.name.startswith("pycuda") else cuda.index
        assert cuda.gpu_of(memory.address) == told
        assert cuda.gpu_of(np.zeros(1000, np.uint8).ctypes.data) is None  # the host's
        cuda.free(memory)


def test_parts_of_buffers_are_copied(cuda: Cuda) -> None:
    with cuda.active(), buffers(cuda, 64) as (stream, memory, pinned, _):  # `active` may nest
        pinned[:] = np.arange(64)
        cuda.copy_in(memory.address + 16, pinned[:16], stream)
        cuda.copy_out(pinned[32:48], memory.address + 16, stream)
        cuda.synchronize(stream)
        assert pinned.tolist() == [*range(32), *range(16), *range(48, 64)]


def test_events_tell_the_time(cuda: Cuda) -> None:
    with cuda.active():
        stream = cuda.create_stream()
        start, end = cuda.create_event(), cuda.create_event()
        cuda.record(start, stream)
        cuda.record(end, stream)
        cuda.synchronize(stream)
        assert cuda.elapsed_ms(start, end) >= 0
        cuda.destroy_event(start)
        cuda.destroy_event(end)
        cuda.destroy_stream(stream)


def test_a_graph_replays_what_was_recorded(cuda: Cuda) -> None:
    if not cuda.can_capture:
        pytest.skip(f"{cuda.name} has no graphs")
    with buffers(cuda, 8) as (stream, memory, there, back):
        other = cuda.create_stream()
        back[:] = 0
        cuda.begin_capture(stream)
        cuda.copy_in(memory.address, there, stream)
        cuda.copy_out(back, memory.address, stream)
        graph = cuda.end_capture(stream)
        cuda.synchronize(stream)
        assert not back.any()  # recorded, not done
        for value in (1, 2):
            there[:] = value
            cuda.launch(graph, other)
            cuda.synchronize(other)
            assert back.tolist() == [value] * 8
        cuda.destroy_graph(graph)
        cuda.destroy_stream(other)


def test_one_stream_waits_for_another(cuda: Cuda) -> None:
    with buffers(cuda, 8) as (producer, memory, there, back):
        consumer = cuda.create_stream()
        there[:] = 7
        cuda.copy_in(memory.address, there, producer)
        cuda.wait_for(consumer, producer.handle)
        cuda.copy_out(back, memory.address, consumer)
        cuda.synchronize(consumer)
        assert back.tolist() == [7] * 8
        cuda.synchronize(producer)
        cuda.destroy_stream(consumer)


def test_a_users_stream_is_used_and_left_alone(cuda: Cuda) -> None:
    with cuda.active():
        theirs = cuda.create_stream()
        ours = cuda.adopt_stream(theirs.native)
        assert ours.handle == theirs.handle
        assert not ours.owned
        cuda.destroy_stream(ours)
        cuda.synchronize(theirs)  # it is still there
        cuda.destroy_stream(theirs)


def test_other_objects_are_no_streams(cuda: Cuda) -> None:
    with cuda.active(), pytest.raises(InputError, match=r"^stream is a str, expected a "):
        cuda.adopt_stream("stream")


def test_the_fake_does_work_when_it_is_waited_for() -> None:
    """Otherwise no test could see that somebody forgot to wait."""
    cuda = FakeCuda()
    with cuda.active():
        stream, memory, pinned = cuda.create_stream(), cuda.allocate(4), cuda.allocate_pinned(4)
        pinned[:] = 1
        cuda.copy_in(memory.address, pinned, stream)
        pinned[:] = 2  # too early: the copy has not been done
        assert cuda.memory(memory.address, 4).tolist() == [0xA5] * 4
        cuda.synchronize(stream)
        assert cuda.memory(memory.address, 4).tolist() == [2] * 4
        assert cuda.live() == {"streams": 1, "device allocations": 1, "pinned allocations": 1}


def _without_context(cuda: FakeCuda) -> None:
    cuda.create_stream()


def _past_the_end(cuda: FakeCuda) -> None:
    with cuda.active():
        memory, pinned = cuda.allocate(4), cuda.allocate_pinned(8)
        cuda.copy_in(memory.address, pinned, cuda.create_stream())


def _after_free(cuda: FakeCuda) -> None:
    with cuda.active():
        memory, pinned = cuda.allocate(4), cuda.allocate_pinned(4)
        cuda.free(memory)
        cuda.copy_out(pinned, memory.address, cuda.create_stream())


def _ordinary_memory(cuda: FakeCuda) -> None:
    with cuda.active():
        memory = cuda.allocate(4)
        cuda.copy_in(memory.address, np.zeros(4, np.uint8), cuda.create_stream())


def _busy_stream(cuda: FakeCuda) -> None:
    with cuda.active():
        stream = cuda.create_stream()
        cuda.record(cuda.create_event(), stream)
        cuda.destroy_stream(stream)


def _destroyed_while_recording(cuda: FakeCuda) -> None:
    with cuda.active():
        stream = cuda.create_stream()
        cuda.begin_capture(stream)
        cuda.destroy_stream(stream)


def _waiting_while_recording(cuda: FakeCuda) -> None:
    with cuda.active():
        stream = cuda.create_stream()
        cuda.begin_capture(stream)
        cuda.synchronize(stream)


def _after_close(cuda: FakeCuda) -> None:
    cuda.close()
    with cuda.active():
        pass


@pytest.mark.parametrize(
    ("crash", "message"),
    [
        (_without_context, "no CUDA context is current in this thread"),
        (_past_the_end, "illegal address"),
        (_after_free, "illegal address"),
        (_ordinary_memory, "the host memory is not page-locked"),
        (_busy_stream, "the stream still has work to do"),
        (_destroyed_while_recording, "the stream is recording"),
        (_waiting_while_recording, "a stream that records cannot be waited for"),
        (_after_close, "the context was given back"),
    ],
)
def test_the_fake_refuses_what_crashes_a_gpu(
    crash: Callable[[FakeCuda], None], message: str
) -> None:
    with pytest.raises(AssertionError, match=message):
        crash(FakeCuda())
