"""The engines that exported files are measured in, each opened as an application opens it.

For TensorRT-RTX an engine is built of the exported file, for the GPU of this machine; a file that
needs NMS is then exported with NMS in plain operators.
"""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from nmsfree.backends import Backend, Options, open_backend
from nmsfree.backends.onnxruntime.gpu import TF32_VARIABLE
from nmsfree.backends.options import parse_device
from nmsfree.backends.tensorrt.sidecar import read_sidecar
from nmsfree.backends.tensorrt.targets import resolve_targets
from nmsfree.backends.tensorrt.vendor import load_vendor
from nmsfree.doctor.model import write_model
from nmsfree.errors import EngineError, InputError, NmsfreeError
from nmsfree.machine import Gpu, computes_bf16, find_gpus, sha256
from nmsfree.spec import Target
from nmsfree.text import meant
from nmsfree_benchmarks.harness.memory import build_tiny
from nmsfree_benchmarks.harness.options import CPU
from nmsfree_benchmarks.harness.records import Results

BF16_MISSING = "the processor has no bfloat16 arithmetic, it would be emulated"
# FP32 is FP32: TF32 is off unless asked for. Copies to and from the GPU are inside the timer.
GPU = {"tf32": False, "transfers": "in and out"}


@dataclass(frozen=True)
class Engine:
    key: str  # in result files
    label: str  # in texts
    short: str  # in narrow tables
    device: str  # as `Detector` takes it
    arithmetic: Literal["f32", "bf16"] | None = None  # OpenVINO's precision
    builds: bool = False  # an engine is built of the file and run in its place
    gpu: Mapping[str, Any] | None = None  # what result files say of a GPU's state

    @property
    def target(self) -> Target:
        return "cpu" if self.gpu is None else "tensorrt"

    def state(self, backend: Backend, precision: str) -> dict[str, Any]:
        """What result files say of the opened engine: attributes of `records.State`.

        OpenVINO's bf16 replaces the `precision` of FP32 and FP16 files, 8 bits stay.
        """
        found: dict[str, Any] = {"engine": self.key, **(self.gpu or {})}
        if self.gpu is not None:
            found.setdefault("cuda_graph", has_graph(backend))
        if self.arithmetic == "bf16" and precision != "int8":
            found["precision"] = "bf16"
        return found

    def ran(self, file: Path) -> Path:
        """What runs in place of an exported file."""
        return file.with_suffix(".engine") if self.builds else file

    def open(self, file: Path, threads: int) -> Backend:
        """Open an exported file (NmsfreeError: it does not run here; the text says why)."""
        if self.builds:
            return open_backend(build_here(file, parse_device(self.device).index), self.device)
        if self.arithmetic == "bf16" and computes_bf16() is False:
            raise EngineError(BF16_MISSING)
        return open_backend(file, self.device, Options(threads, precision=self.arithmetic))


DEPLOYED = "onnxruntime"
REFERENCES = (DEPLOYED, "onnxruntime_cuda")  # what others stand beside, on either device
RTX = "tensorrt-rtx"
ENGINES = {
    engine.key: engine
    for engine in (
        Engine(DEPLOYED, "ONNX Runtime", "ONNX Runtime", CPU),
        Engine("openvino", "OpenVINO", "OpenVINO", "openvino", "f32"),
        Engine("openvino_bf16", "OpenVINO bf16", "OpenVINO bf16", "openvino", "bf16"),
        Engine("onnxruntime_cuda", "ONNX Runtime CUDA", "ORT CUDA", "cuda", gpu=GPU),
        Engine(
            "tensorrt_rtx_plugin", "ONNX Runtime TensorRT-RTX", "ORT TensorRT-RTX", RTX, gpu=GPU
        ),
        Engine("tensorrt_rtx", "TensorRT-RTX", "TensorRT-RTX", RTX, builds=True, gpu=GPU),
    )
}
ON = {  # kind of device → key of `ENGINES`
    CPU: DEPLOYED,
    "openvino": "openvino",
    "cuda": "onnxruntime_cuda",
    RTX: "tensorrt_rtx",
}


def has_graph(backend: Backend) -> bool | None:
    """Whether runs replay a CUDA graph, as the backend says; None where it does not say."""
    said = backend.describe()
    return "no CUDA graph" not in said if "CUDA graph" in said else None


def the_gpu(index: int = 0, device: str = "") -> Gpu:
    """A GPU of this machine, counted as CUDA counts (EngineError: there is none, or no driver)."""
    gpus = find_gpus()
    if gpus.problem:
        raise EngineError(gpus.problem)
    if index >= len(gpus.found):
        shown = "; ".join(f"{i} = {gpu}" for i, gpu in enumerate(gpus.found))
        asked = f"device is '{device}'" if device else f"GPU {index} was asked for"
        raise EngineError(f"{asked}, but the NVIDIA GPUs here are: {shown}")
    return gpus.found[index]


def build_here(file: Path, index: int = 0) -> Path:
    """Build an engine for a GPU of this machine beside the file, unless it is there already.

    EngineError: there is no such GPU. NmsfreeError: the builder is missing, or not for this GPU.
    """
    from nmsfree_export.tensorrt.build import BuildOptions, build_engine

    major, minor = the_gpu(index).capability
    engine, sm = file.with_suffix(".engine"), 10 * major + minor
    try:  # loading checks the rest of what it is
        built = read_sidecar(engine)
        there = engine.is_file() and built.onnx_sha256 == sha256(file) and sm in built.targets
    except NmsfreeError:  # there is none
        there = False
    if not there:
        build_engine(file, engine, BuildOptions(sms=(sm,)))
    return engine


def use_device(text: str) -> str:
    """Make sure that a device works, before minutes of exports are made for it.

    The runtime's own tiny model, or an engine of it, is opened. Returns the device's name, the same
    for "cuda" and "cuda:0".

    Raises:
        InputError: none of the questions is asked there, or no engine can be built for the GPU.
        EngineError: it is not there, or does not start.
        MissingExtraError: what runs files there is not installed.
    """
    try:
        place = parse_device(text)
    except InputError:
        place = None
    if place is None or place.kind not in ON or place.plugin not in ("", "CPU"):
        raise InputError(
            f"device is {text!r}, this benchmark runs on: {', '.join(ON)}; cuda:1 is the second GPU"
            + meant(() if place else ON, text.lower())
        )
    if place.kind == CPU:
        return CPU
    engine, name = ENGINES[ON[place.kind]], place.kind
    if engine.gpu is not None:
        without_tf32()
        name = str(place)
        major, minor = the_gpu(place.index, name).capability
        if engine.builds:
            resolve_targets((), (10 * major + minor,), load_vendor("tensorrt-rtx").buildable())
    with tempfile.TemporaryDirectory(prefix="nmsfree-bench-") as folder:
        tiny = write_model(Path(folder))
        open_backend(build_tiny(tiny, place.index) if engine.builds else tiny, name).close()
    return name


def without_tf32() -> None:
    """FP32 is FP32 on a GPU, too; its libraries read this once, when they are loaded."""
    os.environ.setdefault(TF32_VARIABLE, "0")


def engine_of(device: str) -> Engine:
    return replace(ENGINES[ON[parse_device(device).kind]], device=device)


def on_gpu(device: str) -> bool:
    """Whether a device is a GPU, which has no processor threads to be given."""
    return engine_of(device).gpu is not None


def ran_in(results: Results) -> list[str]:
    """Say what really ran the models, where it was not ONNX Runtime on the processor."""
    if results.environment["device"] == CPU:
        return []
    providers = dict.fromkeys(r.subject.provider for r in results.records if r.subject is not None)
    return [f"Run in {'; '.join(providers)}."]
