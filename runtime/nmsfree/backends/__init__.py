"""Engines that run a model: one file each, one protocol (`base.Backend`)."""

from importlib.metadata import entry_points

from nmsfree.backends.base import Backend, CallableBackend, RawDetections
from nmsfree.backends.contract import check_model_file
from nmsfree.backends.onnxruntime.backend import OnnxRuntimeBackend
from nmsfree.backends.openvino import OpenVinoBackend
from nmsfree.backends.options import DEFAULTS, PROCESSOR, Device, Options, parse_device
from nmsfree.errors import InputError, MissingExtraError, ModelError
from nmsfree.text import FilePath, as_path

__all__ = [
    "Backend",
    "CallableBackend",
    "OnnxRuntimeBackend",
    "OpenVinoBackend",
    "Options",
    "RawDetections",
    "open_backend",
]

CHECKPOINT_SUFFIXES = (".safetensors", ".pth")
ENGINE_SUFFIX = ".engine"


def open_backend(
    path: FilePath, device: str | Device | None = None, options: Options = DEFAULTS
) -> Backend:
    """Open a model by its file name.

    Args:
        path: `.onnx`, `.engine`, or a checkpoint if nmsfree-training is installed.
        device: "cpu", "cuda", "tensorrt-rtx", "tensorrt" or "openvino", see `parse_device`; None
            takes the GPU that an engine was built for, and the processor for other files.
        options: those that mean nothing to this file on this device are refused.

    Raises:
        InputError: no path, an unknown device, one that does not run such files, or an option
            that does not apply.
        ModelError: the suffix is none of these, or the file cannot be used.
        MissingExtraError: what runs such a file is not installed.
        EngineError: the device cannot run it on this machine.
    """
    path = as_path(path, "model")
    place = None if device is None else parse_device(device)
    suffix = path.suffix.lower()
    if suffix == ENGINE_SUFFIX:
        from nmsfree.backends.tensorrt.backend import TensorRtBackend  # loads msgspec and more

        return TensorRtBackend(path, place, options)
    place = place or PROCESSOR
    if suffix == ".onnx":
        if place.kind == "tensorrt":
            raise InputError(
                f"{path}: device is '{place}', which runs engines only: make one with"
                " `nmsfree build --with tensorrt`"
            )
        if place.kind == "openvino":
            return OpenVinoBackend(path, place.plugin, options)
        return OnnxRuntimeBackend(path, place, options)
    if suffix not in CHECKPOINT_SUFFIXES:
        raise ModelError(
            f"{path}: unknown kind of model '{path.suffix}', expected .onnx, {ENGINE_SUFFIX}"
            f" or a checkpoint ({', '.join(CHECKPOINT_SUFFIXES)})"
        )
    found = entry_points(group="nmsfree.backends", name="checkpoint")
    if not found:
        raise MissingExtraError("running a checkpoint", "nmsfree-training")
    if place.kind not in ("cpu", "cuda"):
        raise InputError(
            f"{path}: device is '{place}', but a checkpoint runs in PyTorch, on cpu or cuda:"
            " export it with `nmsfree export`"
        )
    options.check("a checkpoint", "threads", "sha256")
    if options.sha256 is not None and path.is_file():
        check_model_file(path, options.sha256)
    backend: Backend = next(iter(found)).load()(path, device=str(place), threads=options.threads)
    return backend
