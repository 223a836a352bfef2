"""Runs of ONNX Runtime on a GPU: buffers bound by hand, or a captured CUDA graph."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmsfree.backends.contract import check_images
from nmsfree.backends.onnxruntime.session import OUTPUTS
from nmsfree.errors import ModelError
from nmsfree.spec import ModelSpec

WARM_UP_RUNS = 3  # memory is taken in the first, the graph captured by the second, replayed after


class BoundRun:
    """Runs a session with a binding of its own for every call, so threads may share it."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def __call__(self, images: NDArray[np.uint8]) -> list[NDArray[Any]]:
        """Run on uint8 [N, H, W, 3]; raises vendor errors."""
        binding = self._session.io_binding()
        binding.bind_cpu_input("images", np.ascontiguousarray(images))
        for name in OUTPUTS:
            binding.bind_output(name)
        self._session.run_with_iobinding(binding)
        outputs: list[NDArray[Any]] = binding.copy_outputs_to_cpu()
        return outputs

    def close(self) -> None:
        """Nothing of its own to free."""


class GraphRun:
    """Replays one captured graph over fixed buffers.

    A graph belongs to the thread that captured it and may not be replayed twice at once, so one
    thread owns it and runs for all the others.

    Args:
        session: made with CUDA graphs on, for a file of fixed batch size.
        spec: shapes of the buffers.
        place: where the buffers lie, "cuda" (or "cpu", for tests), and on which GPU.
    """

    def __init__(self, session: Any, spec: ModelSpec, place: str, index: int) -> None:
        assert spec.batch is not None
        self._session, self._spec = session, spec
        self._buffers: Any = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="nmsfree-cuda-graph")
        try:
            self._thread.submit(self._bind, place, index).result()
        except BaseException:
            self._thread.shutdown()
            raise

    def __call__(self, images: NDArray[np.uint8]) -> list[NDArray[Any]]:
        """Run on uint8 [N, H, W, 3]; raises ModelError and vendor errors."""
        check_images(images, self._spec)
        try:
            running = self._thread.submit(self._replay, np.ascontiguousarray(images))
        except RuntimeError:  # closed by another thread meanwhile
            raise ModelError("the detector is closed: open it again") from None
        return running.result()

    def close(self) -> None:
        self._thread.shutdown()
        self._buffers = None

    def _bind(self, place: str, index: int) -> None:
        """Make the buffers, bind them once and for all, and capture the graph."""
        from onnxruntime import OrtValue

        spec, k = self._spec, self._spec.top_k
        n = spec.batch or 1

        def make(shape: tuple[int, ...], kind: type[np.generic]) -> Any:
            return OrtValue.ortvalue_from_shape_and_type(shape, kind, place, index)

        images = make((n, spec.height, spec.width, 3), np.uint8)
        outputs = [
            make((n, 1), np.int32),
            make((n, k, 4), np.float32),
            make((n, k), np.float32),
            make((n, k), np.int32),
        ]
        binding = self._session.io_binding()
        binding.bind_ortvalue_input("images", images)
        for name, value in zip(OUTPUTS, outputs, strict=True):
            binding.bind_ortvalue_output(name, value)
        self._buffers = images, outputs, binding
        for _ in range(WARM_UP_RUNS):
            self._replay(np.zeros((n, spec.height, spec.width, 3), np.uint8))

    def _replay(self, images: NDArray[np.uint8]) -> list[NDArray[Any]]:
        bound, outputs, binding = self._buffers
        bound.update_inplace(images)
        self._session.run_with_iobinding(binding)
        return [np.array(value.numpy()) for value in outputs]
