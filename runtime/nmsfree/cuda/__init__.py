"""CUDA as the backends need it: one small interface, two implementations and a fake.

`base.Cuda` is the interface. `cuda_python.CudaPython` (wheels) and `pycuda.PyCuda` (for
applications that use pycuda) run on a GPU, `fake.FakeCuda` runs the same code without one.
"""

from nmsfree.cuda.base import Cuda, DeviceMemory, Event, Graph, Stream
from nmsfree.cuda.choose import open_cuda

__all__ = ["Cuda", "DeviceMemory", "Event", "Graph", "Stream", "open_cuda"]
