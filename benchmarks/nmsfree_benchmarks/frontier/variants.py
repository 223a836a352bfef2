"""What the frontier is drawn of: precision × engine at the deployed size, and other sizes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nmsfree.backends import Backend, Options, open_backend
from nmsfree.spec import Target
from nmsfree_benchmarks.common.exported import Wanted
from nmsfree_benchmarks.table.device_engines import build_here
from nmsfree_benchmarks.table.eager import Source
from nmsfree_export.precision import PRECISIONS, Precision

SCALES = (0.75, 1.0, 1.25, 1.5)  # of the deployed side: 192, 256, 320 and 384 of 256 pixels
STEP = 32  # pixels, of an input's sides
DEPLOYED = "onnxruntime"


@dataclass(frozen=True)
class Engine:
    """What runs a file.

    Attributes:
        label: in tables and pictures.
        device: as `Detector` takes it.
        target: which INT8 file it takes.
        arithmetic: OpenVINO's precision; None elsewhere.
        builds: whether an engine is built of the file and run in its place.
    """

    label: str
    device: str
    target: Target = "cpu"
    arithmetic: Literal["f32", "bf16"] | None = None
    builds: bool = False

    @property
    def on_gpu(self) -> bool:
        return self.target == "tensorrt"

    def open(self, path: Path, threads: int) -> Backend:
        """Open a file; raises what `open_backend` raises."""
        if self.builds:
            return open_backend(build_here(path), self.device)
        return open_backend(path, self.device, Options(threads, precision=self.arithmetic))


ENGINES = {
    DEPLOYED: Engine("ONNX Runtime", "cpu"),
    "openvino": Engine("OpenVINO", "openvino", arithmetic="f32"),
    "openvino_bf16": Engine("OpenVINO bf16", "openvino", arithmetic="bf16"),
    "onnxruntime_cuda": Engine("ORT CUDA", "cuda", "tensorrt"),
    "tensorrt_rtx_plugin": Engine("ORT TensorRT-RTX", "tensorrt-rtx", "tensorrt"),
    "tensorrt_rtx": Engine("TensorRT-RTX", "tensorrt-rtx", "tensorrt", builds=True),
}


@dataclass(frozen=True, eq=False)
class Variant:
    """A file in an engine; `engine` is a key of `ENGINES`."""

    wanted: Wanted
    engine: str

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the input in pixels."""
        return self.wanted.size or self.wanted.source.checkpoint.input_size

    @property
    def name(self) -> str:
        height, width = self.size
        return f"{self.wanted.source.name} {self.engine} {self.wanted.precision} {height}x{width}"


def variants(
    sources: Sequence[Source], engines: Sequence[str], sizes: Sequence[float] = SCALES
) -> list[Variant]:
    """Every precision in every engine at the deployed size, and FP32 in ONNX Runtime in all sizes.

    Args:
        engines: keys of `ENGINES` that work here.
        sizes: factors of the deployed size.
    """
    found = {v.name: v for source in sources for v in _of(source, engines, sizes)}
    return list(found.values())


def _of(source: Source, engines: Sequence[str], sizes: Sequence[float]) -> Iterator[Variant]:
    files: dict[str, Wanted] = {}

    def wanted(
        precision: Precision, target: Target | None = None, size: tuple[int, int] | None = None
    ) -> Wanted:
        new = Wanted(source, precision, target, size)
        return files.setdefault(new.name, new)  # one export serves several engines

    for precision in PRECISIONS:
        for engine in engines:
            target = ENGINES[engine].target if precision == "int8" else None
            yield Variant(wanted(precision, target), engine)
    if DEPLOYED in engines:
        for size in scaled(source.checkpoint.input_size, sizes):
            yield Variant(wanted("fp32", size=size), DEPLOYED)


def scaled(size: tuple[int, int], factors: Sequence[float]) -> list[tuple[int, int]]:
    """Sizes near the factors of `size`, in whole steps of 32 pixels, none twice."""
    height, width = size
    sides = [(max(1, round(height * f / STEP)), max(1, round(width * f / STEP))) for f in factors]
    return list(dict.fromkeys((h * STEP, w * STEP) for h, w in sides))
