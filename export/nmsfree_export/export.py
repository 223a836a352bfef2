"""Checkpoint → ONNX file that was verified: traced, then what `convert.py` does with any file."""

from dataclasses import dataclass, replace
from pathlib import Path

from nmsfree.errors import InputError
from nmsfree.parsing import decode_json, read_bytes
from nmsfree.spec import ModelSpec, NmsSpec, Resize, Thresholds
from nmsfree.text import shown
from nmsfree_export.candidate import Original
from nmsfree_export.convert import Log, Report, load_inputs, write_verified
from nmsfree_export.graph.contract import full_spec
from nmsfree_export.graph.write import OPSET, build_onnx, deploy_module, deployed_tensors
from nmsfree_export.options import EXPORT_DEFAULTS, ExportOptions
from nmsfree_export.verify.certificate import certify
from nmsfree_training.config import STRIDES, HeadName
from nmsfree_training.weights.checkpoint import Checkpoint, with_dedup_iou
from nmsfree_training.weights.predict import TorchBackend, make_spec

__all__ = ["ExportOptions", "Report", "export_onnx", "make_export_spec"]

MAX_SIDE = 16384  # as a description may say, see `ModelSpec`


def export_onnx(
    checkpoint: Checkpoint,
    out: Path,
    options: ExportOptions = EXPORT_DEFAULTS,
    progress: Log = lambda _: None,
    log: Log = lambda _: None,
) -> Report:
    """Export, certify and compare; the file appears under its name only if all passed.

    Raises:
        GateError, FragileError: see `write_verified`.
        InputError: an option that does not fit the checkpoint.
        DataError: a dataset that cannot be used.
    """
    if options.dedup_iou is not None:
        checkpoint = with_dedup_iou(checkpoint, options.dedup_iou)
    spec = make_export_spec(checkpoint, options)
    if options.check_data is None and options.thresholds is None:
        log_other_size(checkpoint, spec, log)
    inputs = load_inputs(options, spec, out)
    progress("tracing the deployed graph")
    original = trace(checkpoint, spec)
    return write_verified(original, spec, options, inputs, out, progress, log)


def log_other_size(checkpoint: Checkpoint, spec: ModelSpec, log: Log) -> None:
    """Warn of an input size at which nobody has measured the network."""
    (height, width), (own_height, own_width) = (spec.height, spec.width), checkpoint.input_size
    if (height, width) != (own_height, own_width):
        factor = min(height / own_height, width / own_width)
        log(
            f"warning: exported at {height} × {width}, but trained and measured at {own_height} × "
            f"{own_width}: objects come out {factor:.2g} times as large as those it learned, which "
            "can cost a large part of the AP, and its thresholds are of the other size: measure it "
            f"with `nmsfree eval`, or train with --size {height} {width}"
        )


def trace(checkpoint: Checkpoint, spec: ModelSpec) -> Original:
    """Return the certified FP32 graph of a checkpoint, whatever precision is described.

    GateError: the certificate refused it.
    """
    network, full = checkpoint.build(), full_spec(spec)
    module = deploy_module(network, full)
    model = build_onnx(module, full)
    certificate = certify(model, full, deployed_tensors(module), OPSET)
    model.ClearField("metadata_props")
    return Original(model, certificate, TorchBackend(network, replace(full, batch=None)), OPSET)


def make_export_spec(checkpoint: Checkpoint, options: ExportOptions) -> ModelSpec:
    """Describe the file that an export with these options makes.

    InputError: an option, or the file of thresholds, does not fit the checkpoint.
    """
    heads = checkpoint.model.heads
    head: HeadName = options.head or checkpoint.model.deployed_head
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
    thresholds, threshold = spec.thresholds, spec.threshold
    if options.thresholds is not None:
        thresholds = _read_thresholds(options.thresholds, checkpoint.class_names, head)
        threshold = thresholds.best_f1
    threshold = max(threshold, options.score_floor)
    return replace(
        spec,
        threshold=threshold if options.threshold is None else options.threshold,
        thresholds=thresholds,
        resize=Resize(interpolation=options.interpolation),
        nms=spec.nms and options.nms.spec(spec.nms),
        precision=options.precision,
        int8_target=options.target,
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
