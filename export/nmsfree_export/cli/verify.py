"""`nmsfree verify`."""

from pathlib import Path
from typing import Annotated

import typer


def verify(
    a: Annotated[Path, typer.Argument(help="A checkpoint, an ONNX file or an engine.")],
    b: Annotated[Path, typer.Argument(help="Another one of the same detector, or the same file.")],
    device: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Where both run: cpu, cuda, tensorrt-rtx or openvino."),
    ] = None,
    device_a: Annotated[str | None, typer.Option(metavar="NAME", help="Where A runs.")] = None,
    device_b: Annotated[str | None, typer.Option(metavar="NAME", help="Where B runs.")] = None,
    precision_a: Annotated[
        str | None, typer.Option(metavar="f32|bf16", help="OpenVINO's arithmetic for A.")
    ] = None,
    precision_b: Annotated[
        str | None, typer.Option(metavar="f32|bf16", help="OpenVINO's arithmetic for B.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of pictures to compare on; else bundled ones.")
    ] = None,
    score_tolerance: Annotated[
        float | None, typer.Option(min=0, help="Largest score difference; 1e-4, with FP16 0.01.")
    ] = None,
    box_tolerance: Annotated[
        float | None,
        typer.Option(min=0, help="Largest box difference in pixels; 0.05, with FP16 0.5."),
    ] = None,
    max_unmatched: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Share of rows that may have no partner; with INT8 and bf16 0.1."
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Labelled dataset to compare AP on, too.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Its split; val if not given.")] = None,
    max_ap_drop: Annotated[
        float | None,
        typer.Option(min=0, max=100, help="AP points that B may lose, 1.0 if not given."),
    ] = None,
    layers: Annotated[
        bool, typer.Option("--layers", help="Show the worst layers even if the models agree.")
    ] = False,
    json_out: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write the outcome; - for stdout.")
    ] = None,
) -> None:
    """Compare two models, whatever runs them; exit status 1 if they differ.

    The detections may differ by what the lower of both precisions needs.
    With a dataset, B may not lose more AP than allowed, either.
    If something differs, the layers that add most error are shown.

    Examples:

    nmsfree verify weights/fcos_e2e_nano.safetensors model.onnx

    nmsfree verify model.onnx model.onnx --device-b openvino

    nmsfree verify model.onnx int8.onnx --data data/digits --layers
    """
    from nmsfree_export.verify.compare import Side
    from nmsfree_export.verify.run import VerifyRequest, run_verify

    run_verify(
        VerifyRequest(
            a=Side(a, device_a or device, precision_a),
            b=Side(b, device_b or device, precision_b),
            images=images,
            score_tolerance=score_tolerance,
            box_tolerance=box_tolerance,
            max_unmatched=max_unmatched,
            data=data,
            split=split,
            max_ap_drop=max_ap_drop,
            layers=layers,
            json_out=json_out,
        )
    )
