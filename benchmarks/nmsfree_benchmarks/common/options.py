"""Options that the sub-commands of `nmsfree bench` share."""

from pathlib import Path
from typing import Annotated

import typer

Quick = Annotated[bool, typer.Option("--quick", help="About a minute: for a first look.")]
Threads = Annotated[
    int | None,
    typer.Option(min=1, max=1024, help="Of every engine; the physical cores if not given."),
]
Weights = Annotated[Path, typer.Option(help="Folder of trained checkpoints.")]
Data = Annotated[Path, typer.Option(help="Digits set; missing splits are made in --work.")]
Work = Annotated[Path, typer.Option(help="Where ONNX files and missing digits are made.")]
Out = Annotated[Path, typer.Option(help="Where JSON, picture and Markdown are written.")]
Models = Annotated[
    list[str] | None, typer.Option("--model", help="Only this model; may be given again.")
]
Seconds = Annotated[float | None, typer.Option(min=0, max=86400, help="Time for the timed rounds.")]
Pause = Annotated[
    float | None,
    typer.Option(
        min=0, max=60_000, metavar="MS", help="Idle gap before each turn; some ms if not given."
    ),
]
Device = Annotated[
    str, typer.Option(help="Where the models run: cpu, openvino, cuda, tensorrt-rtx.")
]
Json = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE", help='Write the JSON here too; "-" is stdout.'),
]

WEIGHTS, DATA = Path("weights"), Path("data/digits")
WORK, OUT = Path("runs/bench"), Path("benchmarks/results")
