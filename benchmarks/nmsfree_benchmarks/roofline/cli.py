"""`nmsfree bench roofline`: how far each model is from what the device could do at most."""

from pathlib import Path
from typing import Annotated

import typer

from nmsfree_benchmarks.common.options import (
    DATA,
    OUT,
    WEIGHTS,
    WORK,
    Data,
    Json,
    Models,
    Out,
    Pause,
    Quick,
    Seconds,
    Threads,
    Weights,
    Work,
)

Files = Annotated[
    list[Path] | None,
    typer.Option("--onnx", help="This file, not the bundled models; may be given again."),
]
Place = Annotated[str, typer.Option(help="cpu or cuda (with onnxruntime-gpu and PyTorch's CUDA).")]


def roofline(
    onnx: Files = None,
    quick: Quick = False,
    model: Models = None,
    device: Place = "cpu",
    threads: Threads = None,
    weights: Weights = WEIGHTS,
    data: Data = DATA,
    work: Work = WORK,
    out: Out = OUT,
    seconds: Seconds = None,
    pause: Pause = None,
    json_file: Json = None,
) -> None:
    """How far from the limit: each model beside the peak of this device, in one run.

    Matrix products and memory copies are timed in turn with the models. Multiply-adds and bytes are
    counted in the ONNX files; a layer takes at least as long as its arithmetic at the peak, and as
    its bytes at the rate of a copy. Beside it, on paper, a GPU with a published speed.

    Example: nmsfree bench roofline --onnx model.onnx

    A first look: nmsfree bench roofline --quick
    """
    from nmsfree.errors import InputError
    from nmsfree_benchmarks.common.publishing import Question, answer, command_line
    from nmsfree_benchmarks.machine.environment import available_cores
    from nmsfree_benchmarks.roofline.picture import draw
    from nmsfree_benchmarks.roofline.suite import Options, run_roofline
    from nmsfree_benchmarks.roofline.tables import conclusions, sheets

    if onnx and model:
        raise InputError("--onnx and --model are given, expected one of them")
    given = {
        "model": model,
        "threads": threads,
        "seconds": seconds,
        "pause": pause,
        "onnx": [path.name for path in onnx] if onnx else None,
        "device": None if device == "cpu" else device,
    }
    options = Options(
        weights=weights,
        data=data,
        work=work,
        onnx=tuple(onnx or ()),
        models=None if model is None else tuple(model),
        device=device,
        seconds=seconds,
        pause=pause,
        threads=threads or available_cores(),
        quick=quick,
        command=command_line("roofline", quick, given),
    )
    question = Question("How far from the limit", run_roofline, sheets, conclusions, draw)
    answer(question, options, out, json_file)
