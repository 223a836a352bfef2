"""Engines that run a model: one file each, one protocol (`base.Backend`)."""

from importlib.metadata import entry_points
from pathlib import Path

from nmsfree.backends.base import Backend, RawDetections
from nmsfree.backends.callable import CallableBackend
from nmsfree.backends.onnxruntime import OnnxRuntimeBackend
from nmsfree.errors import MissingExtraError, ModelError

__all__ = ["Backend", "CallableBackend", "OnnxRuntimeBackend", "RawDetections", "open_backend"]

CHECKPOINT_SUFFIXES = (".safetensors", ".pth")


def open_backend(path: str | Path, device: str = "cpu", threads: int | None = None) -> Backend:
    """Open a model by its file name: `.onnx`, or a checkpoint if nmsfree-training is installed.

    Raises:
        ModelError: the suffix is none of these, or the file cannot be used.
        MissingExtraError: what runs such a file is not installed.
    """
    path = Path(path)
    if path.suffix.lower() == ".onnx":
        return OnnxRuntimeBackend(path, device, threads)
    if path.suffix.lower() not in CHECKPOINT_SUFFIXES:
        raise ModelError(
            f"{path}: unknown kind of model '{path.suffix}', expected .onnx"
            f" or a checkpoint ({', '.join(CHECKPOINT_SUFFIXES)})"
        )
    found = entry_points(group="nmsfree.backends", name="checkpoint")
    if not found:
        raise MissingExtraError("running a checkpoint", "nmsfree-training")
    backend: Backend = next(iter(found)).load()(path, device=device, threads=threads)
    return backend
