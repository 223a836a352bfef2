"""Images that are on the GPU: read where they are, after their producer is done, or refused."""

import ctypes
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runtime_helpers as helpers
from numpy.typing import NDArray
from runtime_helpers import Noise, assert_equal

from nmsfree import InputError
from nmsfree.cuda.arrays import Layout, _Tensor, is_device_array, read_capsule
from nmsfree.testing.cuda import FakeCuda

UINT, FLOAT = 1, 2  # DLPack's codes
refused = helpers.refusing(InputError)
SHAPE = (3, 64, 96, 3)
EXAMPLE = Path(__file__).parents[2] / "examples" / "python" / "gpu_frames.py"


class Producer:
    """Images that another library puts on the fake GPU: written by work in a stream of its own.

    They are not there before somebody lets that stream run.
    """

    def __init__(self, cuda: FakeCuda, images: NDArray[np.uint8]) -> None:
        self.cuda, self.shape = cuda, images.shape
        with cuda.active():
            self.stream, self.memory = cuda.create_stream(), cuda.allocate(images.nbytes)
            target = cuda.memory(self.memory.address, images.nbytes)
            write = lambda: np.copyto(target, images.ravel())  # noqa: E731
            cuda.enqueue(self.stream.handle, write, "writes")

    def interface(self, **changes: Any) -> Any:
        """An object with `__cuda_array_interface__`."""
        values = {
            "shape": self.shape,
            "typestr": "|u1",
            "data": (self.memory.address, False),
            "strides": None,
            "version": 3,
            "stream": self.stream.handle,
        }
        values = {k: v for k, v in (values | changes).items() if v != "absent"}
        return type("Array", (), {"__cuda_array_interface__": values})()

    def dlpack(self, **changes: Any) -> "Dlpack":
        return Dlpack(self, **changes)


class Dlpack:
    """An object with `__dlpack__`, as PyTorch has it."""

    def __init__(
        self,
        producer: Producer,
        device: tuple[int, int] = (2, 0),
        code: int = UINT,
        bits: int = 8,
        strides: tuple[int, ...] | None = None,
        offset: int = 0,
        error: Exception | None = None,
    ) -> None:
        self.producer, self.device, self.error = producer, device, error
        shape = producer.shape
        self.tensor = _Tensor()
        self.tensor.data, self.tensor.byte_offset = producer.memory.address - offset, offset
        self.tensor.ndim = len(shape)
        self.tensor.dtype.code, self.tensor.dtype.bits, self.tensor.dtype.lanes = code, bits, 1
        self.tensor.shape = (ctypes.c_int64 * len(shape))(*shape)
        if strides:
            self.tensor.strides = (ctypes.c_int64 * len(strides))(*strides)
        self.asked: list[int] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, stream: int) -> Any:
        if self.error:
            raise self.error
        self.asked.append(stream)
        cuda = self.producer.cuda
        cuda.enqueue(stream, lambda: cuda._run(self.producer.stream.handle), "waits")
        new = ctypes.pythonapi.PyCapsule_New
        new.restype = ctypes.py_object
        new.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        return new(ctypes.addressof(self.tensor), b"dltensor", None)


@pytest.fixture(params=["tensorrt-rtx", "tensorrt"])
def rig(request: Any, make_rig: Any) -> Any:
    """An engine over the fakes, of batches of at most two, and the backend that runs it."""
    made = make_rig(request.param, batch=(1, 1, 1) if request.param == "tensorrt" else (1, 2, 2))
    made.backend = made.open()
    return made


@pytest.fixture
def images(noise: Noise) -> NDArray[np.uint8]:
    return np.stack([noise(i) for i in range(SHAPE[0])])


ROW_MAJOR = (64 * 96 * 3, 96 * 3, 3, 1)
TAKEN: list[Callable[[Producer], Any]] = [
    lambda p: p.dlpack(),
    lambda p: p.dlpack(strides=ROW_MAJOR),
    lambda p: p.dlpack(offset=64),
    lambda p: p.interface(),
    lambda p: p.interface(strides=ROW_MAJOR, typestr="<u1"),
]


def test_an_address_that_is_not_aligned_is_refused(rig: Any, images: NDArray[np.uint8]) -> None:
    producer = Producer(rig.cuda, images)
    odd = producer.interface(data=(producer.memory.address + 64, False))
    assert refused(lambda: rig.backend.run(odd)) == (
        "images on the GPU start at an address that is no multiple of 256, which TensorRT does "
        "not take: copy them first, as in images.clone()"
    )
    assert_equal(rig.backend.run(producer.interface()), rig(images))


@pytest.mark.parametrize("wrap", TAKEN)
def test_images_on_the_gpu_are_read_where_they_are(
    rig: Any, images: NDArray[np.uint8], wrap: Callable[[Producer], Any]
) -> None:
    producer = Producer(rig.cuda, images)
    array = wrap(producer)
    assert_equal(rig.backend.run(array), rig(images))
    assert rig.cuda.done["copies in"] == 0
    assert rig.cuda.done["graph launches"] == 0  # a graph would have another address in it
    rig.backend.close()
    assert rig.cuda.live() == {"streams": 1, "device allocations": 1}  # the producer's


def test_the_example_with_frames_on_the_gpu(rig: Any, images: NDArray[np.uint8]) -> None:
    example = runpy.run_path(str(EXAMPLE))
    found = example["boxes_of"](rig.backend, Producer(rig.cuda, images).dlpack())
    raw, least = rig(images), rig.backend.spec.threshold
    for boxes, i in zip(found, range(len(images)), strict=True):
        assert boxes == raw.detection_boxes[i][raw.detection_scores[i] > least].tolist()
    assert any(found)


def test_both_kinds_of_images_take_turns(rig: Any, images: NDArray[np.uint8]) -> None:
    """Images on the GPU leave the addresses alone that images on the host rely on."""
    flipped = np.ascontiguousarray(images[:, ::-1])
    for _ in range(2):
        assert_equal(rig.backend.run(images), rig(images))
        array = Producer(rig.cuda, flipped).interface()
        assert_equal(rig.backend.run(array), rig(flipped))


@pytest.mark.parametrize("stream", [None, "absent"])
def test_without_a_stream_the_default_stream_is_waited_for(
    rig: Any, images: NDArray[np.uint8], stream: Any
) -> None:
    producer = Producer(rig.cuda, images)
    with rig.cuda.active():
        run = lambda: rig.cuda._run(producer.stream.handle)  # noqa: E731
        rig.cuda.enqueue(1, run, "writes")
    assert_equal(rig.backend.run(producer.interface(stream=stream)), rig(images))


def test_the_producer_is_told_our_stream(rig: Any, images: NDArray[np.uint8]) -> None:
    array = Producer(rig.cuda, images).dlpack()
    rig.backend.run(array)
    context = rig.backend._pool._idle[True][0]
    assert array.asked == [context._stream.handle]


def test_images_on_another_gpu_are_noticed_where_the_interface_names_none(
    rig: Any, images: NDArray[np.uint8]
) -> None:
    producer = Producer(rig.cuda, images)
    rig.cuda.elsewhere[producer.memory.address] = 1
    assert refused(lambda: rig.backend.run(producer.interface())) == (
        "images are on GPU 1, the model is on GPU 0: move them, or open the model with device "
        "'cuda:1'"
    )
    assert rig.cuda.done["waits"] == 0  # nor is a stream of the other GPU waited for
    rig.cuda.elsewhere.clear()
    assert_equal(rig.backend.run(producer.interface()), rig(images))


WRONG: list[tuple[Callable[[Producer], Any], str]] = [
    (
        lambda p: p.dlpack(device=(2, 1)),
        "images are on GPU 1, the model is on GPU 0: move them, or open the model with device "
        "'cuda:1'",
    ),
    (lambda p: p.dlpack(code=FLOAT, bits=32), "images are float32, expected uint8 of 0 to 255"),
    (lambda p: p.interface(typestr="<f2"), "images are <f2, expected uint8 of 0 to 255"),
    (
        lambda p: p.dlpack(strides=(64 * 96 * 3, 1, 64, 64 * 96)),
        "images on the GPU are not contiguous, expected rows one after the other: call "
        ".contiguous() or copy them first",
    ),
    (
        lambda p: p.interface(strides=(64 * 96 * 3 * 2, 96 * 3, 3, 1)),
        "images on the GPU are not contiguous, expected rows one after the other: call "
        ".contiguous() or copy them first",
    ),
    (
        lambda p: p.dlpack(error=BufferError("it needs\na gradient")),
        "images cannot be taken through DLPack (it needs a gradient)",
    ),
    (
        lambda p: p.interface(stream=0),
        "images name stream 0, which the CUDA array interface does not allow",
    ),
    (
        lambda p: p.interface(data="absent"),
        "images have a __cuda_array_interface__ that cannot be read (KeyError('data'))",
    ),
]


@pytest.mark.parametrize(("wrap", "message"), WRONG)
def test_images_that_cannot_be_read_are_refused(
    rig: Any, images: NDArray[np.uint8], wrap: Callable[[Producer], Any], message: str
) -> None:
    array = wrap(Producer(rig.cuda, images))
    assert refused(lambda: rig.backend.run(array)) == message
    assert_equal(rig.backend.run(images), rig(images))


def test_another_shape_is_refused(make_rig: Any, images: NDArray[np.uint8]) -> None:
    rig = make_rig(batch=(1, 2, 2))
    array = Producer(rig.cuda, images[:, :32]).interface()
    assert refused(lambda: rig.open().run(array)) == (
        "the model refused images of 3 × 32 × 96 × 3 on the GPU (expected N × 64 × 96 × 3, uint8, "
        "in batches of 1 to 2)"
    )


def test_what_is_no_capsule_is_refused() -> None:
    message = refused(lambda: read_capsule("no capsule"))
    assert message.startswith("images gave a DLPack capsule that cannot be read (")


def test_host_arrays_are_no_device_arrays() -> None:
    assert not is_device_array(np.zeros(1))
    assert not is_device_array([1])


@pytest.mark.parametrize(
    ("array", "contiguous"),
    [
        (np.arange(24, dtype=np.uint8).reshape(2, 3, 4), True),
        (np.arange(24, dtype=np.uint8).reshape(2, 3, 4)[:, ::2], False),
        (np.arange(24, dtype=np.uint8).reshape(2, 3, 4)[:1], True),
        (np.arange(24, dtype=np.float32).reshape(2, 12).T, False),
    ],
)
def test_capsules_of_numpy_are_read(array: NDArray[Any], contiguous: bool) -> None:
    """The real thing: layout, address, type and shape as NumPy itself says."""
    capsule = array.__dlpack__()
    expected = Layout(array.ctypes.data, array.shape, str(array.dtype), contiguous)
    assert read_capsule(capsule) == expected
    assert read_capsule(capsule) == expected  # looked into, not consumed


@pytest.mark.slow
def test_capsules_of_torch_are_read() -> None:
    torch = pytest.importorskip("torch")
    for tensor in (torch.arange(12, dtype=torch.uint8).reshape(3, 4), torch.zeros(2, 3).half()):
        layout = read_capsule(tensor.__dlpack__())
        assert layout.address == tensor.data_ptr()
        assert layout.shape == tuple(tensor.shape)
        assert layout.type_name == str(tensor.dtype).removeprefix("torch.")
        assert layout.contiguous
