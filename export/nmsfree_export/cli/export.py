"""`nmsfree export`, and where `nmsfree verify` is looked for."""

from pathlib import Path
from typing import Annotated

import typer

from nmsfree_export.cli.verify import verify

__all__ = ["export", "verify"]


def export(
    checkpoint: Annotated[Path, typer.Argument(help="A .safetensors or published .pth file.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Default: runs/export/NAME.onnx.")
    ] = None,
    head: Annotated[
        str | None, typer.Option(help="o2o (NMS-free) or o2m (the NMS baseline).")
    ] = None,
    size: Annotated[
        tuple[int, int] | None, typer.Option(metavar="H W", help="Input size in pixels.")
    ] = None,
    batch: Annotated[str, typer.Option(help="A number, or 'dynamic'.")] = "1",
    top_k: Annotated[int, typer.Option(min=1, max=1_000_000, help="Rows of the output.")] = 100,
    score_floor: Annotated[float, typer.Option(help="Lowest score that is counted.")] = 0.05,
    threshold: Annotated[
        float | None,
        typer.Option(help="Score that is shown unless asked otherwise; best F1, or 0.3."),
    ] = None,
    thresholds: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Recommended thresholds from `nmsfree eval --json`; else the checkpoint's own.",
        ),
    ] = None,
    interpolation: Annotated[str, typer.Option(help="linear, or area (slower).")] = "linear",
    rival_iou: Annotated[
        float | None,
        typer.Option(
            help="IoU from which a rival filter takes two boxes for one object, the checkpoint's"
            " if not given. Lower: fewer duplicates, and fewer close pairs."
        ),
    ] = None,
    precision: Annotated[
        str,
        typer.Option(
            help="fp32; fp16: half-precision convolutions, for GPUs; int8: 8-bit convolutions."
        ),
    ] = "fp32",
    target: Annotated[
        str | None,
        typer.Option("--for", metavar="ENGINE", help="INT8 for cpu or tensorrt; no file is both."),
    ] = None,
    calibrate: Annotated[
        Path | None, typer.Option(metavar="DIR", help="INT8: dataset whose pictures calibrate.")
    ] = None,
    calibrate_split: Annotated[
        str | None, typer.Option(help="Its training split; train if not given.")
    ] = None,
    calibration_images: Annotated[
        int | None, typer.Option(min=1, max=1_000_000, help="At most this many, 128 if not given.")
    ] = None,
    max_unmatched: Annotated[
        float | None,
        typer.Option(help="INT8: share of rows that may have no partner, 0.1 if not given."),
    ] = None,
    check_data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="FP16, INT8: labelled dataset to compare AP with FP32."),
    ] = None,
    check_split: Annotated[
        str | None, typer.Option(help="Split to compare on; val if not given.")
    ] = None,
    max_ap_drop: Annotated[
        float | None,
        typer.Option(min=0, max=100, help="AP points that may be lost, 1.0 if not given."),
    ] = None,
    auto_mixed: Annotated[
        bool,
        typer.Option(
            "--auto-mixed",
            help="FP16, INT8: keep the layers that add most error in float until the file passes.",
        ),
    ] = False,
    images: Annotated[
        Path | None, typer.Option(help="Folder of pictures for the comparison; else bundled ones.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Preset of a published .pth.")] = None,
    json_out: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write the report; - for stdout.")
    ] = None,
) -> None:
    """Checkpoint → NMS-free ONNX, certified and compared with PyTorch.

    The file appears only if its graph holds no NMS and its detections are
    those of the checkpoint; otherwise the exit status is 1, and no file is left.

    Examples:

    nmsfree export weights/fcos_e2e_nano.safetensors -o model.onnx

    nmsfree export my.safetensors --precision fp16 --auto-mixed

    nmsfree export my.safetensors --precision int8 --for cpu --calibrate DATA
    """
    from nmsfree.decode import whole_number
    from nmsfree.errors import InputError, MissingExtraError

    try:
        from nmsfree_export.cli.run import ExportRequest, run_export
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "nmsfree_training", "onnxscript"):
            raise
        raise MissingExtraError("exporting a checkpoint", "nmsfree-export[torch]") from None
    number = None if batch == "dynamic" else whole_number(batch)
    if batch != "dynamic" and not 1 <= (number or 0) <= 65536:
        raise InputError(f"batch is {batch!r}, expected a number of 1 … 65536, or 'dynamic'")
    request = ExportRequest(
        checkpoint=checkpoint,
        out=out or Path("runs/export") / f"{checkpoint.stem}.onnx",
        head=head,
        size=size,
        batch=number,
        top_k=top_k,
        score_floor=score_floor,
        threshold=threshold,
        thresholds=thresholds,
        interpolation=interpolation,
        rival_iou=rival_iou,
        precision=precision,
        target=target,
        calibrate=calibrate,
        calibrate_split=calibrate_split,
        calibration_images=calibration_images,
        max_unmatched=max_unmatched,
        check_data=check_data,
        check_split=check_split,
        max_ap_drop=max_ap_drop,
        auto_mixed=auto_mixed,
        images=images,
        model=model,
        json_out=json_out,
    )
    run_export(request)
