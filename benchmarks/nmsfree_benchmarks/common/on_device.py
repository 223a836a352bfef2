"""Where a question runs its files: one device, opened as an application opens it.

It takes what `Detector(..., device=)` takes. For TensorRT-RTX an engine is built of the exported
file, for the GPU of this machine; NMS then comes behind it, on the host.
"""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nmsfree.backends import Backend, open_backend
from nmsfree.backends.onnxruntime.gpu import TF32_VARIABLE
from nmsfree.backends.options import Device, parse_device
from nmsfree.backends.tensorrt.targets import resolve_targets
from nmsfree.backends.tensorrt.vendor import load_vendor
from nmsfree.doctor.model import write_model
from nmsfree.errors import EngineError, InputError
from nmsfree.machine import Gpu, find_gpus, sha256
from nmsfree_benchmarks.common.engines import DEPLOYED, ENGINES, Engine
from nmsfree_benchmarks.common.run_options import RunOptions
from nmsfree_benchmarks.machine.gpu_watch import GpuWatch
from nmsfree_benchmarks.machine.memory_child import build_tiny
from nmsfree_benchmarks.record.records import Results, Subject

CPU = "cpu"
KEYS = {  # kind of device → key of `ENGINES`
    CPU: DEPLOYED,
    "openvino": "openvino",
    "cuda": "onnxruntime_cuda",
    "tensorrt-rtx": "tensorrt_rtx",
}


@dataclass(frozen=True, kw_only=True)
class DeviceOptions(RunOptions):
    """What to run, and where.

    Attributes:
        device: as `use_device` returns it.
    """

    device: str = CPU

    def settings(self) -> dict[str, Any]:
        """Results of the processor do not name it, as those of before there were others."""
        device = unless_cpu(self.device)
        return super().settings() | ({} if device is None else {"device": device})


def unless_cpu(device: str) -> str | None:
    """Return the device, or None for the one that need not be said."""
    return None if device == CPU else device


def use_device(text: str) -> str:
    """Make sure that a device works, before anything is made for it.

    Returns:
        Its name, the same for "cuda" and "cuda:0".

    Raises:
        InputError: it is none of those that the questions are asked on, or a GPU that no engine can
            be built for.
        EngineError: it is not there, or does not start.
        MissingExtraError: what runs files there is not installed.
    """
    place = _place(text)
    engine = ENGINES[KEYS[place.kind]]
    if engine.gpu is None:
        if place.kind != CPU:
            _try(place.kind)
        return place.kind
    # FP32 is FP32 on a GPU, too; its libraries read this once, when they are loaded.
    os.environ.setdefault(TF32_VARIABLE, "0")
    major, minor = _find(place).capability
    if engine.builds:
        resolve_targets((), (10 * major + minor,), load_vendor("tensorrt-rtx").buildable())
    _try(str(place), built=engine.builds)
    return str(place)


def _place(text: str) -> Device:
    try:
        place = parse_device(text)
    except InputError:
        place = None
    if place is None or place.kind not in KEYS or place.plugin not in ("", "CPU"):
        raise InputError(
            f"device is {text!r}, this benchmark runs on: {', '.join(KEYS)}; cuda:1 is the second "
            "GPU"
        )
    return place


def _find(place: Device) -> Gpu:
    """The GPU that is meant."""
    gpus = find_gpus()
    if gpus.problem:
        raise EngineError(gpus.problem)
    if place.index >= len(gpus.found):
        shown = "; ".join(f"{i} = {gpu}" for i, gpu in enumerate(gpus.found))
        raise EngineError(f"device is '{place}', but the NVIDIA GPUs here are: {shown}")
    return gpus.found[place.index]


def _try(device: str, built: bool = False) -> None:
    """Open the runtime's own tiny model, or an engine of it.

    A library that is missing or a driver that is too old is told before minutes of exports.
    """
    with tempfile.TemporaryDirectory(prefix="nmsfree-bench-") as folder:
        tiny = write_model(Path(folder))
        file = build_tiny(tiny, parse_device(device).index) if built else tiny
        open_backend(file, device).close()


def engine_of(device: str) -> Engine:
    """Return what runs exported files on a device."""
    return ENGINES[KEYS[parse_device(device).kind]]


def on_gpu(device: str) -> bool:
    """Whether a device is a GPU, which has no processor threads to be given."""
    return engine_of(device).gpu is not None


def open_on(file: Path, device: str, threads: int) -> Backend:
    """Open an exported file on a device.

    Raises:
        NmsfreeError: it does not run there; the text says why.
    """
    return replace(engine_of(device), device=device).open(file, threads)


def state_of(device: str, backend: Backend) -> dict[str, Any]:
    """Return what the device makes of a file: attributes of `records.Subject`."""
    engine = engine_of(device)
    return {"engine": engine.key, **engine.state(backend, backend.spec.precision)}


def subject_on(device: str, backend: Backend, file: Path, **rest: Any) -> Subject:
    """Describe an exported file that was opened with `open_on`; `rest` is what it cannot know."""
    return Subject.of(
        backend.spec,
        sha256=sha256(file),
        file_bytes=file.stat().st_size,
        provider=backend.description,
        **state_of(device, backend),
        **rest,
    )


def watch_gpu(device: str) -> GpuWatch:
    """Return what looks at a device's GPU between rounds; at nothing on the processor."""
    return GpuWatch(on_gpu(device), parse_device(device).index)


def after_round(gpu: GpuWatch, progress: Callable[[int, int], None]) -> Callable[[int, int], None]:
    """Return the progress of rounds that looks at the GPU first."""

    def tell(done: int, total: int) -> None:
        gpu.look()
        progress(done, total)

    return tell


def device_of(results: Results) -> str:
    """Return where the models of a run ran."""
    return str(results.environment.get("device", CPU))


def titled(title: str, results: Results) -> str:
    """Return a title that says where it was measured, unless on the processor as usual."""
    device = device_of(results)
    if device == CPU:
        return title
    gpu = results.environment.get("gpu") if on_gpu(device) else None
    return f"{title}, {engine_of(device).label}" + (f" on {gpu}" if gpu else "")


def ran_in(results: Results) -> list[str]:
    """Say what really ran the models, where it was not ONNX Runtime on the processor."""
    if device_of(results) == CPU:
        return []
    providers = dict.fromkeys(r.subject.provider for r in results.records if r.subject is not None)
    return [f"Run in {'; '.join(providers)}."]
