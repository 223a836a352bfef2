"""Engines that run a model: one file each, one protocol (`base.Backend`)."""

from importlib.metadata import entry_points
from pathlib import Path

from nmsfree.backends.base import Backend, CallableBackend, RawDetections
from nmsfree.backends.onnxruntime.backend import OnnxRuntimeBackend
from nmsfree.backends.openvino import OpenVinoBackend
from nmsfree.backends.options import DEFAULTS, Device, Options, parse_device
from nmsfree.decode import check_file
from nmsfree.errors import InputError, MissingExtraError, ModelError
from nmsfree.machine import other_file, sha256
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
MAX_ONNX = 2 << 30  # bytes that one file can have


def open_backend(path: FilePath, device: str | None = None, options: Options = DEFAULTS) -> Backend:
    """Open a model by its file name.

    Args:
        path: `.onnx`, `.engine`, or a checkpoint if nmsfree-training is installed.
        device: "cpu", "cuda", "tensorrt-rtx", "tensorrt" or "openvino", see `devices`; None takes
            the GPU that an engine was built for, and the processor for other files.
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
    if suffix == ".onnx":
        return _open_onnx(path, place or Device("cpu"), options)
    if suffix == ENGINE_SUFFIX:
        return _open_engine(path, place, options)
    if suffix in CHECKPOINT_SUFFIXES:
        return _open_checkpoint(path, place or Device("cpu"), options)
    raise ModelError(
        f"{path}: unknown kind of model '{path.suffix}', expected .onnx, {ENGINE_SUFFIX}"
        f" or a checkpoint ({', '.join(CHECKPOINT_SUFFIXES)})"
    )


def _open_onnx(path: Path, device: Device, options: Options) -> Backend:
    if device.kind == "tensorrt":
        raise InputError(
            f"{path}: device is '{device}', which runs engines only: make one with"
            " `nmsfree build --with tensorrt`"
        )
    check_file(path, MAX_ONNX, ModelError)
    if device.kind == "openvino":
        options.check("OpenVINO", "threads", "precision", "sha256")
        _check_sha256(path, options.sha256)
        return OpenVinoBackend(path, device.plugin, options.threads, options.precision or "f32")
    options.check(f"ONNX Runtime on {device}", "threads", "allow_cpu", "tf32", "sha256")
    _check_sha256(path, options.sha256)
    return OnnxRuntimeBackend(
        path, str(device), options.threads, allow_cpu=options.allow_cpu, tf32=options.tf32
    )


def _open_engine(path: Path, device: Device | None, options: Options) -> Backend:
    options.check("an engine", "rebuild", "trust", "sha256")
    if device is not None and device.kind in ("cpu", "openvino"):
        raise InputError(
            f"{path}: device is '{device}', but an engine runs on an NVIDIA GPU: give the ONNX"
            " file, or leave the device out"
        )
    if not path.is_file():
        raise ModelError(f"{path}: no such file, expected an engine made by `nmsfree build`")
    from nmsfree.backends.tensorrt.backend import TensorRtBackend

    place = None if device is None else str(device)
    return TensorRtBackend(
        path, place, rebuild=options.rebuild, trust=options.trust, sha256=options.sha256
    )


def _open_checkpoint(path: Path, device: Device, options: Options) -> Backend:
    found = entry_points(group="nmsfree.backends", name="checkpoint")
    if not found:
        raise MissingExtraError("running a checkpoint", "nmsfree-training")
    if device.kind not in ("cpu", "cuda"):
        raise InputError(
            f"{path}: device is '{device}', but a checkpoint runs in PyTorch, on cpu or cuda:"
            " export it with `nmsfree export`"
        )
    options.check("a checkpoint", "threads", "sha256")
    _check_sha256(path, options.sha256)
    open_checkpoint = next(iter(found)).load()
    backend: Backend = open_checkpoint(path, device=str(device), threads=options.threads)
    return backend


def _check_sha256(path: Path, expected: str | None) -> None:
    """Refuse another file than the application means; engines are checked as they are loaded."""
    if expected is None or not path.is_file():
        return
    found = sha256(path)
    if found != expected:
        raise other_file(path, found, expected)
