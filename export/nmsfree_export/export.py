"""Checkpoint → ONNX file that has proved itself: certificate, then parity, then its name."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from nmsfree.datasets.dataset import DetectionDataset
from nmsfree.datasets.formats.folder import load_dataset
from nmsfree.errors import GateError, InputError
from nmsfree.evaluation.evaluate import category_ids_of
from nmsfree.files import temporary_folder, write_atomic
from nmsfree.spec import ModelSpec
from nmsfree_export.acceptance import Gates, Proof
from nmsfree_export.auto_mixed import Attempt, explain, search
from nmsfree_export.candidate import Candidate, Workshop
from nmsfree_export.graph.write import content_of
from nmsfree_export.options import (
    DEFAULT_THRESHOLD,
    CheckOptions,
    ExportOptions,
    Int8Options,
    make_export_spec,
)
from nmsfree_export.quantize import Calibration, load_calibration
from nmsfree_export.verify.accuracy import Accuracy
from nmsfree_export.verify.certificate import Certificate
from nmsfree_export.verify.parity import Parity, load_images
from nmsfree_training.weights.checkpoint import Checkpoint, with_rival_iou

__all__ = [
    "DEFAULT_THRESHOLD",
    "CheckOptions",
    "ExportOptions",
    "ExportReport",
    "Int8Options",
    "export_onnx",
    "make_export_spec",
]

DEFAULTS = ExportOptions()
Say = Callable[[str], None]
Found = tuple[Candidate, Proof, tuple[Attempt, ...]]


@dataclass(frozen=True)
class ExportReport:
    """What was written, and its proofs.

    Attributes:
        size: bytes of the file.
        seeded: parity on pictures of `seed`.
        accuracy: None where no split was given.
        kept: names of the layers that `--auto-mixed` kept in float.
        attempts: what it tried before.
    """

    path: Path
    sha256: str
    size: int
    spec: ModelSpec
    certificate: Certificate
    parity: Parity
    seed: int
    seeded: Parity
    accuracy: Accuracy | None
    kept: tuple[str, ...] = ()
    attempts: tuple[Attempt, ...] = ()

    def to_json(self) -> dict[str, object]:
        return {
            "file": str(self.path),
            "sha256": self.sha256,
            "bytes": self.size,
            "precision": self.spec.precision,
            "made_for": self.spec.made_for,
            "threshold": self.spec.threshold,
            "thresholds": self.spec.thresholds and self.spec.thresholds.to_json(),
            "certificate": self.certificate.to_json(),
            "parity": self.parity.to_json(),
            "seeded_parity": {"seed": self.seed} | self.seeded.to_json(),
            "accuracy": self.accuracy and self.accuracy.to_json(),
            "kept_in_float": list(self.kept),
            "attempts": [attempt.to_json() for attempt in self.attempts],
        }


def export_onnx(
    checkpoint: Checkpoint,
    out: Path,
    options: ExportOptions = DEFAULTS,
    progress: Say = lambda _: None,
    tell: Say = lambda _: None,
) -> ExportReport:
    """Export, certify and compare; the file appears under its name only if all passed.

    Args:
        progress: told what is being done.
        tell: told of every attempt of `auto_mixed` that was refused.

    Raises:
        GateError: the certificate, the parity gate or the loss of AP refused; no file is left.
        FragileError: the same of FP16 and INT8, with the errors of all layers.
        InputError: an option that does not fit the checkpoint.
        DataError: a dataset that cannot be used.
    """
    if out.is_dir():
        raise InputError(f"{out}: is a folder, expected the name of a file to write")
    checkpoint = _with_rival_iou(checkpoint, options)
    spec = make_export_spec(checkpoint, options)
    measured = _measured_split(options.check, spec)
    calibration = _calibration(options.int8, spec, measured)
    if calibration is not None:
        spec = replace(spec, provenance={**spec.provenance, "calibration": calibration.description})
    pictures = load_images(options.images)
    with temporary_folder() as folder:
        workshop = Workshop(checkpoint.build(), spec, calibration, folder, progress)
        gates = Gates(workshop, options, pictures, measured, folder, progress)
        if options.auto_mixed:
            found = search(workshop, gates, tell)
        else:
            found = _only_candidate(workshop, gates)
    candidate, proof, attempts = found
    content = content_of(candidate.model, candidate.spec)
    write_atomic(out, content)
    return ExportReport(
        out,
        hashlib.sha256(content).hexdigest(),
        len(content),
        candidate.spec,
        candidate.certificate,
        proof.parity,
        gates.seed,
        proof.seeded,
        proof.accuracy,
        candidate.kept,
        attempts,
    )


def _with_rival_iou(checkpoint: Checkpoint, options: ExportOptions) -> Checkpoint:
    if options.rival_iou is None:
        return checkpoint
    if options.head == "o2m":
        raise InputError("rival IoU is for the one-to-one head, but head is o2m: leave it out")
    return with_rival_iou(checkpoint, options.rival_iou)


def _only_candidate(workshop: Workshop, gates: Gates) -> Found:
    candidate = workshop.make()
    try:
        return candidate, gates.prove(candidate), ()
    except GateError as failure:
        if candidate.spec.precision == "fp32":
            raise
        errors = gates.layers(candidate)
        raise explain(failure, errors) from None


def _measured_split(check: CheckOptions | None, spec: ModelSpec) -> DetectionDataset | None:
    if check is None:
        return None
    dataset = load_dataset(check.data, check.split)
    category_ids_of(spec.class_names, dataset)  # other classes are told before the work
    return dataset


def _calibration(
    int8: Int8Options | None, spec: ModelSpec, measured: DetectionDataset | None
) -> Calibration | None:
    if int8 is None:
        return None
    return load_calibration(int8.data, int8.split, int8.images, spec, measured)
