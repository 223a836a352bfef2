"""Which engines the table of `nmsfree bench` has besides ONNX Runtime on the processor.

Every one is opened as an application opens it; one that does not run on this machine is left out
with the reason that the runtime gives.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nmsfree.backends import Backend, Options, open_backend
from nmsfree.errors import EngineError
from nmsfree.gpus import find_gpus
from nmsfree.identity import computes_bf16
from nmsfree_export.precision import Precision

BF16_MISSING = "the processor has no bfloat16 arithmetic, it would be emulated"


@dataclass(frozen=True)
class DeviceEngine:
    """One way to run an exported file.

    Attributes:
        key, label, short: in result files, in Markdown, in narrow tables.
        device: of `Detector`.
        precision: of the exported file.
        builds: whether an engine is built of the file and run in its place.
        arithmetic: OpenVINO's, where it is another than the file's.
        gpu: what result files say of a GPU's state; None for a processor.
    """

    key: str
    label: str
    short: str
    device: str
    precision: Precision = "fp32"
    builds: bool = False
    arithmetic: str | None = None
    gpu: Mapping[str, Any] | None = field(default=None)

    def state(self, backend: Backend) -> dict[str, Any]:
        """What result files say of the opened engine: attributes of `records.Subject`."""
        found = dict(self.gpu or {})
        if self.gpu is not None:
            found["cuda_graph"] = has_graph(backend)
        if self.arithmetic is not None:
            found["precision"] = self.arithmetic
        return found

    def ran(self, file: Path) -> Path:
        """Return what runs in place of an exported file."""
        return file.with_suffix(".engine") if self.builds else file

    def open(self, file: Path, threads: int) -> Backend:
        """Open an exported file.

        Raises:
            NmsfreeError: it does not run here; the text says why.
        """
        if self.builds:
            return open_backend(build_here(file), self.device)
        if self.arithmetic == "bf16" and computes_bf16() is False:
            raise EngineError(BF16_MISSING)
        return open_backend(file, self.device, Options(threads, precision=self.arithmetic))


# FP32 is FP32: TF32 is off unless asked for. Copies to and from the GPU are inside the timer.
GPU = {"tf32": False, "transfers": "in and out"}
DEVICES: dict[str, tuple[DeviceEngine, ...]] = {
    "cpu": (
        DeviceEngine("openvino", "OpenVINO", "OpenVINO", "openvino"),
        DeviceEngine(
            "openvino_bf16", "OpenVINO, bf16", "OpenVINO bf16", "openvino", arithmetic="bf16"
        ),
    ),
    "cuda": (
        DeviceEngine("onnxruntime_cuda", "ONNX Runtime CUDA", "ORT CUDA", "cuda", gpu=GPU),
        DeviceEngine(
            "onnxruntime_cuda_fp16",
            "ONNX Runtime CUDA, FP16",
            "ORT CUDA fp16",
            "cuda",
            "fp16",
            gpu=GPU,
        ),
        DeviceEngine(
            "tensorrt_rtx", "TensorRT-RTX", "TRT-RTX", "tensorrt-rtx", builds=True, gpu=GPU
        ),
        DeviceEngine(
            "tensorrt_rtx_fp16",
            "TensorRT-RTX, FP16",
            "TRT-RTX fp16",
            "tensorrt-rtx",
            "fp16",
            builds=True,
            gpu=GPU,
        ),
    ),
}
ALL = {engine.key: engine for engines in DEVICES.values() for engine in engines}


def has_graph(backend: Backend) -> bool | None:
    """Whether runs replay a CUDA graph, as the backend says; None where it does not say."""
    said = backend.description
    return "no CUDA graph" not in said if "CUDA graph" in said else None


def build_here(file: Path) -> Path:
    """Build an engine for the GPU of this machine beside the file.

    Raises:
        EngineError: there is no GPU.
        NmsfreeError: the builder is missing, or does not build for this GPU.
    """
    from nmsfree_export.engine import BuildOptions, build_engine

    gpus = find_gpus()
    if gpus.problem:
        raise EngineError(gpus.problem)
    major, minor = gpus.found[0].capability
    engine = file.with_suffix(".engine")
    build_engine(file, engine, BuildOptions(sms=(10 * major + minor,)))
    return engine
