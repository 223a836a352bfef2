"""A tiny model that follows the ONNX contract: it finds cells of 8 × 8 pixels of a pure colour.

Its score is the brightest channel's mean over the cell, its class that channel, its box the cell.
Written twice, as an ONNX graph and in numpy, so that one can be held against the other.
"""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from runtime_helpers import ENGINES, EXACT, rows_in_base64

from nmsfree import CallableBackend, Detector, ModelSpec, RawDetections
from nmsfree.backends.contract import output_shapes
from nmsfree.backends.options import Options
from nmsfree.backends.tensorrt.backend import TensorRtBackend
from nmsfree.backends.tensorrt.sidecar import Sidecar
from nmsfree.backends.tensorrt.vendor import VendorApi
from nmsfree.canary import canary_input
from nmsfree.cli import main as cli
from nmsfree.datasets.formats.coco import DetectionDataset, load_coco
from nmsfree.doctor.model import FILE
from nmsfree.spec import METADATA_KEY, Canary, Tolerance
from nmsfree.testing.cuda import FakeCuda
from nmsfree.testing.tensorrt import FakeTensorRt, fake_sidecar, fake_vendor, write_fake_engine

CELL = 8


def _cells(spec: ModelSpec) -> NDArray[np.float32]:
    """Boxes of the cells, row by row: float32 [cells, 4]."""
    y, x = np.mgrid[0 : spec.height : CELL, 0 : spec.width : CELL].reshape(2, -1)
    return np.stack([x, y, x + CELL, y + CELL], axis=1).astype(np.float32)


@pytest.fixture(scope="session")
def make_spec() -> Callable[..., ModelSpec]:
    """Return a function giving the tiny model's description, fields replaced as asked."""

    def make(**fields: object) -> ModelSpec:
        values = {
            "name": "tiny",
            "head": "o2o",
            "height": 64,
            "width": 96,
            "batch": None,
            "class_names": ("blue", "green", "red"),
            "category_ids": (1, 2, 4),
            "top_k": 10,
            "score_floor": 0.5,  # the padding's brightest channel has 124/255 = 0.486
            "threshold": 0.6,
        }
        return ModelSpec(**(values | fields))

    return make


@pytest.fixture(scope="session")
def bright_cells() -> Callable[[NDArray[np.uint8], ModelSpec], RawDetections]:
    """Return the tiny model in numpy."""

    def run(images: NDArray[np.uint8], spec: ModelSpec) -> RawDetections:
        n, h, w, _ = images.shape
        cells = images.reshape(n, h // CELL, CELL, w // CELL, CELL, 3).mean(axis=(2, 4))
        means = cells.reshape(n, -1, 3).astype(np.float32) / 255  # [N, cells, 3]
        order = np.argsort(-means.max(axis=2), axis=1, kind="stable")[:, : spec.top_k]
        scores = np.take_along_axis(means.max(axis=2), order, axis=1)
        return RawDetections(
            (scores > spec.score_floor).sum(axis=1, keepdims=True, dtype=np.int32),
            _cells(spec)[order],
            scores,
            np.take_along_axis(means.argmax(axis=2), order, axis=1).astype(np.int32),
        )

    return run


@pytest.fixture(scope="session")
def altered(make_spec: Any, bright_cells: Callable[..., RawDetections]) -> Callable[..., Detector]:
    """Return a function: a detector over the tiny model of which images or outputs are changed.

    `outputs` takes the answer and gives those of its arrays that are to be replaced.
    """

    def make(outputs: Any = None, images: Any = None, spec: Any = None, **fields: Any) -> Detector:
        spec = spec or make_spec(**fields)

        def run(pixels: NDArray[np.uint8]) -> RawDetections:
            raw = bright_cells(pixels if images is None else images(pixels), spec)
            return raw if outputs is None else raw._replace(**outputs(raw))

        return Detector(CallableBackend(run, spec))

    return make


@pytest.fixture(scope="session")
def with_canary(
    make_spec: Any, bright_cells: Callable[..., RawDetections]
) -> Callable[..., ModelSpec]:
    """Return a function giving the tiny model's description with its canary."""

    def make(tolerance: Tolerance = EXACT, **fields: Any) -> ModelSpec:
        spec = make_spec(**({"top_k": 24} | fields))
        images = canary_input(spec, 1)
        raw = bright_cells(images, spec)
        values = np.column_stack(
            [raw.detection_boxes[0], raw.detection_scores[0], raw.detection_classes[0]]
        )
        if spec.nms is not None:
            values = values[: raw.num_detections[0, 0]]
        digest = sha256(images[0].tobytes()).hexdigest()
        tolerances = dict.fromkeys(ENGINES, tolerance)
        return replace(spec, canary=Canary(1, digest, rows_in_base64(values), tolerances))

    return make


@pytest.fixture(scope="session")
def make_onnx() -> Callable[..., Path]:
    """Return a function writing the tiny model; `metadata` None leaves the description out."""

    def make(path: Path, spec: ModelSpec, metadata: str | None = "", drop: str = "") -> Path:
        model = _model(spec)
        for output in [o for o in model.graph.output if o.name == drop]:
            model.graph.output.remove(output)
        if metadata is not None:
            entry = model.metadata_props.add()
            entry.key, entry.value = METADATA_KEY, metadata or spec.to_json()
        onnx.checker.check_model(model)
        onnx.save(model, path)
        return path

    return make


def _model(spec: ModelSpec) -> onnx.ModelProto:
    """The doctor's model, for another size, batch and number of rows."""
    model = onnx.load_from_string(FILE.read_bytes())
    model.ClearField("metadata_props")
    cells = _cells(spec)
    values = {
        "cells": cells,
        "flat": np.array([spec.batch or 0, 3, len(cells)]),
        "floor": np.float32(spec.score_floor),
        "k": np.array([spec.top_k]),
    }
    graph = model.graph
    for tensor in [tensor for tensor in graph.initializer if tensor.name in values]:
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(values[tensor.name]), tensor.name))
    shapes = [
        (spec.height, spec.width, 3),
        *(shape for _, shape in output_shapes(spec.top_k).values()),
    ]
    for value, shape in zip([*graph.input, *graph.output], shapes, strict=True):
        kind = value.type.tensor_type.elem_type
        sizes = [spec.batch or "N", *shape]
        value.CopyFrom(helper.make_tensor_value_info(value.name, kind, sizes))
    return model


@pytest.fixture
def tiny(tmp_path: Path, make_spec: Any, make_onnx: Any) -> Path:
    """The tiny model's file, of an open batch size."""
    return Path(make_onnx(tmp_path / "tiny.onnx", make_spec()))


@pytest.fixture
def noise() -> Callable[..., NDArray[np.uint8]]:
    """Return a function giving a coloured picture, uint8 [h, w, 3], different for every seed."""

    def make(seed: int, height: int = 64, width: int = 96) -> NDArray[np.uint8]:
        coarse = np.random.default_rng(seed).integers(0, 256, (9, 13, 3), dtype=np.uint8)
        rows = np.arange(height) * 9 // height
        return np.ascontiguousarray(coarse[rows][:, np.arange(width) * 13 // width])

    return make


@pytest.fixture
def make_sidecar(make_spec: Any) -> Callable[..., Sidecar]:
    """Return a function giving an engine's description, fields replaced as asked."""

    return lambda spec=None, **fields: fake_sidecar(
        spec or make_spec(), **({"targets": (86, 89)} | fields)
    )


class EngineRig:
    """A fake engine file, the fakes that run it, and the function that it computes."""

    def __init__(
        self,
        folder: Path,
        spec: ModelSpec,
        cells: Callable[[NDArray[np.uint8], ModelSpec], RawDetections],
        builder: Any = "tensorrt-rtx",
        batch: tuple[int, int, int] = (1, 2, 4),
        **fields: Any,
    ) -> None:
        self.path = folder / "model.engine"
        write_fake_engine(self.path, spec, batch=batch, builder=builder, **fields)
        self.cuda = FakeCuda()
        self.spec, self.cells = spec, cells
        self.vendor: VendorApi = fake_vendor(self.cuda, lambda x: self(x)._asdict(), builder)
        self.module: FakeTensorRt = self.vendor.module

    def __call__(self, images: NDArray[np.uint8]) -> RawDetections:
        return self.cells(images, self.spec)

    def open(self, device: Any = None, **given: Any) -> TensorRtBackend:
        """`given` are `Options` and what `TensorRtBackend` takes beside them."""
        own = {name: given.pop(name) for name in ("stream", "cuda", "vendor") if name in given}
        values = {"cuda": self.cuda, "vendor": self.vendor} | own
        return TensorRtBackend(self.path, device, Options(**given), **values)


@pytest.fixture
def make_rig(tmp_path: Path, make_spec: Any, bright_cells: Any) -> Callable[..., EngineRig]:
    """Return a function giving the tiny model as an engine over the fakes."""

    def make(builder: str = "tensorrt-rtx", spec: Any = None, **options: Any) -> EngineRig:
        return EngineRig(tmp_path, spec or make_spec(), bright_cells, builder, **options)

    return make


@pytest.fixture(scope="session")
def make_dataset(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., DetectionDataset]:
    """Return a function giving a COCO dataset of annotations alone, without pictures.

    Its classes are cat (id 7) and dog (40) unless told otherwise; annotations need a bbox only.
    """

    def make(
        *annotations: dict[str, Any],
        images: int = 1,
        classes: dict[str, int] | None = None,
    ) -> DetectionDataset:
        folder = tmp_path_factory.mktemp("data") / "toys"
        (folder / "annotations").mkdir(parents=True)
        (folder / "val").mkdir()
        classes = classes or {"cat": 7, "dog": 40}
        first = next(iter(classes.values()))
        size = {"width": 300, "height": 250}
        content = {
            "categories": [{"id": i, "name": name} for name, i in classes.items()],
            "images": [{"id": i, "file_name": f"{i}.png", **size} for i in range(images)],
            "annotations": [{"image_id": 0, "category_id": first} | a for a in annotations],
        }
        (folder / "annotations/instances_val.json").write_text(json.dumps(content), "utf-8")
        return load_coco(folder, "val")

    return make


@pytest.fixture
def small_heap() -> Iterator[None]:
    """For tests that call `gc.collect`: what earlier ones left is not looked through each time."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def nmsfree_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Return a function running a command in this process: exit status, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["nmsfree", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return int(ended.value.code or 0), out, err

    return run


@pytest.fixture(scope="session")
def run_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs a program in a Python of its own: code, arguments, environment.

    `under` is a command that starts another, put before it.
    """

    def run(
        code: str, *arguments: object, under: tuple[str, ...] = (), **environment: object
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*under, sys.executable, "-c", code, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=120,
            env=os.environ | {name: str(value) for name, value in environment.items()},
        )

    return run
