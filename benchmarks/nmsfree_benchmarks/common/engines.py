"""The engines that exported files are measured in, each opened as an application opens it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nmsfree.backends import Backend, Options, open_backend
from nmsfree.backends.options import parse_device
from nmsfree.backends.tensorrt.sidecar import read_sidecar
from nmsfree.errors import EngineError, NmsfreeError
from nmsfree.machine import computes_bf16, find_gpus, sha256
from nmsfree.spec import Target

BF16_MISSING = "the processor has no bfloat16 arithmetic, it would be emulated"
# FP32 is FP32: TF32 is off unless asked for. Copies to and from the GPU are inside the timer.
GPU = {"tf32": False, "transfers": "in and out"}


@dataclass(frozen=True)
class Engine:
    """What runs an exported file.

    Attributes:
        key, label, short: in result files, in texts, in narrow tables.
        device: as `Detector` takes it.
        arithmetic: OpenVINO's precision; None elsewhere.
        builds: whether an engine is built of the file and run in its place.
        gpu: what result files say of a GPU's state; None for a processor.
    """

    key: str
    label: str
    short: str
    device: str
    arithmetic: Literal["f32", "bf16"] | None = None
    builds: bool = False
    gpu: Mapping[str, Any] | None = field(default=None)

    @property
    def target(self) -> Target:
        """Which INT8 file it takes."""
        return "cpu" if self.gpu is None else "tensorrt"

    def state(self, backend: Backend, precision: str) -> dict[str, Any]:
        """What result files say of the opened engine: attributes of `records.Subject`.

        Args:
            precision: of the file. OpenVINO's bf16 replaces FP32 and FP16, 8 bits stay.
        """
        found = dict(self.gpu or {})
        if self.gpu is not None:
            found["cuda_graph"] = has_graph(backend)
        if self.arithmetic == "bf16" and precision != "int8":
            found["precision"] = "bf16"
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
            return open_backend(build_here(file, parse_device(self.device).index), self.device)
        if self.arithmetic == "bf16" and computes_bf16() is False:
            raise EngineError(BF16_MISSING)
        return open_backend(file, self.device, Options(threads, precision=self.arithmetic))


DEPLOYED = "onnxruntime"
REFERENCES = (DEPLOYED, "onnxruntime_cuda")  # what others stand beside, on either device
_ALL = (
    Engine(DEPLOYED, "ONNX Runtime", "ONNX Runtime", "cpu"),
    Engine("openvino", "OpenVINO", "OpenVINO", "openvino", "f32"),
    Engine("openvino_bf16", "OpenVINO bf16", "OpenVINO bf16", "openvino", "bf16"),
    Engine("onnxruntime_cuda", "ONNX Runtime CUDA", "ORT CUDA", "cuda", gpu=GPU),
    Engine(
        "tensorrt_rtx_plugin",
        "ONNX Runtime TensorRT-RTX",
        "ORT TensorRT-RTX",
        "tensorrt-rtx",
        gpu=GPU,
    ),
    Engine("tensorrt_rtx", "TensorRT-RTX", "TensorRT-RTX", "tensorrt-rtx", builds=True, gpu=GPU),
)
ENGINES = {engine.key: engine for engine in _ALL}


def has_graph(backend: Backend) -> bool | None:
    """Whether runs replay a CUDA graph, as the backend says; None where it does not say."""
    said = backend.description
    return "no CUDA graph" not in said if "CUDA graph" in said else None


def build_here(file: Path, index: int = 0) -> Path:
    """Build an engine for a GPU of this machine beside the file, unless it is there already.

    Args:
        index: which GPU, as CUDA counts them.

    Raises:
        EngineError: there is no such GPU.
        NmsfreeError: the builder is missing, or does not build for this GPU.
    """
    from nmsfree_export.tensorrt.build import BuildOptions, build_engine

    gpus = find_gpus()
    if gpus.problem:
        raise EngineError(gpus.problem)
    if index >= len(gpus.found):
        raise EngineError(f"GPU {index} was asked for, this machine has {len(gpus.found)}")
    major, minor = gpus.found[index].capability
    engine, sm = file.with_suffix(".engine"), 10 * major + minor
    if not _is_built(engine, file, sm):
        build_engine(file, engine, BuildOptions(sms=(sm,)))
    return engine


def _is_built(engine: Path, file: Path, sm: int) -> bool:
    """Whether an engine is of this very file and GPU; loading checks the rest of what it is."""
    try:
        built = read_sidecar(engine)
    except NmsfreeError:  # there is none
        return False
    return engine.is_file() and built.onnx_sha256 == sha256(file) and sm in built.targets
