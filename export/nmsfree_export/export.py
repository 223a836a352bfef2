"""Checkpoint → ONNX file that was verified: certificate, then parity, then its name."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from nmsfree.datasets.formats.folder import load_dataset
from nmsfree.decode import decode_json, read_bytes
from nmsfree.errors import GateError, InputError
from nmsfree.evaluation.evaluate import category_ids_of
from nmsfree.files import temporary_folder, write_atomic
from nmsfree.spec import ModelSpec, NmsSpec, Resize, Thresholds
from nmsfree.text import shown
from nmsfree_export.auto_mixed import Attempt, explain, search
from nmsfree_export.candidate import Builder, Verifier
from nmsfree_export.graph.write import content_of
from nmsfree_export.options import EXPORT_DEFAULTS, ExportOptions
from nmsfree_export.quantize import load_calibration
from nmsfree_export.verify.accuracy import Accuracy
from nmsfree_export.verify.certificate import Certificate
from nmsfree_export.verify.parity import Parity, load_images
from nmsfree_training.config import STRIDES, HeadName
from nmsfree_training.weights.checkpoint import Checkpoint, with_dedup_iou
from nmsfree_training.weights.predict import make_spec

__all__ = ["ExportOptions", "ExportReport", "export_onnx", "make_export_spec"]

DEFAULT_THRESHOLD = 0.3
CALIBRATION_IMAGES = 128
MAX_SIDE = 16384  # as a description may say, see `ModelSpec`
Log = Callable[[str], None]


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how it was verified."""

    path: Path
    sha256: str
    size: int  # bytes
    spec: ModelSpec
    certificate: Certificate
    parity: Parity
    seed: int
    seeded: Parity  # on pictures of `seed`, which nobody chose
    accuracy: Accuracy | None  # None where no split was given
    float_layers: tuple[str, ...] = ()  # that --auto-mixed left in float
    attempts: tuple[Attempt, ...] = ()  # what it tried before

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
            "seeded_parity": {"seed": self.seed} | self.seeded.to_json(),
            "accuracy": self.accuracy and self.accuracy.to_json(),
            "float_layers": list(self.float_layers),
            "attempts": [attempt.to_json() for attempt in self.attempts],
        }


def export_onnx(
    checkpoint: Checkpoint,
    out: Path,
    options: ExportOptions = EXPORT_DEFAULTS,
    progress: Log = lambda _: None,
    log: Log = lambda _: None,
) -> ExportReport:
    """Export, certify and compare; the file appears under its name only if all passed.

    Args:
        progress: told what is being done.
        log: told of every attempt of `auto_mixed` that was refused.

    Raises:
        GateError: the certificate, parity or the loss of AP refused; no file is left.
        FragileError: the same of FP16 and INT8, with the errors of all layers.
        InputError: an option that does not fit the checkpoint.
        DataError: a dataset that cannot be used.
    """
    if out.is_dir():
        raise InputError(f"{out}: is a folder, expected the name of a file to write")
    if options.dedup_iou is not None:
        checkpoint = with_dedup_iou(checkpoint, options.dedup_iou)
    spec = make_export_spec(checkpoint, options)
    measured = calibration = None
    if options.check_data is not None:
        measured = load_dataset(options.check_data, options.check_split or "val")
        category_ids_of(spec.class_names, measured)  # other classes are told before the work
    if options.calibrate is not None:
        split, count = options.calibrate_split or "train", options.calibration_images
        count = count or CALIBRATION_IMAGES
        calibration = load_calibration(options.calibrate, split, count, spec, measured)
        spec = replace(spec, provenance={**spec.provenance, "calibration": calibration.description})
    pictures = load_images(options.images)
    attempts: tuple[Attempt, ...] = ()
    with temporary_folder() as folder:
        builder = Builder(checkpoint.build(), spec, calibration, folder, progress)
        verifier = Verifier(builder, options, pictures, measured)
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
        spec = verifier.with_canary(candidate)
    content = content_of(candidate.model, spec)
    write_atomic(out, content)
    return ExportReport(
        out,
        hashlib.sha256(content).hexdigest(),
        len(content),
        spec,
        candidate.certificate,
        float_layers=candidate.float_layers,
        attempts=attempts,
        **vars(found),
    )


def make_export_spec(checkpoint: Checkpoint, options: ExportOptions) -> ModelSpec:
    """Describe the file that an export with these options makes.

    InputError: an option, or the file of thresholds, does not fit the checkpoint.
    """
    heads = checkpoint.model.heads
    usual: HeadName = "o2o" if "o2o" in heads else "o2m"
    head: HeadName = options.head or usual  # type: ignore[assignment]  # one of `heads`:
    if head not in heads:
        raise InputError(
            f"head is {head!r}, this checkpoint ({checkpoint.model.name}) has: {', '.join(heads)}"
        )
    height, width = options.input_size or checkpoint.input_size
    step = STRIDES[-1]
    if min(height, width) < step or height % step or width % step:
        nearest = " × ".join(str(max(1, round(side / step)) * step) for side in (height, width))
        raise InputError(
            f"size is {height} × {width}, expected multiples of {step} from {step} up: "
            f"for example {nearest}"
        )
    if max(height, width) > MAX_SIDE:
        raise InputError(f"size is {height} × {width}, expected sides of {MAX_SIDE} pixels at most")
    # Those in a checkpoint belong to its usual head; scores of the other one mean something else.
    thresholds = checkpoint.thresholds if head == usual else None
    if options.thresholds is not None:
        thresholds = _read_thresholds(options.thresholds, checkpoint.class_names, head)
    cells = [(height // s) * (width // s) for s in STRIDES]
    if head == "o2m":  # candidates of NMS
        cells = [min(NmsSpec().candidates_per_level, count) for count in cells]
    most = sum(cells)
    if options.nms.nms == "plain":
        most = min(most, options.nms.spec(NmsSpec()).candidates or most)
    spec = make_spec(
        checkpoint,
        head,
        input_size=(height, width),
        batch=options.batch,
        top_k=min(options.top_k, most),
        score_floor=options.score_floor,
    )
    if options.nms.given and spec.nms is None:
        raise InputError("--nms and its like are of the NMS baseline: give --head o2m, too")
    threshold = options.threshold
    if threshold is None:
        best = DEFAULT_THRESHOLD if thresholds is None else thresholds.best_f1
        threshold = max(best, options.score_floor)
    return replace(
        spec,
        threshold=threshold,
        thresholds=thresholds,
        resize=Resize(interpolation=options.interpolation),  # type: ignore[arg-type]  # checked
        nms=spec.nms and options.nms.spec(spec.nms),
        precision=options.precision,
        int8_target=options.target,  # type: ignore[arg-type]
    )


@dataclass(frozen=True)
class _Report:
    """What is of use here of a report of `nmsfree eval --json`."""

    class_names: tuple[str, ...]
    thresholds: Thresholds
    head: HeadName | None = None


def _read_thresholds(file: Path, class_names: tuple[str, ...], head: HeadName) -> Thresholds:
    content = read_bytes(file, error=InputError)
    advice = "give what `nmsfree eval --json` wrote"
    report = decode_json(content, _Report, file, InputError, advice)
    if report.class_names != class_names:
        difference = f"{len(report.class_names)}, the checkpoint has {len(class_names)}"
        pairs = enumerate(zip(report.class_names, class_names, strict=False))
        if len(report.class_names) == len(class_names):
            number, (ours, theirs) = next(p for p in pairs if p[1][0] != p[1][1])
            difference = f"class {number} is {shown(ours)!r}, the checkpoint's is {theirs!r}"
        raise InputError(
            f"{file}: measured for other classes ({difference}): evaluate this checkpoint"
        )
    if report.head not in (None, head):
        raise InputError(
            f"{file}: measured for the head {report.head}, this export is of {head}: "
            "evaluate a file of that head"
        )
    return report.thresholds
