"""The tiny model that `nmsfree doctor` runs on every engine, and what it must answer.

`model.bin`, an ONNX file, finds cells of 8 × 8 pixels of a pure colour in 32 × 32: its
score is the brightest channel's mean over the cell, its class that channel. It has a convolution,
since that is what CUDA needs cuDNN for.
"""

from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nmsfree.backends.base import Backend, RawDetections
from nmsfree.backends.tensorrt.log import reason
from nmsfree.backends.tensorrt.sidecar import Sidecar, this_platform, write_sidecar
from nmsfree.backends.tensorrt.vendor import VendorApi
from nmsfree.errors import EngineError
from nmsfree.spec import ModelSpec

FILE = Path(__file__).with_name("model.bin")
SIDE, CELL, ROWS = 32, 8, 4
CELLS = SIDE // CELL
# As in the file, for machines where only TensorRT is installed, and nothing that reads ONNX files.
SPEC = ModelSpec(
    name="doctor",
    head="o2o",
    height=SIDE,
    width=SIDE,
    batch=1,
    class_names=("blue", "green", "red"),
    category_ids=(0, 1, 2),
    top_k=ROWS,
    score_floor=0.4,
    threshold=0.4,
)
SCORE, BOX = 2e-3, 0.05  # largest differences that reduced precision may make: score, pixels


def write_model(folder: Path) -> Path:
    """Put the model into a folder under a name that says what it is."""
    path = folder / "doctor.onnx"
    path.write_bytes(FILE.read_bytes())
    return path


def picture() -> NDArray[np.uint8]:
    """A picture with `ROWS` cells to find, brightest first: uint8 [1, 32, 32, 3]."""
    cells = np.full((CELLS, CELLS, 3), 30, np.uint8)
    for row in range(ROWS):
        cells[row, 3 - row, row % 3] = 250 - 40 * row
    return np.kron(cells, np.ones((CELL, CELL, 1), np.uint8))[None]


def answer() -> RawDetections:
    """What the model finds in it."""
    corner = np.array([[CELL * (3 - row), CELL * row] for row in range(ROWS)], np.float32)  # x, y
    scores = np.array([(250 - 40 * row) / 255 for row in range(ROWS)], np.float32)
    return RawDetections(
        np.array([[ROWS]], np.int32),
        np.concatenate([corner, corner + np.float32(CELL)], axis=1)[None],
        scores[None],
        (np.arange(ROWS, dtype=np.int32) % 3)[None],
    )


def difference(backend: Backend) -> str:
    """Run the model; return what is wrong with the answer, "" if nothing."""
    found, expected = backend.run(picture()), answer()
    same = (
        np.array_equal(found.num_detections, expected.num_detections)
        and np.array_equal(found.detection_classes, expected.detection_classes)
        and np.allclose(found.detection_scores, expected.detection_scores, rtol=0, atol=SCORE)
        and np.allclose(found.detection_boxes, expected.detection_boxes, rtol=0, atol=BOX)
    )
    return "" if same else f"the answer is wrong: {found}".replace("\n", " ")


def build(onnx: Path, vendor: VendorApi, sm: int) -> Path:
    """Build an engine of the tiny model beside it, with its description; returns its path.

    `sm` must be this machine's where the library builds for that one only.
    """
    content = onnx.read_bytes()
    builder = vendor.create_builder()
    network = vendor.create_network(builder)
    parser = vendor.module.OnnxParser(network, vendor.logger)
    config = builder.create_builder_config()
    vendor.set_tf32(config, False)
    if vendor.builds_without_gpu:
        vendor.set_targets(config, (sm,))
    with vendor.log.collect() as messages:
        plan = parser.parse(content) and builder.build_serialized_network(network, config)
    if not plan:
        raise EngineError(f"{vendor} does not build a tiny model ({reason(messages)})")
    engine = onnx.with_suffix(".engine")
    engine.write_bytes(bytes(plan))
    sidecar = Sidecar(
        engine_sha256=sha256(bytes(plan)).hexdigest(),
        onnx=onnx.name,
        onnx_sha256=sha256(content).hexdigest(),
        spec=SPEC,
        builder=vendor.name,
        builder_version=vendor.version,
        targets=(sm,),
        platform=this_platform(),
        precision="fp32",
        tf32=False,
        batch=(1, 1, 1),
        build_seconds=0.0,
        created="",
    )
    write_sidecar(engine, sidecar)
    return engine
