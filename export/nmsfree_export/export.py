"""Checkpoint → ONNX file that has proved itself: certificate, then parity, then its name."""

import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from nmsfree.atomic import write_atomic
from nmsfree.backends import OnnxRuntimeBackend
from nmsfree.data.dataset import DetectionDataset
from nmsfree.data.load import load_dataset
from nmsfree.errors import InputError
from nmsfree.evaluate import category_ids_of
from nmsfree.spec import ModelSpec
from nmsfree_export.accuracy import Accuracy, measure
from nmsfree_export.certificate import Certificate, certify
from nmsfree_export.export_bytes import content_of, full_spec, full_version
from nmsfree_export.export_options import (
    DEFAULT_THRESHOLD,
    CheckOptions,
    ExportOptions,
    Int8Options,
    make_export_spec,
)
from nmsfree_export.parity import Parity, compare, load_images, tolerance_for
from nmsfree_export.quantise import quantise
from nmsfree_export.quantise_calibration import Calibration, load_calibration
from nmsfree_export.quantise_certificate import certify_int8
from nmsfree_export.quantise_parity import Int8Parity, int8_tolerance
from nmsfree_export.write import OPSET, build_onnx, deploy_module, deployed_tensors
from nmsfree_training.checkpoint import Checkpoint
from nmsfree_training.detector import Fcos
from nmsfree_training.predict import TorchBackend

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


@dataclass(frozen=True)
class ExportReport:
    """What was written, and its proofs; `accuracy` is None where no split was given."""

    path: Path
    sha256: str
    size: int  # bytes
    spec: ModelSpec
    certificate: Certificate
    parity: Parity
    accuracy: Accuracy | None

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
            "accuracy": self.accuracy and self.accuracy.to_json(),
        }


def export_onnx(
    checkpoint: Checkpoint,
    out: Path,
    options: ExportOptions = DEFAULTS,
    progress: Say = lambda _: None,
) -> ExportReport:
    """Export, certify and compare; the file appears under its name only if all passed.

    Args:
        progress: told what is being done.

    Raises:
        GateError: the certificate, the parity gate or the loss of AP refused; no file is left.
        InputError: an option that does not fit the checkpoint.
        DataError: a dataset that cannot be used.
    """
    if out.is_dir():
        raise InputError(f"{out}: is a folder, expected the name of a file to write")
    spec = make_export_spec(checkpoint, options)
    measured = _measured_split(options.check, spec)
    calibration = _calibration(options.int8, spec, measured)
    if calibration is not None:
        spec = replace(spec, provenance={**spec.provenance, "calibration": calibration.description})
    pictures = load_images(options.images)
    network = checkpoint.build()
    model, full, certificate = _build(network, spec, calibration, progress)
    with tempfile.TemporaryDirectory(prefix="nmsfree-export-") as folder:
        part = Path(folder) / "candidate.part"  # no model by its name, should this be killed
        # The same graph, which a processor may run whatever it was made for.
        part.write_bytes(content_of(model, replace(spec, made_for=None)))
        parity = _compare(network, part, pictures, options, progress)
        accuracy = None
        if measured is not None and options.check is not None:
            whole = Path(folder) / "fp32.part"
            whole.write_bytes(content_of(full or full_version(network, spec), full_spec(spec)))
            accuracy = _measure(whole, part, measured, options.check, progress)
    content = content_of(model, spec)
    write_atomic(out, content)
    digest = hashlib.sha256(content).hexdigest()
    return ExportReport(out, digest, len(content), spec, certificate, parity, accuracy)


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


def _build(
    network: Fcos, spec: ModelSpec, calibration: Calibration | None, progress: Say
) -> tuple[ModelProto, ModelProto | None, Certificate]:
    """Return the certified model and, where it was made from one, its FP32 version.

    Args:
        calibration: for INT8; None for other precisions.
        progress: told what is being done.

    Raises:
        GateError: the certificate refused.
        InputError: a picture of the calibration cannot be read.
    """
    progress("tracing the deployed graph")
    module = deploy_module(network, spec)
    model, tensors = build_onnx(module, spec), deployed_tensors(module)
    if spec.made_for is None or calibration is None:
        progress("checking the certificate")
        return model, None, certify(model, spec, tensors, OPSET)
    quantised = quantise(
        model,
        tensors,
        spec.made_for,
        calibration,
        lambda done, total: progress(f"calibrating: image {done} of {total}"),
    )
    progress("checking the certificate")
    return quantised, model, certify_int8(quantised, model, spec, tensors, OPSET)


def _compare(
    network: Fcos,
    part: Path,
    pictures: list[tuple[str, NDArray[np.uint8]]],
    options: ExportOptions,
    progress: Say,
) -> Parity:
    """Hold the file against the network's own code in PyTorch.

    Raises:
        GateError: they differ too much.
    """
    backend = OnnxRuntimeBackend(part)
    spec, int8 = backend.spec, options.int8
    allowed = int8_tolerance(spec) if int8 else tolerance_for(spec)
    parity = compare(
        TorchBackend(network, replace(spec, batch=None)),
        backend,
        pictures,
        options.tolerance or allowed,
        lambda done, total: progress(f"comparing with PyTorch: image {done} of {total}"),
    )
    backend.close()
    if int8 is not None:
        parity = Int8Parity.of(parity, int8.unmatched)
    parity.enforce()
    return parity


def _measure(
    full: Path, part: Path, dataset: DetectionDataset, check: CheckOptions, progress: Say
) -> Accuracy:
    accuracy = measure(
        full,
        part,
        dataset,
        check.max_drop / 100,
        lambda done, total: progress(f"measuring AP: image {done} of {total}"),
    )
    accuracy.enforce()
    return accuracy
