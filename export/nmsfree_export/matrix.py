"""One file on every engine of this machine, and in lower precisions: how far each is from it.

The file in ONNX Runtime on the processor is what the others are held against.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import cv2
from onnx import ModelProto

from nmsfree.backends import Backend, OnnxRuntimeBackend, Options, open_backend
from nmsfree.errors import GateError, InputError, NmsfreeError
from nmsfree.files import temporary_folder
from nmsfree.spec import ModelSpec
from nmsfree_export.bundle.browser import BrowserBackend
from nmsfree_export.convert import read_file
from nmsfree_export.graph.half import to_half
from nmsfree_export.graph.values import simplified
from nmsfree_export.quantize import Calibration, quantize
from nmsfree_export.verify.inputs import compare_pictures
from nmsfree_export.verify.layer_errors import measure_layers, prepare
from nmsfree_export.verify.parity import (
    Parity,
    Pictures,
    compare,
    on_processor,
    pictures_for,
    tolerance_for,
)

# Name, device, OpenVINO's arithmetic.
ENGINES = (
    ("OpenVINO", "openvino", "f32"),
    ("OpenVINO in bf16", "openvino", "bf16"),
    ("OpenVINO on a GPU", "openvino:GPU", "f32"),
    ("ONNX Runtime with CUDA", "cuda", None),
    ("ONNX Runtime with TensorRT-RTX", "tensorrt-rtx", None),
)
BROWSERS: tuple[tuple[str, Literal["wasm", "webgpu"]], ...] = (
    ("WebAssembly in Chromium", "wasm"),
    ("WebGPU in Chromium", "webgpu"),
)


@dataclass(frozen=True)
class Cell:
    """One engine, or one version of the file.

    Attributes:
        engine: what ran; "" if nothing did.
        parity: beside the file; None where it did not run.
        layer: that adds most error in another version.
        missing: why it did not run, and what to install; or what it answers against the contract.
    """

    name: str
    engine: str = ""
    parity: Parity | None = None
    layer: str = ""
    missing: str = ""

    @property
    def passed(self) -> bool:
        """Whether it agrees, or was not there to be asked."""
        return not self.engine or (self.parity is not None and self.parity.passed)

    def to_json(self) -> dict[str, object]:
        return asdict(self) | {"parity": self.parity and self.parity.to_json()}


def measure_matrix(
    path: Path, images: Path | None, progress: Callable[[str], None] = lambda _: None
) -> list[Cell]:
    """Run a file wherever it runs here, and its FP16 and INT8 versions on the processor.

    The versions are made for the comparison, INT8 calibrated on these very pictures: what they
    show is rounding, not what a good calibration gives.

    Raises:
        ModelError: it is no file of the contract.
        InputError: an engine, whose ONNX file is wanted.
    """
    if path.suffix != ".onnx":
        raise InputError(f"{path}: expected an ONNX file, whose engines are found beside it")
    spec, model = read_file(path)
    pictures = pictures_for(spec, images)
    with closing(OnnxRuntimeBackend(path)) as exact:
        cells = []
        for name, device, precision in ENGINES:
            progress(name)
            options = Options(precision=precision)
            cells.append(_cell(name, exact, pictures, partial(open_backend, path, device, options)))
        for name, provider in BROWSERS:
            progress(name)
            cells.append(_cell(name, exact, pictures, partial(BrowserBackend, path, provider)))
        engine = path.with_suffix(".engine")
        missing = f"no {engine.name} beside it: nmsfree build {path}"
        cells.append(
            _cell("engine", exact, pictures, partial(open_backend, engine))
            if engine.exists()
            else Cell("engine", missing=missing)
        )
        if spec.precision == "fp32" and spec.input == "model":
            progress("lower precisions")
            cells += _versions(simplified(model), spec, exact, pictures)
    return cells


def _cell(name: str, exact: Backend, pictures: Pictures, opened: Callable[[], Backend]) -> Cell:
    try:
        backend = opened()
    except NmsfreeError as error:
        return Cell(name, missing=str(error))
    with closing(backend):
        arithmetic = getattr(backend, "arithmetic", "")
        rounded = {"tf32": "fp16"}.get(arithmetic, arithmetic)  # which have as many bits
        kinds = exact.spec.precision, backend.spec.precision, rounded
        tolerance = tolerance_for(exact.spec, *kinds)
        whole = exact.spec.input == "any"
        try:
            parity = (compare_pictures if whole else compare)(exact, backend, pictures, tolerance)
        except GateError as error:
            return Cell(name, backend.describe(), missing=str(error))
        return Cell(name, backend.describe(), parity)


def _versions(
    model: ModelProto, spec: ModelSpec, exact: Backend, pictures: Pictures
) -> Iterator[Cell]:
    with temporary_folder() as folder:
        paths = []
        for number, (_, picture) in enumerate(pictures):
            paths.append(folder / f"{number}.png")
            cv2.imwrite(str(paths[-1]), picture)
        calibration = Calibration(tuple(paths), spec, "the pictures of the comparison")
        for precision in ("fp16", "int8"):
            made = to_half(model) if precision == "fp16" else quantize(model, "cpu", calibration)
            wanted = replace(spec, precision=precision, canary=None)
            opened = partial(on_processor, made, wanted, folder)
            cell = _cell(f"{precision} version", exact, pictures, opened)
            errors = measure_layers(model, made, prepare(pictures, spec))
            yield replace(cell, layer=errors[0].name if errors else "")
