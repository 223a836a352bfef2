"""Reading a DLPack capsule: where an array is and what it looks like.

The capsule is only looked into, never consumed: it frees the array by itself when it is dropped.
"""

import ctypes
from dataclasses import dataclass
from typing import Any

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
    """Read what `__dlpack__()` returned; the layout holds while the capsule is kept.

    Raises:
        InputError: it is not a fresh capsule.
    """
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
