"""What runs a network: one small protocol."""

import ctypes
import os
import weakref
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from nmsfree.errors import EngineError, InputError
from nmsfree.spec import ModelSpec


class RawDetections(NamedTuple):
    """Output of a model for a batch of N images, names and layout of NVIDIA's EfficientNMS.

    num_detections: int32 [N, 1], rows with a score above the stored floor.
    detection_boxes: float32 [N, K, 4], xyxy in input pixels.
    detection_scores: float32 [N, K], descending.
    detection_classes: int32 [N, K].
    """

    num_detections: NDArray[np.int32]
    detection_boxes: NDArray[np.float32]
    detection_scores: NDArray[np.float32]
    detection_classes: NDArray[np.int32]


class Backend(Protocol):
    """Something that runs a model. `run` must be safe to call from several threads.

    It may have `arithmetic`: a name of `spec.Canary.tolerances`; "cpu" if it has none.
    """

    @property
    def spec(self) -> ModelSpec: ...

    def describe(self) -> str:
        """Engine, version, device and threads, as shown to the user."""

    def run(self, images: NDArray[np.uint8]) -> RawDetections:
        """Run the model on uint8 [N, H, W, 3], BGR; N is `spec.batch` where that is fixed."""

    def close(self) -> None:
        """Free what the backend holds; `run` may not be called afterwards."""


class Forkable(Protocol):
    """A backend with threads of a library's; `after_fork` lets go of all that needs them."""

    def after_fork(self) -> None: ...


# Backends whose `after_fork` is called in every child that is forked while they live.
watched: "weakref.WeakSet[Forkable]" = weakref.WeakSet()


def never_free(*things: object) -> None:
    """Take a reference that is never given back, not even when Python ends."""
    for thing in things:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def forked(engine: str) -> EngineError:
    """The error for an engine that was started before the fork."""
    return EngineError(
        f"{engine} was started before this process was forked, and does not survive that: open"
        " detectors after the fork only, or start processes with multiprocessing's 'spawn'"
    )


def _in_child() -> None:
    for backend in tuple(watched):
        backend.after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_in_child)


class CallableBackend:
    """Run `function(images uint8 [N, H, W, 3] BGR) -> RawDetections` as a model.

    Raises:
        InputError: `function` cannot be called, or `spec` is not a ModelSpec.
    """

    def __init__(
        self,
        function: Callable[[NDArray[np.uint8]], RawDetections],
        spec: ModelSpec,
        description: str = "callable",
    ) -> None:
        if not callable(function) or not isinstance(spec, ModelSpec):
            raise InputError(
                f"a callable backend takes a function and a ModelSpec, found"
                f" {type(function).__name__} and {type(spec).__name__}"
            )
        self.spec = spec
        self._description = description
        self._function = function

    def describe(self) -> str:
        return self._description

    def run(self, images: NDArray[np.uint8]) -> RawDetections:
        return self._function(images)

    def close(self) -> None:
        """Nothing to free."""
