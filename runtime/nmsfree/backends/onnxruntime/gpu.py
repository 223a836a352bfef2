"""ONNX Runtime's two ways to an NVIDIA GPU: its CUDA provider, and TensorRT-RTX as a plugin."""

import contextlib
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nmsfree.backends.contract import one_line
from nmsfree.backends.onnxruntime.graph import BoundRun, GraphRun
from nmsfree.backends.onnxruntime.session import (
    FATAL,
    Opened,
    check_placement,
    create,
    create_on,
    run_plainly,
    vendor_errors,
)
from nmsfree.backends.options import Device, Options
from nmsfree.cuda.base import DOCTOR, NO_MEMORY
from nmsfree.errors import EngineError, InputError, import_extra
from nmsfree.machine import Gpu, find_gpus
from nmsfree.spec import ModelSpec

PLUGIN_SINCE = "1.24"  # what the plugin asks for
PLUGIN_CALLS = ("add_provider_for_devices",)  # of session options, what it takes
# What ONNX Runtime tells of a GPU on Linux, and the plugin's number of it.
ADDRESS, NUMBER = "pci_bus_id", "device_id"

_registering = threading.Lock()


def plugin_device(plugin: Any, device: Device, gpus: Sequence[Gpu]) -> Any:
    """The `OrtEpDevice` of a GPU; loads the plugin once in this process, raises vendor errors.

    Raises:
        EngineError: ONNX Runtime is too old, or the plugin does not take this GPU.
    """
    import onnxruntime as ort

    if not all(hasattr(ort.SessionOptions, call) for call in PLUGIN_CALLS):
        raise EngineError(
            f"device is '{device}', but onnxruntime {ort.__version__} takes no plugins, expected"
            f' {PLUGIN_SINCE} or newer: pip install -U "onnxruntime>={PLUGIN_SINCE}"'
        )
    name: str = plugin.get_ep_name()
    with _registering:
        if name not in {d.ep_name for d in ort.get_ep_devices()}:
            ort.register_execution_provider_library(name, plugin.get_library_path())
    return choose([d for d in ort.get_ep_devices() if d.ep_name == name], device, gpus)


def choose(found: Sequence[Any], device: Device, gpus: Sequence[Gpu]) -> Any:
    """The plugin's device that runs on a GPU; the plugin's list is in an order of its own.

    The plugin numbers the GPUs that it takes, and runs on the GPU that has this number with CUDA.
    So of several, only one will do whose address and number are both those of the GPU meant. Where
    addresses are not told (on Windows), numbers mean something if no GPU is left out.

    Raises:
        EngineError: there is none.
    """
    gpu = gpus[device.index]
    if len(gpus) == 1:
        fitting = list(found[:1])
    elif len(found) == len(gpus) or all(_at(d, gpu) is not None for d in found):
        fitting = [d for i, d in enumerate(found) if _is_meant(d, i, device.index, gpu)]
    else:
        fitting = []
    if fitting:
        return fitting[0]
    if all(_at(d, gpu) is False for d in found):
        raise EngineError(
            f"device is '{device}', but ONNX Runtime's TensorRT-RTX plugin takes {len(found)} of"
            f" the GPUs here: it needs an RTX 30 or newer, found {gpu}"
        )
    raise EngineError(
        f"device is '{device}', but ONNX Runtime's TensorRT-RTX plugin counts the {len(gpus)} GPUs"
        f" here in another way and may take another: set CUDA_VISIBLE_DEVICES={device.index} and"
        f" use {device.kind}, or make an engine with `nmsfree build`"
    )


def _is_meant(found: Any, position: int, index: int, gpu: Gpu) -> bool:
    at, number = _at(found, gpu), found.ep_options.get(NUMBER)
    if at is not None:
        return at and number in (None, str(index))
    return int(number or position) == index


def _at(found: Any, gpu: Gpu) -> bool | None:
    """Whether a device has the address of a GPU; None: one of the two is not told."""
    told = found.device.metadata.get(ADDRESS)
    return _numbers(told) == _numbers(gpu.bus) if told and gpu.bus else None


def _numbers(bus: str) -> list[int]:
    """ "0000:65:00.0" → [0, 0x65, 0, 0]: libraries differ in leading zeros."""
    return [int(part, 16) for part in bus.replace(".", ":").split(":")]


logger = logging.getLogger(__name__)

CUDA = "CUDAExecutionProvider"
TF32_VARIABLE = "NVIDIA_TF32_OVERRIDE"
WARNING = 2  # ONNX Runtime's own default log severity


def open_cuda(path: Path, spec: ModelSpec, device: Device, options: Options) -> Opened:
    """Open a file on ONNX Runtime's CUDA provider.

    Raises:
        EngineError: another ONNX Runtime is installed, there is no such GPU, or CUDA is missing.
    """
    import onnxruntime as ort

    if CUDA not in ort.get_available_providers():
        raise EngineError(
            f"device is '{device}', but the installed onnxruntime {ort.__version__} is built"
            " without CUDA, and it and onnxruntime-gpu exclude one another: pip uninstall -y"
            ' onnxruntime, then pip install "nmsfree[cuda]"'
        )
    gpu = _gpus(device)[device.index]
    missing = _preload(ort)
    # NMS gives as many rows as it finds: its shapes are not those of the run that was captured.
    graph = spec.batch is not None and spec.nms is None
    try:
        return _open_cuda(path, spec, device, gpu, options, graph)
    except gpu_errors() as error:
        raise _not_started(device, missing or one_line(error)) from None
    except EngineError:
        # A library that is missing is why ONNX Runtime left the GPU, and helps more.
        if missing:
            raise _not_started(device, missing) from None
        raise


def _open_cuda(
    path: Path, spec: ModelSpec, device: Device, gpu: Gpu, options: Options, graph: bool
) -> Opened:
    settings = {
        "device_id": str(device.index),
        "use_tf32": str(int(options.tf32)),
        "enable_cuda_graph": str(int(graph)),
    }
    run: BoundRun | GraphRun
    try:
        with _quiet():
            session = create(path, options.threads, CUDA, settings)
        rest = check_placement(session, CUDA, str(device))
        run = GraphRun(session, spec, "cuda", device.index) if graph else BoundRun(session)
    except gpu_errors() as error:
        if not graph:
            raise
        logger.info("no CUDA graph for %s: %s", path, one_line(error))
        return _open_cuda(path, spec, device, gpu, options, graph=False)
    how = "CUDA graph" if graph else "no CUDA graph"
    text = _describe("CUDA", gpu, options.tf32, f", {how}{rest}")
    return Opened(run, run.close, text, str(device))


def open_tensorrt_rtx(path: Path, spec: ModelSpec, device: Device, options: Options) -> Opened:
    """Open a file on the TensorRT-RTX plugin of ONNX Runtime.

    Raises:
        InputError: FP32 was asked for, which the plugin cannot promise.
        MissingExtraError: the plugin is not installed.
        EngineError: ONNX Runtime is too old, or there is no GPU that the plugin takes.
    """
    plugin = import_extra(
        "onnxruntime_ep_nv_tensorrt_rtx",
        "running an ONNX file on TensorRT-RTX",
        "nmsfree[tensorrt-rtx-ort]",
    )
    _check_tf32(spec, device, options)
    gpus = _gpus(device)
    try:
        with _quiet():
            found = plugin_device(plugin, device, gpus)
            session = create_on(path, options.threads, found, {})
    except gpu_errors() as error:
        raise _not_started(device, one_line(error)) from None
    rest = check_placement(session, plugin.get_ep_name(), str(device))
    text = _describe("TensorRT-RTX", gpus[device.index], options.tf32, rest)
    return Opened(run_plainly(session), lambda: None, text, str(device))


def gpu_errors() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises when a GPU, its driver or its libraries fail."""
    return (*vendor_errors(), RuntimeError, ValueError, OSError)


def run_failed(device: str, error: Exception) -> EngineError:
    """The error for a run on a GPU that failed with images that the model takes."""
    line = one_line(error)
    no_memory = "out of memory" in line.lower() or "failed to allocate" in line.lower()
    advice = NO_MEMORY if no_memory else DOCTOR
    return EngineError(f"device is '{device}', but ONNX Runtime failed there ({line}): {advice}")


def _check_tf32(spec: ModelSpec, device: Device, options: Options) -> None:
    """The plugin has no option for TF32; TensorRT-RTX itself obeys a variable."""
    if spec.precision == "fp32" and not options.tf32 and os.environ.get(TF32_VARIABLE) != "0":
        raise InputError(
            f"device is '{device}', but ONNX Runtime's TensorRT-RTX plugin computes FP32 files in"
            f" TF32: set {TF32_VARIABLE}=0 in the environment, allow it (tf32=True, --tf32), or"
            " make an engine with `nmsfree build`"
        )


def _gpus(device: Device) -> tuple[Gpu, ...]:
    """The GPUs here, with the one that is meant among them."""
    gpus = find_gpus()
    if gpus.problem:
        raise EngineError(
            f"device is '{device}', but {gpus.problem}: see `nmsfree doctor`, or use device cpu"
        )
    if device.index >= len(gpus.found):
        shown = "; ".join(f"{i} = {gpu}" for i, gpu in enumerate(gpus.found))
        raise EngineError(f"device is '{device}', but the NVIDIA GPUs here are: {shown}")
    return gpus.found


def _not_started(device: Device, reason: str) -> EngineError:
    extra = "cuda" if device.kind == "cuda" else "tensorrt-rtx-ort"
    return EngineError(
        f"device is '{device}', but ONNX Runtime could not start there ({reason}):"
        f' pip install "nmsfree[{extra}]" brings what it needs, `nmsfree doctor` tells more'
    )


def _preload(ort: Any) -> str:
    """Load CUDA's libraries from their packages; return what is missing, in words."""
    if not hasattr(ort, "preload_dlls"):
        return ""
    lines: list[str] = []
    # It prints what it cannot load. Its own module gets another `print`: redirecting stdout would
    # swallow what other threads write meanwhile.
    ort.print = lambda *words: lines.append(" ".join(map(str, words)))
    try:
        ort.preload_dlls()
    finally:
        del ort.print
    failed = [line.partition(": ")[2] for line in lines if line.startswith("Failed to load")]
    return failed[0] if failed else ""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep ONNX Runtime's process-wide logger off stderr: what it tells is raised in one line.

    Its severity can be set and not asked for (1.32), so what an application had set before is lost:
    it is the library's default afterwards.
    """
    import onnxruntime as ort

    ort.set_default_logger_severity(FATAL)
    try:
        yield
    finally:
        ort.set_default_logger_severity(WARNING)


def _describe(provider: str, gpu: Gpu, tf32: bool, rest: str) -> str:
    import onnxruntime as ort

    state = "TF32 allowed" if tf32 else "TF32 off"
    return f"ONNX Runtime {ort.__version__} {provider}, {gpu.name}, {state}{rest}"
