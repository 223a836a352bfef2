"""Images for an engine: what it takes, and batches of the size that it takes."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmsfree.backends.contract import refusal
from nmsfree.backends.tensorrt_engine import LoadedEngine
from nmsfree.cuda.arrays import DeviceImages
from nmsfree.errors import InputError

ALIGNMENT = 256  # bytes, asked for by IExecutionContext.set_tensor_address
Images = NDArray[np.uint8] | DeviceImages


def check_host(images: Any, engine: LoadedEngine) -> NDArray[np.uint8]:
    """Refuse what is not a NumPy array of the engine's images.

    Raises:
        InputError: no NumPy array.
        ModelError: another type or shape.
    """
    if not isinstance(images, np.ndarray):
        raise InputError(
            f"images are a {type(images).__name__}, expected a NumPy array or an array on the"
            " GPU (__dlpack__ or __cuda_array_interface__)"
        )
    if images.dtype != np.uint8 or not _fits(images.shape, engine):
        raise refusal(images, _expected(engine))
    return images


def check_device(images: DeviceImages, engine: LoadedEngine) -> None:
    """Refuse images on the GPU whose shape or address is none that the engine takes.

    Raises:
        InputError: another shape, or an address that is not aligned.
    """
    if not _fits(images.shape, engine):
        shape = " × ".join(map(str, images.shape))
        raise InputError(f"the model refused images of {shape} on the GPU ({_expected(engine)})")
    if any(piece.address % ALIGNMENT for piece in pieces(images, engine)):  # type: ignore[union-attr]
        raise InputError(
            f"images on the GPU start at an address that is no multiple of {ALIGNMENT}, which "
            "TensorRT does not take: copy them first, as in images.clone()"
        )


def _fits(shape: tuple[int, ...], engine: LoadedEngine) -> bool:
    if len(shape) != 4 or shape[0] < 1 or shape[1:] != engine.input.shape[1:]:
        return False
    last = shape[0] % engine.largest or engine.largest  # size of the last batch
    return last >= engine.smallest


def _expected(engine: LoadedEngine) -> str:
    _, h, w, c = engine.input.shape
    least = f", in batches of {engine.smallest} to {engine.largest}" if engine.dynamic else ""
    return f"expected {'N' if engine.dynamic else engine.largest} × {h} × {w} × {c}, uint8{least}"


def pieces(images: Images, engine: LoadedEngine) -> Iterator[Images]:
    """Cut images into batches that the engine takes."""
    count = images.shape[0]
    for first in range(0, count, engine.largest):
        last = min(first + engine.largest, count)
        if isinstance(images, DeviceImages):
            address = images.address + engine.input.nbytes(first)
            yield DeviceImages(address, (last - first, *images.shape[1:]), images.owner)
        else:
            yield images[first:last]
