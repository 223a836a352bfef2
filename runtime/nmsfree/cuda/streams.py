"""The number behind a stream of an application, whatever library made it."""

from nmsfree.errors import InputError

# Attributes that hold it: PyTorch, pycuda, CuPy.
_ATTRIBUTES = ("cuda_stream", "handle", "ptr")


def stream_handle(stream: object) -> int:
    """Return the number of a stream: an int itself, `__cuda_stream__`, PyTorch, CuPy, pycuda.

    Raises:
        InputError: it is none of these.
    """
    if isinstance(stream, int) and not isinstance(stream, bool):
        return stream
    protocol = getattr(stream, "__cuda_stream__", None)
    if callable(protocol):
        return int(protocol()[1])  # (version, handle)
    for name in _ATTRIBUTES:
        value = getattr(stream, name, None)
        if value is not None:
            return int(value)
    raise InputError(
        f"stream is a {type(stream).__name__}, expected a CUDA stream of cuda-python, PyTorch, "
        "CuPy or pycuda, or its number"
    )
