"""`nmsfree export`, and where `nmsfree verify` is looked for."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

from nmsfree.cli.options import command
from nmsfree.errors import InputError, MissingExtraError
from nmsfree.options import Option
from nmsfree_export.cli.convert import files_read, make_file
from nmsfree_export.cli.verify import verify
from nmsfree_export.options import ExportOptions, JsonOption

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
    from nmsfree.files import check_outputs

    try:
        from nmsfree_export.export import export_onnx
        from nmsfree_training.weights.checkpoint import load_checkpoint
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "nmsfree_training", "onnxscript"):
            raise
        raise MissingExtraError("exporting a checkpoint", "nmsfree-export[torch]") from None

    options = replace(asked.options, batch=_batch(asked.batch))
    out = asked.out or Path("runs/export") / f"{asked.checkpoint.stem}.onnx"
    if out.suffix != ".onnx":
        raise InputError(f"output is {out}, expected a name that ends in .onnx")
    inputs = [asked.checkpoint, options.thresholds, *files_read(options)]
    check_outputs([out, asked.json_out], inputs)
    checkpoint = load_checkpoint(asked.checkpoint, asked.model)
    make = partial(export_onnx, checkpoint, out, options)
    make_file("exporting", make, options, "PyTorch", asked.json_out)


def _batch(text: str) -> int | None:
    from nmsfree.parsing import whole_number

    number = None if text == "dynamic" else whole_number(text)
    if text != "dynamic" and not 1 <= (number or 0) <= 65536:
        raise InputError(f"batch is {text!r}, expected a number of 1 … 65536, or 'dynamic'")
    return number


export = command(run_export, ExportCommand)
