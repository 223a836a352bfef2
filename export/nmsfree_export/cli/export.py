"""`nmsfree export`, and where `nmsfree verify` is looked for."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from nmsfree.cli.options import command
from nmsfree.errors import InputError, MissingExtraError
from nmsfree.options import Option
from nmsfree.text import shown
from nmsfree_export.cli.verify import verify
from nmsfree_export.options import ExportOptions, JsonOption

if TYPE_CHECKING:
    from rich.console import Console

    from nmsfree.spec import ModelSpec
    from nmsfree_export.export import ExportReport

__all__ = ["export", "verify"]


@dataclass(frozen=True, kw_only=True)
class ExportCommand:
    """What is exported, and where it goes."""

    checkpoint: Annotated[Path, Option("A .safetensors or published .pth file.", argument=True)]
    out: Annotated[
        Path | None, Option("Default: runs/export/NAME.onnx.", flags=("-o", "--out"))
    ] = None
    options: ExportOptions
    batch: Annotated[str, Option("A number, or 'dynamic'.")] = "1"
    model: Annotated[str | None, Option("Preset of a published .pth.")] = None
    json_out: JsonOption = None


def run_export(asked: ExportCommand) -> None:
    """Checkpoint → NMS-free ONNX, certified and compared with PyTorch.

    The file appears only if its graph holds no NMS and its detections are
    those of the checkpoint; otherwise the exit status is 1, and no file is left.

    Examples:

    nmsfree export weights/fcos_e2e_nano.safetensors -o model.onnx

    nmsfree export my.safetensors --precision fp16 --auto-mixed

    nmsfree export my.safetensors --precision int8 --for cpu --calibrate DATA
    """
    from rich.console import Console

    from nmsfree.datasets.formats.folder import find_layout
    from nmsfree.datasets.image_files import images_below
    from nmsfree.files import check_outputs, write_json

    try:
        from nmsfree_export.candidate import FragileError
        from nmsfree_export.export import export_onnx
        from nmsfree_training.weights.checkpoint import load_checkpoint
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "nmsfree_training", "onnxscript"):
            raise
        raise MissingExtraError("exporting a checkpoint", "nmsfree-export[torch]") from None
    from nmsfree_export.verify.layer_errors import print_layers

    options = replace(asked.options, batch=_batch(asked.batch))
    out = asked.out or Path("runs/export") / f"{asked.checkpoint.stem}.onnx"
    if out.suffix != ".onnx":
        raise InputError(f"output is {out}, expected a name that ends in .onnx")
    console = Console(stderr=True)
    inputs = [asked.checkpoint, options.thresholds]
    inputs += images_below(options.images) if options.images else []
    for data in (options.calibrate, options.check_data):
        inputs += find_layout(data).files() if data else []
    check_outputs([out, asked.json_out], inputs)
    checkpoint = load_checkpoint(asked.checkpoint, asked.model)
    try:
        with console.status("exporting") as status:
            report = export_onnx(
                checkpoint,
                out,
                options,
                lambda step: status.update(f"{step} …"),
                lambda line: console.print(line, highlight=False, markup=False),
            )
    except FragileError as error:
        print_layers(error.layers, f"layers in {options.precision} beside FP32", console)
        raise
    _show(report, console)
    write_json(asked.json_out, report.to_json())


def _batch(text: str) -> int | None:
    from nmsfree.decode import whole_number

    number = None if text == "dynamic" else whole_number(text)
    if text != "dynamic" and not 1 <= (number or 0) <= 65536:
        raise InputError(f"batch is {text!r}, expected a number of 1 … 65536, or 'dynamic'")
    return number


def _show(report: "ExportReport", console: "Console") -> None:
    from rich.table import Table
    from rich.text import Text

    from nmsfree_training.weights.checkpoint import KEY as DEDUP_IOU

    spec = report.spec
    title = "NMS-free: certificate" if spec.nms is None else "NMS baseline: contract"
    table = Table(title=title, show_header=False)
    lines = [*report.certificate.lines, ("same detections as PyTorch", report.parity)]
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
        f"{spec.height} × {spec.width}, batch {spec.batch or 'dynamic'}, {precision}{about_iou}, "
        f"{report.size / 1e6:.1f} MB, sha256 {report.sha256[:12]}",
        shown(_about_threshold(spec)),
    ):
        console.print(line, highlight=False, markup=False)


def _about_threshold(spec: "ModelSpec") -> str:
    line, measured = f"threshold {spec.threshold:.3f}", spec.thresholds
    if measured is None:
        return f"{line}; none was measured, `nmsfree eval` recommends one"
    if spec.threshold == measured.best_f1:
        return f"{line}: best F1 on {measured.measured_on}"
    return f"{line}; the best F1 is at {measured.best_f1:.3f} ({measured.measured_on})"


export = command(run_export, ExportCommand)
