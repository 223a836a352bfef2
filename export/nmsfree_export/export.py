"""Checkpoint → ONNX file that has proved itself: certificate, then parity, then its name."""

import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from nmsfree.atomic import write_atomic
from nmsfree.backends import OnnxRuntimeBackend
from nmsfree.errors import InputError
from nmsfree.spec import Interpolation, ModelSpec, NmsSpec
from nmsfree.thresholds import Thresholds
from nmsfree_export.certificate import Certificate, certify
from nmsfree_export.measured import default_head, measured_thresholds
from nmsfree_export.parity import Parity, Tolerance, compare, load_images
from nmsfree_export.precision import PRECISIONS, Precision
from nmsfree_export.write import OPSET, build_onnx, deploy_module, deployed_tensors
from nmsfree_training.checkpoint import Checkpoint
from nmsfree_training.config import STRIDES, HeadName
from nmsfree_training.predict import TorchBackend, make_spec

DEFAULT_THRESHOLD = 0.3
# A half has 11 bits: seen are 1e-3 and 0.06 pixels, with batch norm and with GroupNorm.
TOLERANCES: dict[Precision, Tolerance] = {"fp32": Tolerance(), "fp16": Tolerance(0.01, 0.5)}


@dataclass(frozen=True)
class ExportOptions:
    """How a checkpoint is exported.

    Attributes:
        head: "o2o" or "o2m"; None takes the one-to-one head if there is one.
        input_size: (height, width) in pixels, multiples of 32; None takes the checkpoint's.
        batch: fixed batch size, or None for any.
        top_k: rows of the output.
        score_floor: scores that `num_detections` counts are above this.
        threshold: what the runtime shows unless asked otherwise; None takes the measured one of
            the best F1, else 0.3, and never less than the floor.
        thresholds: file of `nmsfree eval --json` with recommended thresholds for this model;
            None takes those of the checkpoint, if it has any.
        interpolation: how the runtime resizes.
        images: folder of pictures for the parity gate; None takes the bundled scenes.
        tolerance: of the parity gate; None takes that of the precision.
        precision: of the network; the rest stays in float32, see `precision.py`.
    """

    head: HeadName | None = None
    input_size: tuple[int, int] | None = None
    batch: int | None = 1
    top_k: int = 100
    score_floor: float = 0.05
    threshold: float | None = None
    thresholds: Path | None = None
    interpolation: Interpolation = "linear"
    images: Path | None = None
    tolerance: Tolerance | None = None
    precision: Precision = "fp32"


@dataclass(frozen=True)
class ExportReport:
    """What was written, and its proofs."""

    path: Path
    sha256: str
    size: int  # bytes
    spec: ModelSpec
    certificate: Certificate
    parity: Parity

    def to_json(self) -> dict[str, object]:
        return {
            "file": str(self.path),
            "sha256": self.sha256,
            "bytes": self.size,
            "threshold": self.spec.threshold,
            "thresholds": self.spec.thresholds and self.spec.thresholds.to_json(),
            "certificate": self.certificate.to_json(),
            "parity": self.parity.to_json(),
        }


def export_onnx(
    checkpoint: Checkpoint,
    out: Path,
    options: ExportOptions = ExportOptions(),
    progress: Callable[[str], None] = lambda _: None,
) -> ExportReport:
    """Export, certify and compare; the file appears under its name only if all passed.

    Args:
        progress: told what is being done.

    Raises:
        GateError: the certificate or the parity gate refused; no file is left behind.
        InputError: an option that does not fit the checkpoint.
    """
    if out.is_dir():
        raise InputError(f"{out}: is a folder, expected the name of a file to write")
    spec = make_export_spec(checkpoint, options)
    pictures = load_images(options.images)
    network = checkpoint.build()
    progress("tracing the deployed graph")
    module = deploy_module(network, spec)
    model = build_onnx(module, spec)
    progress("checking the certificate")
    certificate = certify(model, spec, deployed_tensors(module), OPSET)
    content = model.SerializeToString()
    with tempfile.TemporaryDirectory(prefix="nmsfree-export-") as folder:
        part = Path(folder) / "candidate.part"  # no model by its name, should this be killed
        part.write_bytes(content)
        reference = TorchBackend(network, replace(spec, batch=None))
        deployed_file = OnnxRuntimeBackend(part)
        parity = compare(
            reference,
            deployed_file,
            pictures,
            options.tolerance or TOLERANCES[options.precision],
            lambda done, total: progress(f"comparing with PyTorch: image {done} of {total}"),
        )
        parity.enforce()
        deployed_file.close()
    write_atomic(out, content)
    digest = hashlib.sha256(content).hexdigest()
    return ExportReport(out, digest, len(content), spec, certificate, parity)


def make_export_spec(checkpoint: Checkpoint, options: ExportOptions) -> ModelSpec:
    """Describe the file that an export with these options makes.

    Raises:
        InputError: an option, or the file of thresholds, does not fit the checkpoint.
    """
    heads = checkpoint.model.heads
    head: HeadName = options.head or default_head(checkpoint)
    if head not in heads:
        raise InputError(
            f"head is {head!r}, this checkpoint ({checkpoint.model.name}) has: {', '.join(heads)}"
        )
    height, width = options.input_size or checkpoint.input_size
    if height < 32 or width < 32 or height % STRIDES[-1] or width % STRIDES[-1]:
        raise InputError(
            f"size is {height} × {width}, expected multiples of {STRIDES[-1]} from 32 up: "
            f"for example {_nearest(height)} × {_nearest(width)}"
        )
    if options.precision not in PRECISIONS:
        raise InputError(
            f"precision is {options.precision!r}, expected one of: {', '.join(PRECISIONS)}"
        )
    if not 0 <= options.score_floor < 1:
        raise InputError(f"score floor is {options.score_floor}, expected 0 … 1")
    thresholds = measured_thresholds(checkpoint, head, options.thresholds)
    cells = [(height // s) * (width // s) for s in STRIDES]
    if head == "o2m":  # candidates of NMS
        cells = [min(NmsSpec().candidates_per_level, count) for count in cells]
    spec = make_spec(
        checkpoint,
        head,
        input_size=(height, width),
        batch=options.batch,
        top_k=min(options.top_k, sum(cells)),
        score_floor=options.score_floor,
    )
    return replace(
        spec,
        threshold=_default_threshold(options, thresholds),
        thresholds=thresholds,
        interpolation=options.interpolation,
        precision=options.precision,
    )


def _default_threshold(options: ExportOptions, measured: Thresholds | None) -> float:
    floor, threshold = options.score_floor, options.threshold
    if threshold is None:
        return max(DEFAULT_THRESHOLD if measured is None else measured.best_f1, floor)
    if not floor <= threshold <= 1:
        raise InputError(f"threshold is {threshold}, expected the score floor ({floor}) … 1")
    return threshold


def _nearest(side: int) -> int:
    return max(1, round(side / STRIDES[-1])) * STRIDES[-1]
