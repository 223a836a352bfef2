"""CUDA as the backends need it: one small interface, two implementations and a fake.

`base.Cuda` is the interface. `cuda_python.CudaPython` (wheels) and `pycuda.PyCuda` (for
applications that use pycuda) run on a GPU, `nmsfree.testing.cuda.FakeCuda` the same without one.
"""

import sys
from typing import Literal

from nmsfree.cuda.base import Cuda, DeviceMemory, Event, Graph, Stream
from nmsfree.errors import InputError

Layer = Literal["cuda-python", "pycuda"]


def open_cuda(layer: Layer | None = None, index: int = 0) -> Cuda:
    """Open CUDA on one GPU, in its primary context.

    Args:
        layer: "cuda-python" or "pycuda"; None takes pycuda where the application has imported
            pycuda.driver, and cuda-python elsewhere.
        index: which GPU, as CUDA counts them.

    Raises:
        InputError: another layer, or pycuda has a context of its own (`pycuda.autoinit`).
        MissingExtraError: the package is not installed.
        EngineError: no driver, no such GPU.
    """
    if layer is None:
        layer = "pycuda" if "pycuda.driver" in sys.modules else "cuda-python"
    if layer == "cuda-python":
        from nmsfree.cuda.cuda_python import CudaPython

        return CudaPython(index)
    if layer == "pycuda":
        from nmsfree.cuda.pycuda import PyCuda

        return PyCuda(index)
    raise InputError(f"cuda is {layer!r}, expected 'cuda-python' or 'pycuda'")


__all__ = ["Cuda", "DeviceMemory", "Event", "Graph", "Stream", "open_cuda"]
