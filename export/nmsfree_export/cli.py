"""`nmsfree export` and `nmsfree verify`."""

import json
from pathlib import Path
from typing import Annotated

import typer


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
    top_k: Annotated[int, typer.Option(min=1, help="Rows of the output.")] = 100,
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
        int | None, typer.Option(min=1, help="At most this many, 128 if not given.")
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
        float | None, typer.Option(min=0, help="AP points that may be lost, 1.0 if not given.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of pictures for the comparison; else bundled ones.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Preset of a published .pth.")] = None,
    json_out: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write the report; - for stdout.")
    ] = None,
) -> None:
    """Checkpoint → NMS-free ONNX, certified and compared with PyTorch.

    The file appears only if its graph holds no NMS and its detections are those of the
    checkpoint; otherwise the exit status is 1 and nothing is left behind.

    Example: nmsfree export weights/fcos_e2e_nano.safetensors -o model.onnx

    INT8 is calibrated with training pictures: --precision int8 --for cpu --calibrate data/digits
    --check-data data/digits
    """
    from nmsfree.errors import InputError, MissingExtraError

    try:
        from nmsfree_export.export_cli import ExportRequest, run_export
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "nmsfree_training", "onnxscript"):
            raise
        raise MissingExtraError("exporting a checkpoint", "nmsfree-export[torch]") from None
    if batch != "dynamic" and not (batch.isdigit() and int(batch) > 0):
        raise InputError(f"batch is {batch!r}, expected a number from 1 up or 'dynamic'")
    request = ExportRequest(
        checkpoint=checkpoint,
        out=out or Path("runs/export") / f"{checkpoint.stem}.onnx",
        head=head,
        size=size,
        batch=None if batch == "dynamic" else int(batch),
        top_k=top_k,
        score_floor=score_floor,
        threshold=threshold,
        thresholds=thresholds,
        interpolation=interpolation,
        precision=precision,
        target=target,
        calibrate=calibrate,
        calibrate_split=calibrate_split,
        calibration_images=calibration_images,
        max_unmatched=max_unmatched,
        check_data=check_data,
        check_split=check_split,
        max_ap_drop=max_ap_drop,
        images=images,
        model=model,
        json_out=json_out,
    )
    run_export(request)


def verify(
    a: Annotated[Path, typer.Argument(help="A checkpoint, an ONNX file or an engine.")],
    b: Annotated[Path, typer.Argument(help="Another one of the same detector.")],
    images: Annotated[
        Path | None, typer.Option(help="Folder of pictures to compare on; else bundled ones.")
    ] = None,
    score_tolerance: Annotated[
        float | None, typer.Option(help="Largest score difference; 1e-4, with FP16 0.01.")
    ] = None,
    box_tolerance: Annotated[
        float | None, typer.Option(help="Largest box difference in pixels; 0.05, with FP16 0.5.")
    ] = None,
    json_out: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write the outcome; - for stdout.")
    ] = None,
) -> None:
    """Compare the detections of two models; exit status 1 if they differ.

    Example: nmsfree verify weights/fcos_e2e_nano.safetensors model.onnx
    """
    from rich.console import Console

    from nmsfree_export.parity import Tolerance, compare, load_images, tolerance_for
    from nmsfree_export.verify import open_pair

    console = Console(stderr=True)
    pictures = load_images(images)
    with console.status("opening") as status:
        first, second = open_pair(a, b)
        usual = tolerance_for(first.spec, second.spec)
        parity = compare(
            first,
            second,
            pictures,
            Tolerance(
                usual.score if score_tolerance is None else score_tolerance,
                usual.box if box_tolerance is None else box_tolerance,
            ),
            lambda done, total: status.update(f"image {done} of {total}"),
        )
    write_json(json_out, {"a": str(a), "b": str(b), "parity": parity.to_json()})
    parity.enforce()
    console.print(f"same detections: {parity}", highlight=False)


def write_json(target: str | None, report: dict[str, object]) -> None:
    """Write a report to a file, to stdout for "-", or nowhere for None."""
    from nmsfree.atomic import write_atomic

    if target is None:
        return
    text = json.dumps(report, indent=2)
    if target == "-":
        typer.echo(text)
    else:
        write_atomic(Path(target), (text + "\n").encode())
