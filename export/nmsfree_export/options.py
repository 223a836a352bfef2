"""How a checkpoint is exported, and the description of the file that comes of it."""

from dataclasses import dataclass, replace
from pathlib import Path

from nmsfree.decode import decode_json, read_bytes
from nmsfree.errors import InputError
from nmsfree.spec import TARGETS, Interpolation, ModelSpec, NmsSpec, Target, Thresholds
from nmsfree.text import shown
from nmsfree_export.graph.precision import PRECISIONS, Precision
from nmsfree_export.verify.parity import UNMATCHED, Tolerance
from nmsfree_training.config import STRIDES, HeadName
from nmsfree_training.weights.checkpoint import Checkpoint
from nmsfree_training.weights.predict import make_spec


def measured_thresholds(
    checkpoint: Checkpoint, head: HeadName, file: Path | None
) -> Thresholds | None:
    """Return the thresholds of a head, None where nothing is known.

    Those in a checkpoint belong to the head that is deployed by default; the scores of the other
    head mean something else.

    Args:
        file: written by `nmsfree eval --json`; it goes before the checkpoint's own.

    Raises:
        InputError: the file cannot be read, or is about other classes or the other head.
    """
    if file is not None:
        return _read(file, checkpoint.class_names, head)
    return checkpoint.thresholds if head == default_head(checkpoint) else None


def default_head(checkpoint: Checkpoint) -> HeadName:
    """The one-to-one head if there is one."""
    return "o2o" if "o2o" in checkpoint.model.heads else "o2m"


@dataclass(frozen=True)
class _Report:
    """What is of use here of a report of `nmsfree eval --json`."""

    class_names: tuple[str, ...]
    thresholds: Thresholds
    head: HeadName | None = None


def _read(file: Path, class_names: tuple[str, ...], head: HeadName) -> Thresholds:
    content = read_bytes(file, error=InputError)
    report = decode_json(
        content, _Report, file, InputError, "give what `nmsfree eval --json` wrote"
    )
    if report.class_names != class_names:
        raise InputError(
            f"{file}: measured for other classes ({_difference(report.class_names, class_names)}): "
            "evaluate this checkpoint"
        )
    if report.head not in (None, head):
        raise InputError(
            f"{file}: measured for the head {report.head}, this export is of {head}: "
            "evaluate a file of that head"
        )
    return report.thresholds


def _difference(found: tuple[str, ...], expected: tuple[str, ...]) -> str:
    if len(found) != len(expected):
        return f"{len(found)}, the checkpoint has {len(expected)}"
    number = next(i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b)
    return f"class {number} is {shown(found[number])!r}, the checkpoint's is {expected[number]!r}"


DEFAULT_THRESHOLD = 0.3
MAX_SIDE = 16384  # as a description may say, see `ModelSpec`


@dataclass(frozen=True)
class Int8Options:
    """What an INT8 file is made for, and of which pictures.

    Attributes:
        target: kind of engine, "cpu" or "tensorrt"; no one file serves both.
        data: folder of a dataset for calibration.
        split: its training split.
        images: pictures to calibrate with, at most.
        unmatched: share of the rows that parity may leave without a partner, see `Int8Parity`.
    """

    target: Target
    data: Path
    split: str = "train"
    images: int = 128
    unmatched: float = UNMATCHED


@dataclass(frozen=True)
class CheckOptions:
    """A labelled split on which the file is measured beside its FP32 version.

    Attributes:
        data: folder of a dataset.
        split: which split of it.
        max_drop: AP points, of 100, that the file may lose.
    """

    data: Path
    split: str = "val"
    max_drop: float = 1.0


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
        rival_iou: τ of the one-to-one head's rival filter; None takes the checkpoint's.
        images: folder of pictures for the parity gate; None takes the bundled scenes.
        seed: of further pictures for it, to repeat an export's; None takes a fresh one.
        tolerance: of the parity gate; None takes that of the precision.
        precision: of the network; the rest stays in float32, see `precision.py`.
        int8: belongs to the precision "int8", and to no other.
        check: measure AP beside that of FP32; None does not, and for "fp32" there is nothing to.
        auto_mixed: keep the layers that add most error in float until the gates pass.
    """

    head: HeadName | None = None
    input_size: tuple[int, int] | None = None
    batch: int | None = 1
    top_k: int = 100
    score_floor: float = 0.05
    threshold: float | None = None
    thresholds: Path | None = None
    interpolation: Interpolation = "linear"
    rival_iou: float | None = None
    images: Path | None = None
    seed: int | None = None
    tolerance: Tolerance | None = None
    precision: Precision = "fp32"
    int8: Int8Options | None = None
    check: CheckOptions | None = None
    auto_mixed: bool = False


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
    if max(height, width) > MAX_SIDE:
        raise InputError(f"size is {height} × {width}, expected sides of {MAX_SIDE} pixels at most")
    _check_precision(options)
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
        made_for=None if options.int8 is None else options.int8.target,
    )


def _check_precision(options: ExportOptions) -> None:
    """Refuse a precision that lacks its options, and options that would be ignored."""
    precision, int8, check = options.precision, options.int8, options.check
    if precision not in PRECISIONS:
        raise InputError(f"precision is {precision!r}, expected one of: {', '.join(PRECISIONS)}")
    if precision == "int8" and int8 is None:
        raise InputError(
            "precision is int8, but for which engine? No one file serves both: give --for cpu or"
            " --for tensorrt, and training pictures with --calibrate DIR"
        )
    if precision != "int8" and int8 is not None:
        raise InputError(f"calibration is for int8, but precision is {precision}: --precision int8")
    if precision == "fp32" and check is not None:
        raise InputError(
            "checking AP is for fp16 and int8, but precision is fp32: measure with `nmsfree eval`"
        )
    if precision == "fp32" and options.auto_mixed:
        raise InputError(
            "auto-mixed keeps layers of fp16 and int8 in float, but precision is fp32, where all"
            " are: leave --auto-mixed out"
        )
    if int8 is not None:
        _check_int8(int8)


def _check_int8(int8: Int8Options) -> None:
    if int8.target not in TARGETS:
        raise InputError(f"target is {int8.target!r}, expected {' or '.join(TARGETS)}")
    if not 0 <= int8.unmatched < 1:
        raise InputError(f"share of unmatched rows is {int8.unmatched}, expected 0 … 1")


def _default_threshold(options: ExportOptions, measured: Thresholds | None) -> float:
    floor, threshold = options.score_floor, options.threshold
    if threshold is None:
        return max(DEFAULT_THRESHOLD if measured is None else measured.best_f1, floor)
    if not floor <= threshold <= 1:
        raise InputError(f"threshold is {threshold}, expected the score floor ({floor}) … 1")
    return threshold


def _nearest(side: int) -> int:
    return max(1, round(side / STRIDES[-1])) * STRIDES[-1]
