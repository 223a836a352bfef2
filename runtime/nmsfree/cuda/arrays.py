"""Images that are on the GPU already: `__dlpack__` and `__cuda_array_interface__`, without a copy.

DLPack goes first, because it makes the producer wait: it is told our stream, and has the array
ready for work in it. The CUDA array interface names the producer's stream instead, for which ours
waits; where it names none, ours waits for the default stream, which costs microseconds. It does not
name the GPU either: the driver is asked for that.
"""

from dataclasses import dataclass
from typing import Any

from nmsfree.cuda.base import LEGACY_DEFAULT_STREAM, Cuda, Stream
from nmsfree.cuda.dlpack import KIND_CUDA, KIND_MANAGED, Layout, is_contiguous, read_capsule
from nmsfree.errors import InputError


@dataclass(frozen=True)
class DeviceImages:
    """Images on the GPU, uint8 [N, H, W, 3], contiguous; `owner` keeps their memory."""

    address: int
    shape: tuple[int, ...]
    owner: Any


def is_device_array(images: object) -> bool:
    """Whether an object says that its content is on a CUDA device."""
    if hasattr(images, "__dlpack_device__"):
        return int(images.__dlpack_device__()[0]) in (KIND_CUDA, KIND_MANAGED)
    return hasattr(images, "__cuda_array_interface__")


def read_device_array(images: Any, cuda: Cuda, stream: Stream) -> DeviceImages:
    """Take the address of images on the GPU; work put into `stream` from now on may read them.

    Raises:
        InputError: another GPU, type or layout, or an interface that is not as specified.
    """
    if hasattr(images, "__dlpack__"):
        layout, owner = _through_dlpack(images, cuda, stream)
    else:
        layout, owner = _through_interface(images.__cuda_array_interface__, cuda, stream), images
    _check(layout)
    return DeviceImages(layout.address, layout.shape, owner)


def _through_dlpack(images: Any, cuda: Cuda, stream: Stream) -> tuple[Layout, Any]:
    kind, index = images.__dlpack_device__()
    if int(kind) == KIND_CUDA:
        _check_gpu(int(index), cuda)
    try:
        capsule = images.__dlpack__(stream=stream.handle or LEGACY_DEFAULT_STREAM)
    except (RuntimeError, ValueError, TypeError, BufferError) as error:
        line = " ".join(str(error).split())[:200]
        raise InputError(f"images cannot be taken through DLPack ({line})") from None
    return read_capsule(capsule), (images, capsule)


def _through_interface(interface: Any, cuda: Cuda, stream: Stream) -> Layout:
    """Read `__cuda_array_interface__`, of any version."""
    try:
        address, shape = int(interface["data"][0]), tuple(int(n) for n in interface["shape"])
        type_name = str(interface["typestr"])
        strides = interface.get("strides")
        producer = interface.get("stream")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"images have a __cuda_array_interface__ that cannot be read ({error!r})"
        ) from None
    if producer == 0:
        raise InputError("images name stream 0, which the CUDA array interface does not allow")
    if address:  # else it is empty, which its shape will tell
        _check_gpu(cuda.gpu_of(address), cuda)  # before our stream waits for one of another GPU
    cuda.wait_for(stream, LEGACY_DEFAULT_STREAM if producer is None else int(producer))
    contiguous = strides is None or is_contiguous(shape, tuple(strides))  # bytes are elements here
    name = {"|u1": "uint8", "<u1": "uint8"}.get(type_name, type_name)
    return Layout(address, shape, name, contiguous)


def _check_gpu(index: int | None, cuda: Cuda) -> None:
    """Refuse images on another GPU; None: nobody knows which."""
    if index is not None and index != cuda.index:
        raise InputError(
            f"images are on GPU {index}, the model is on GPU {cuda.index}: move them, or open "
            f"the model with device 'cuda:{index}'"
        )


def _check(layout: Layout) -> None:
    if layout.type_name != "uint8":
        raise InputError(f"images are {layout.type_name}, expected uint8 of 0 to 255")
    if not layout.contiguous:
        raise InputError(
            "images on the GPU are not contiguous, expected rows one after the other: "
            "call .contiguous() or copy them first"
        )
