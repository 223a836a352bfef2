"""Options of every command that runs a model: where, and how."""

from typing import Annotated

import typer

DeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="cpu|cuda|tensorrt-rtx|openvino",
        help="Where the model runs; cuda:1 is the second GPU, openvino:GPU an Intel GPU. If not "
        "given, the processor, and the GPU for an .engine.",
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(min=1, max=1024, help="Processor threads; the engine's choice if not given."),
]
AllowCpuOption = Annotated[
    bool, typer.Option("--allow-cpu", help="Run on the processor where the GPU cannot, and warn.")
]
Tf32Option = Annotated[
    bool, typer.Option("--tf32", help="Let the GPU round FP32 to TF32: faster, less exact.")
]
PrecisionOption = Annotated[
    str | None,
    typer.Option("--engine-precision", metavar="f32|bf16", help="OpenVINO's arithmetic."),
]
RebuildOption = Annotated[
    bool,
    typer.Option(
        "--rebuild/--no-rebuild",
        help="Build an .engine that does not fit this machine again, from the ONNX file beside it.",
    ),
]
TrustOption = Annotated[
    bool,
    typer.Option(
        "--trust", help="Run an .engine whose hash is not the recorded one: it is native code."
    ),
]
