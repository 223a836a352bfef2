"""Images that are on the GPU already: `__dlpack__` and `__cuda_array_interface__`, without a copy.

DLPack goes first, because it makes the producer wait: it is told our stream, and has the array
ready for work in it. The CUDA array interface names the producer's stream instead, for which ours
waits; where it names none, ours waits for the default stream, which costs microseconds. It does not
name the GPU either: the driver is asked for that.
"""

import ctypes
from dataclasses import dataclass
from typing import Any

from nmsfree.cuda.base import LEGACY_DEFAULT_STREAM, Cuda, Stream
from nmsfree.errors import InputError

# From dlpack.h: kinds of devices, and of numbers.
KIND_CUDA, KIND_MANAGED = 2, 13
_NUMBERS = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 5: "complex", 6: "bool"}


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    """`DLTensor`, the first member of `DLManagedTensor`."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


@dataclass(frozen=True)
class Layout:
    """Where an array is, its shape, its type by name, and whether it is contiguous."""

    address: int
    shape: tuple[int, ...]
    type_name: str
    contiguous: bool


def read_capsule(capsule: Any) -> Layout:
    """Read what `__dlpack__()` returned; the layout holds while the capsule is kept."""
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype, get_pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    try:
        pointer = get_pointer(capsule, b"dltensor")
    except (ValueError, ctypes.ArgumentError) as error:
        raise InputError(f"images gave a DLPack capsule that cannot be read ({error})") from None
    tensor = ctypes.cast(pointer, ctypes.POINTER(_Tensor)).contents
    shape = tuple(tensor.shape[: tensor.ndim])
    strides = tuple(tensor.strides[: tensor.ndim]) if tensor.strides else None
    kind = _NUMBERS.get(tensor.dtype.code, f"type {tensor.dtype.code}")
    return Layout(
        (tensor.data or 0) + tensor.byte_offset,
        shape,
        f"{kind}{tensor.dtype.bits}" + (f"x{tensor.dtype.lanes}" if tensor.dtype.lanes > 1 else ""),
        strides is None or is_contiguous(shape, strides),
    )


def is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether strides, in elements, are those of rows one after the other."""
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size > 1 and stride != step:
            return False
        step *= size
    return True


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
