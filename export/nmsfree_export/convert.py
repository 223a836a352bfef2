"""Float32 file → verified file, in a lower precision: certificate, then parity, then its name.

An export ends here with what was traced, a conversion begins here with any file of the contract.
"""

import hashlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto, TensorProto

from nmsfree.backends import OnnxRuntimeBackend
from nmsfree.backends.contract import MAX_ONNX
from nmsfree.datasets.dataset import DetectionDataset
from nmsfree.datasets.formats.folder import load_dataset
from nmsfree.errors import GateError, InputError, ModelError
from nmsfree.evaluation.evaluate import category_ids_of
from nmsfree.files import temporary_folder, write_atomic
from nmsfree.parsing import read_bytes
from nmsfree.spec import ModelSpec
from nmsfree_export.auto_mixed import Attempt, explain, search
from nmsfree_export.candidate import Builder, Original, Verifier
from nmsfree_export.graph.contract import content_of, read_description
from nmsfree_export.graph.values import simplified
from nmsfree_export.options import PrecisionOptions
from nmsfree_export.quantize import Calibration, load_calibration
from nmsfree_export.verify.accuracy import Accuracy
from nmsfree_export.verify.certificate import Certificate, certify_graph
from nmsfree_export.verify.inputs import InputCheck, finish
from nmsfree_export.verify.parity import Parity, Pictures, pictures_for

CALIBRATION_IMAGES = 128
LOWERED = {TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.INT8}
Log = Callable[[str], None]


@dataclass(frozen=True)
class Report:
    """What was written, and how it was verified."""

    path: Path
    sha256: str
    size: int  # bytes
    spec: ModelSpec
    certificate: Certificate
    parity: Parity
    seed: int | None
    seeded: Parity | None  # on pictures of `seed`, which nobody chose; None: only the input changed
    accuracy: Accuracy | None  # None where no split was given
    float_layers: tuple[str, ...] = ()  # that --auto-mixed left in float
    attempts: tuple[Attempt, ...] = ()  # what it tried before
    input: InputCheck | None = None  # None: the usual one

    def to_json(self) -> dict[str, object]:
        spec = self.spec
        return {
            "file": str(self.path),
            "sha256": self.sha256,
            "bytes": self.size,
            "precision": spec.precision,
            "int8_target": spec.int8_target,
            "threshold": spec.threshold,
            "canary_rows": spec.canary and len(spec.canary.values()),
            "thresholds": spec.thresholds and spec.thresholds.to_json(),
            "certificate": self.certificate.to_json(),
            "parity": self.parity.to_json(),
            "seeded_parity": self.seeded and {"seed": self.seed} | self.seeded.to_json(),
            "input": {"takes": spec.input, "source": spec.source}
            | (self.input.to_json() if self.input else {}),
            "accuracy": self.accuracy and self.accuracy.to_json(),
            "float_layers": list(self.float_layers),
            "attempts": [attempt.to_json() for attempt in self.attempts],
        }


@dataclass(frozen=True)
class Inputs:
    """What the options name, read before the work begins."""

    pictures: Pictures  # for parity
    measured: DetectionDataset | None
    calibration: Calibration | None


def load_inputs(options: PrecisionOptions, spec: ModelSpec, out: Path) -> Inputs:
    """Read what a file of this description is verified and calibrated with.

    InputError, DataError: it cannot be used, or `out` is a folder.
    """
    if out.is_dir():
        raise InputError(f"{out}: is a folder, expected the name of a file to write")
    measured = calibration = None
    if options.check_data is not None:
        measured = load_dataset(options.check_data, options.check_split or "val")
        category_ids_of(spec.class_names, measured)
    if options.calibrate is not None:
        split, count = options.calibrate_split, options.calibration_images or CALIBRATION_IMAGES
        calibration = load_calibration(options.calibrate, split, count, spec, measured)
    return Inputs(pictures_for(spec, options.images), measured, calibration)


def convert_onnx(
    path: Path,
    out: Path,
    options: PrecisionOptions,
    progress: Log = lambda _: None,
    log: Log = lambda _: None,
) -> Report:
    """Lower a float32 file of the contract, as `write_verified`; the file is its reference.

    Without another precision, a file of any gets another input.

    Raises:
        InputError: the file is not in float32, or an option does not fit it.
        ModelError: it is no file of the contract.
        GateError, FragileError, DataError: see `write_verified` and `load_inputs`.
    """
    if options.precision == "fp32":
        if options.host.input == "model":
            raise InputError(
                "precision is fp32, which the file is in: give --precision fp16 or int8, or --input"
            )
        return _change_input(path, out, options, progress)
    spec, model = _read_float(path)
    wanted = replace(
        spec,
        precision=options.precision,
        int8_target=options.target,
        canary=None,  # the new file answers otherwise
    )
    inputs = load_inputs(options, wanted, out)
    certificate = certify_graph(model, spec)
    with closing(OnnxRuntimeBackend(path)) as reference:
        original = Original(model, certificate, reference)
        return write_verified(original, wanted, options, inputs, out, progress, log)


def _change_input(path: Path, out: Path, options: PrecisionOptions, progress: Log) -> Report:
    spec, model = read_file(path)
    inputs = load_inputs(options, spec, out)
    with temporary_folder() as folder:
        model, spec, found = finish(model, spec, options.host, folder, inputs.pictures, progress)
    assert found is not None
    content = content_of(model, spec)
    write_atomic(out, content)
    digest, size = hashlib.sha256(content).hexdigest(), len(content)
    certificate = Certificate(found.lines, {})
    return Report(out, digest, size, spec, certificate, found.parity, None, None, None, input=found)


def read_file(path: Path) -> tuple[ModelSpec, ModelProto]:
    """Read the description and the graph of a file of the contract; ModelError: it is none."""
    content = read_bytes(path, MAX_ONNX, ModelError)
    try:
        model = onnx.load_from_string(content)
        onnx.checker.check_model(model)
    except (DecodeError, UnicodeDecodeError, onnx.checker.ValidationError):
        raise ModelError(
            f"{path}: not an ONNX file that can be read: give one of `nmsfree export` or"
            " `nmsfree adopt`"
        ) from None
    return read_description(path, model), model


def _read_float(path: Path) -> tuple[ModelSpec, ModelProto]:
    """The same of a float32 file."""
    spec, model = read_file(path)
    if spec.input != "model":
        raise InputError(
            f"{path}: its input is {spec.input}: give the file that it was made from, and --input"
        )
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    if spec.precision != "fp32" or kinds & LOWERED:
        found = spec.precision if spec.precision != "fp32" else "lowered"
        raise InputError(f"{path}: is {found} already: give the float32 file that it was made from")
    return spec, simplified(model)


def write_verified(
    original: Original,
    spec: ModelSpec,
    options: PrecisionOptions,
    inputs: Inputs,
    out: Path,
    progress: Log = lambda _: None,
    log: Log = lambda _: None,
) -> Report:
    """Lower, certify and compare; the file appears under its name only if all passed.

    Args:
        spec: of the file that is wanted.
        progress: told what is being done.
        log: told of every attempt of `auto_mixed` that was refused.

    Raises:
        GateError: the certificate, parity or the loss of AP refused; no file is left.
        FragileError: the same of FP16 and INT8, with the errors of all layers.
    """
    if inputs.calibration is not None:
        about = {"calibration": inputs.calibration.description}
        spec = replace(spec, provenance={**spec.provenance, **about})
    attempts: tuple[Attempt, ...] = ()
    with temporary_folder() as folder:
        builder = Builder(original, spec, inputs.calibration, folder, progress)
        verifier = Verifier(builder, options, inputs.pictures, inputs.measured)
        if options.auto_mixed:
            candidate, found, attempts = search(builder, verifier, log)
        else:
            candidate = builder.build()
            try:
                found = verifier.verify(candidate)
            except GateError as failure:
                if spec.precision == "fp32":
                    raise
                raise explain(failure, verifier.layers(candidate)) from None
        model, spec, taken = finish(
            candidate.model, found.spec, options.host, folder, inputs.pictures, progress
        )
    content = content_of(model, spec)
    write_atomic(out, content)
    return Report(
        path=out,
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
        certificate=taken.certified(candidate.certificate) if taken else candidate.certificate,
        input=taken,
        float_layers=candidate.float_layers,
        attempts=attempts,
        **(vars(found) | {"spec": spec}),
    )
