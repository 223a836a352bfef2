"""ONNX Runtime's two ways to an NVIDIA GPU: its CUDA provider, and TensorRT-RTX as a plugin."""

import logging
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmsfree.backends.contract import check_images, image_port, one_line, output_shapes
from nmsfree.backends.onnxruntime.session import (
    FATAL,
    OUTPUTS,
    Opened,
    Run,
    check_placement,
    make_session,
    vendor_errors,
)
from nmsfree.backends.options import Device, Options
from nmsfree.cuda.base import DOCTOR, NO_MEMORY
from nmsfree.errors import EngineError, InputError, ModelError, import_extra
from nmsfree.machine import Gpu, find_gpus
from nmsfree.spec import ModelSpec

logger = logging.getLogger(__name__)

CUDA = "CUDAExecutionProvider"
TF32_VARIABLE = "NVIDIA_TF32_OVERRIDE"
WARNING = 2  # ONNX Runtime's own default log severity
WARM_UP_RUNS = 3  # memory is taken in the first, the graph captured by the second, replayed after
PLUGIN_SINCE = "1.24"  # what the plugin asks for
PLUGIN_CALLS = ("add_provider_for_devices",)  # of session options, what it takes
# What ONNX Runtime tells of a GPU on Linux, and the plugin's number of it.
ADDRESS, NUMBER = "pci_bus_id", "device_id"

_registering = threading.Lock()


def gpu_errors() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises when a GPU, its driver or its libraries fail."""
    return (*vendor_errors(), RuntimeError, ValueError, OSError)


def run_failed(device: str, error: Exception) -> EngineError:
    """The error for a run on a GPU that failed with images that the model takes."""
    line = one_line(error)
    no_memory = "out of memory" in line.lower() or "failed to allocate" in line.lower()
    advice = NO_MEMORY if no_memory else DOCTOR
    return EngineError(f"device is '{device}', but ONNX Runtime failed there ({line}): {advice}")


def open_gpu(path: Path, spec: ModelSpec, device: Device, options: Options) -> Opened:
    """Open a file on the CUDA provider, or for "tensorrt-rtx" on ONNX Runtime's plugin."""
    return (_open_cuda if device.kind == "cuda" else _open_plugin)(path, spec, device, options)


def _open_cuda(path: Path, spec: ModelSpec, device: Device, options: Options) -> Opened:
    import onnxruntime as ort

    gpu = _gpus(device)[device.index]
    if CUDA not in ort.get_available_providers():
        raise EngineError(
            f"device is '{device}', but the installed onnxruntime {ort.__version__} is built"
            " without CUDA, and it and onnxruntime-gpu exclude one another: pip uninstall -y"
            ' onnxruntime && pip install "nmsfree[cuda]"'
        )
    missing = _preload(ort)
    # NMS gives as many rows as it finds: its shapes are not those of the run that was captured.
    # A graph is of uint8 images of one size.
    kind, size = image_port(spec)
    fixed = kind == "uint8" and None not in size and spec.nms is None
    graphs = [True, False] if fixed else [False]
    for graph in graphs:
        try:
            return _on_cuda(path, spec, device, gpu, options, graph)
        except gpu_errors() as error:
            if not graph:
                raise _not_started(device, missing or one_line(error)) from None
            logger.info("no CUDA graph for %s: %s", path, one_line(error))
        except EngineError:
            # A library that is missing is why ONNX Runtime left the GPU, and helps more.
            if missing:
                raise _not_started(device, missing) from None
            raise
    raise AssertionError


def _on_cuda(
    path: Path, spec: ModelSpec, device: Device, gpu: Gpu, options: Options, graph: bool
) -> Opened:
    settings = {
        "device_id": str(device.index),
        "use_tf32": str(int(options.tf32)),
        "enable_cuda_graph": str(int(graph)),
    }
    with _silent():
        session = make_session(path, threads=options.threads, provider=CUDA, settings=settings)
    rest = check_placement(session, CUDA, str(device), options.allow_cpu)
    how = "CUDA graph" if graph else "no CUDA graph"
    text = _describe("CUDA", gpu, options.tf32, f", {how}{rest}")
    if not graph:
        return Opened(bound_run(session), text, str(device))
    run = GraphRun(session, spec, "cuda", device.index)
    return Opened(run, text, str(device), run.close)


def _open_plugin(path: Path, spec: ModelSpec, device: Device, options: Options) -> Opened:
    plugin = import_extra(
        "onnxruntime_ep_nv_tensorrt_rtx",
        "running an ONNX file on TensorRT-RTX",
        "nmsfree[tensorrt-rtx-ort]",
    )
    # The plugin has no option for TF32; TensorRT-RTX itself obeys a variable.
    if spec.precision == "fp32" and not options.tf32 and os.environ.get(TF32_VARIABLE) != "0":
        raise InputError(
            f"device is '{device}', but ONNX Runtime's TensorRT-RTX plugin computes FP32 files in"
            f" TF32: set {TF32_VARIABLE}=0 in the environment, allow it (tf32=True, --tf32), or"
            " make an engine with `nmsfree build`"
        )
    gpus = _gpus(device)
    try:
        with _silent():
            found = _plugin_device(plugin, device, gpus)
            session = make_session(path, threads=options.threads, plugin=found)
    except gpu_errors() as error:
        raise _not_started(device, one_line(error)) from None
    rest = check_placement(session, plugin.get_ep_name(), str(device), options.allow_cpu)
    text = _describe("TensorRT-RTX", gpus[device.index], options.tf32, rest)
    return Opened(lambda images: session.run(OUTPUTS, {"images": images}), text, str(device))


def _plugin_device(plugin: Any, device: Device, gpus: Sequence[Gpu]) -> Any:
    """The `OrtEpDevice` of a GPU; loads the plugin once in this process, raises vendor errors."""
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
    """
    gpu = gpus[device.index]
    here = [_at(d, gpu) for d in found]  # None: addresses are not told

    def is_meant(position: int) -> bool:
        number = found[position].ep_options.get(NUMBER)
        if here[position] is None:
            return int(number or position) == device.index
        return bool(here[position]) and number in (None, str(device.index))

    fitting: Sequence[Any] = []
    if len(gpus) == 1:
        fitting = found
    elif len(found) == len(gpus) or None not in here:
        fitting = [d for i, d in enumerate(found) if is_meant(i)]
    if fitting:
        return fitting[0]
    if all(at is False for at in here):
        raise EngineError(
            f"device is '{device}', but ONNX Runtime's TensorRT-RTX plugin takes {len(found)} of"
            f" the GPUs here: it needs an RTX 30 or newer, found {gpu}"
        )
    raise EngineError(
        f"device is '{device}', but ONNX Runtime's TensorRT-RTX plugin counts the {len(gpus)} GPUs"
        f" here in another way and may take another: set CUDA_VISIBLE_DEVICES={device.index} and"
        f" use {device.kind}, or make an engine with `nmsfree build`"
    )


def _at(found: Any, gpu: Gpu) -> bool | None:
    """Whether a device has the address of a GPU; None: one of the two is not told."""
    told = found.device.metadata.get(ADDRESS)
    return _numbers(told) == _numbers(gpu.bus) if told and gpu.bus else None


def _numbers(bus: str) -> list[int]:
    """ "0000:65:00.0" → [0, 0x65, 0, 0]: libraries differ in leading zeros."""
    return [int(part, 16) for part in bus.replace(".", ":").split(":")]


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


@contextmanager
def _silent() -> Iterator[None]:
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


def bound_run(session: Any) -> Run:
    """Run a session with a binding of its own for every call, so that threads may share it."""

    def run(images: NDArray[np.uint8]) -> list[NDArray[Any]]:
        binding = session.io_binding()
        binding.bind_cpu_input("images", np.ascontiguousarray(images))
        for name in OUTPUTS:
            binding.bind_output(name)
        session.run_with_iobinding(binding)
        outputs: list[NDArray[Any]] = binding.copy_outputs_to_cpu()
        return outputs

    return run


class GraphRun:
    """Replays one captured graph over fixed buffers.

    A graph belongs to the thread that captured it and may not be replayed twice at once, so one
    thread owns it and runs for all the others. The session was made with CUDA graphs on, for a file
    of fixed batch size; the buffers lie in "cuda" (or "cpu", for tests), on the GPU of that index.
    """

    def __init__(self, session: Any, spec: ModelSpec, place: str, index: int) -> None:
        assert spec.batch is not None
        self._session, self._spec = session, spec
        self._buffers: Any = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="nmsfree-cuda-graph")
        try:
            self._thread.submit(self._bind, spec.batch, place, index).result()
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

    def _bind(self, n: int, place: str, index: int) -> None:
        """Make the buffers, bind them once and for all, and capture the graph."""
        from onnxruntime import OrtValue

        def make(shape: tuple[int, ...], kind: str) -> Any:
            return OrtValue.ortvalue_from_shape_and_type((n, *shape), np.dtype(kind), place, index)

        _, (_, *size) = image_port(self._spec)
        images = make(tuple(size), "uint8")  # type: ignore[arg-type]  # no side is open
        shapes = output_shapes(self._spec.top_k)
        outputs = [make(shape, kind) for kind, shape in shapes.values()]
        binding = self._session.io_binding()
        binding.bind_ortvalue_input("images", images)
        for name, value in zip(OUTPUTS, outputs, strict=True):
            binding.bind_ortvalue_output(name, value)
        self._buffers = images, outputs, binding
        for _ in range(WARM_UP_RUNS):
            self._replay(np.zeros((n, *size), np.uint8))  # type: ignore[arg-type]

    def _replay(self, images: NDArray[np.uint8]) -> list[NDArray[Any]]:
        bound, outputs, binding = self._buffers
        bound.update_inplace(images)
        self._session.run_with_iobinding(binding)
        return [np.array(value.numpy()) for value in outputs]
