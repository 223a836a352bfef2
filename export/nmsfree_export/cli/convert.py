"""`nmsfree convert`, and what it shares with `nmsfree export`."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from nmsfree.cli.options import command
from nmsfree.errors import InputError
from nmsfree.options import Option
from nmsfree.text import shown
from nmsfree_export.options import JsonOption, PrecisionOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from nmsfree.spec import ModelSpec
    from nmsfree_export.convert import Log, Report

DEDUP_IOU = "deployed_dedup_iou"  # `KEY` of checkpoints, which would bring PyTorch


@dataclass(frozen=True, kw_only=True)
class ConvertCommand:
    """What is converted, and where it goes."""

    model: Annotated[Path, Option("A file of export or adopt.", argument=True)]
    out: Annotated[
        Path | None, Option("Default: runs/convert/NAME.PRECISION.onnx.", flags=("-o", "--out"))
    ] = None
    options: PrecisionOptions
    json_out: JsonOption = None


def run_convert(asked: ConvertCommand) -> None:
    """Float32 ONNX of export or adopt → FP16 or INT8, certified and compared with it.

    With --input alone, a file of any precision gets another input.

    What half precision would break stays in float32: norms, softmax, box coordinates and the like.
    The new file appears only if its graph is the old one with rounding added and its detections
    are those of the old one; otherwise the exit status is 1, and no file is left.

    Examples:

    nmsfree convert model.onnx --precision fp16 -o half.onnx

    nmsfree convert model.onnx --precision fp16 --auto-mixed --check-data DATA

    nmsfree convert model.onnx --precision int8 --for cpu --calibrate PICTURES

    nmsfree convert model.onnx --input any
    """
    from nmsfree.files import check_outputs
    from nmsfree_export.convert import convert_onnx

    options = asked.options
    takes = options.host.input
    kind = takes if takes != "model" and options.precision == "fp32" else options.precision
    out = asked.out or Path("runs/convert") / f"{asked.model.stem}.{kind}.onnx"
    if out.suffix != ".onnx":
        raise InputError(f"output is {out}, expected a name that ends in .onnx")
    check_outputs([out, asked.json_out], [asked.model, *files_read(options)])
    make = partial(convert_onnx, asked.model, out, options)
    make_file("converting", make, options, "the given file", asked.json_out)


def make_file(
    doing: str,
    make: "Callable[[Log, Log], Report]",
    options: PrecisionOptions,
    reference: str,
    json_out: str | None,
) -> None:
    """Let a file be made, with its progress on stderr; show and write the report."""
    from rich.console import Console

    from nmsfree.files import write_json
    from nmsfree_export.candidate import FragileError
    from nmsfree_export.verify.layer_errors import print_layers

    console = Console(stderr=True)
    try:
        with console.status(doing) as status:
            report = make(
                lambda step: status.update(f"{step} …"),
                lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True),
            )
    except FragileError as error:
        print_layers(error.layers, f"layers in {options.precision} beside FP32", console)
        raise
    show_report(report, console, reference)
    write_json(json_out, report.to_json())


def files_read(options: PrecisionOptions) -> list[Path]:
    """Pictures and annotations that the options name, which no output may replace."""
    from nmsfree.datasets.formats.folder import find_layout
    from nmsfree.datasets.image_files import images_below, images_in

    files = images_below(options.images) if options.images else []
    for data in (options.calibrate, options.check_data):
        if data is not None:
            files += images_in(data) or find_layout(data).files()
    return files


def show_report(report: "Report", console: "Console", reference: str) -> None:
    """Print the certificate, and what was written."""
    from rich.table import Table
    from rich.text import Text

    spec = report.spec
    title = "NMS-free: certificate" if spec.nms is None else "NMS baseline: contract"
    table = Table(title=title, show_header=False)
    lines: list[tuple[str, object]] = [*report.certificate.lines]
    if report.seeded is not None:
        lines.append((f"{report.parity.verdict} as {reference}", report.parity))
    if report.input is not None:
        lines.append((f"input {spec.input} says the same", report.input))
    if report.accuracy is not None:
        lines.append(("accuracy of FP32 kept", report.accuracy))
    for check, found in lines:
        table.add_row("✓", check, Text(shown(found)))
    console.print(table)
    precision = spec.precision + (f" for {spec.int8_target}" if spec.int8_target else "")
    iou = spec.provenance.get(DEDUP_IOU)
    about_iou = "" if iou is None else f", dedup IoU {iou}"
    for line in (
        f"{shown(report.path)}: {shown(spec.name)}, {spec.head} head, "
        f"{spec.height} × {spec.width}{about_input(spec)}, batch {spec.batch or 'dynamic'}, "
        f"{precision}{about_iou}, "
        f"{report.size / 1e6:.1f} MB, sha256 {report.sha256[:12]}",
        shown(_about_threshold(spec)),
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def about_input(spec: "ModelSpec") -> str:
    """What a file takes, where that is not the usual input."""
    if spec.input == "any":
        size = " × ".join(map(str, spec.source)) if spec.source else "any size"
        return f" of a picture of {size}"
    return "" if spec.input == "model" else f" as {spec.input}"


def _about_threshold(spec: "ModelSpec") -> str:
    line, measured = f"threshold {spec.threshold:.3f}", spec.thresholds
    if measured is None:
        return f"{line}; none was measured, `nmsfree eval` recommends one"
    if spec.threshold == measured.best_f1:
        return f"{line}: best F1 on {measured.measured_on}"
    return f"{line}; the best F1 is at {measured.best_f1:.3f} ({measured.measured_on})"


convert = command(run_convert, ConvertCommand)
