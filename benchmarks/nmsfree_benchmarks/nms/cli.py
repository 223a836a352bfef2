"""`nmsfree bench nms`: what NMS costs."""

from typing import Annotated

import typer

from nmsfree_benchmarks.common.options import (
    OUT,
    WEIGHTS,
    WORK,
    Device,
    Json,
    Out,
    Pause,
    Quick,
    Seconds,
    Threads,
    Weights,
    Work,
)


def nms(
    quick: Quick = False,
    implementation: Annotated[
        list[str] | None,
        typer.Option(help="Only this NMS, beside numpy: onnx, opencv, torchvision; repeatable."),
    ] = None,
    large: Annotated[
        bool, typer.Option("--large", help="Also the published architecture at 512 × 736.")
    ] = False,
    device: Device = "cpu",
    threads: Threads = None,
    weights: Weights = WEIGHTS,
    work: Work = WORK,
    out: Out = OUT,
    seconds: Seconds = None,
    pause: Pause = None,
    json_file: Json = None,
) -> None:
    """The price of NMS: over objects, score floor, IoU threshold, batch and implementation.

    First the NMS alone, on the candidates that a trained detector finds in scenes of 0 to 500
    digits, one setting varied at a time; implementations that keep different boxes are refused.
    Then whole calls: Detector(image) with NMS beside the NMS-free one, and what NMS takes of it.
    On another device than the processor whole calls alone; behind a TensorRT-RTX engine NMS runs on
    the host, and is told apart.

    Example: nmsfree bench nms

    A first look: nmsfree bench nms --quick

    Only one implementation: nmsfree bench nms --implementation onnx --seconds 30

    On a GPU: nmsfree bench nms --device tensorrt-rtx
    """
    from nmsfree_benchmarks.common.on_device import unless_cpu, use_device

    device = use_device(device)
    from nmsfree_benchmarks.common.publishing import Question, answer, command_line
    from nmsfree_benchmarks.machine.environment import available_cores
    from nmsfree_benchmarks.nms.facts import conclusions
    from nmsfree_benchmarks.nms.options import Options
    from nmsfree_benchmarks.nms.picture import draw
    from nmsfree_benchmarks.nms.suite import run_nms
    from nmsfree_benchmarks.nms.tables import notes, sheets

    given = {
        "device": unless_cpu(device),
        "implementation": implementation,
        "large": large,
        "threads": threads,
        "seconds": seconds,
        "pause": pause,
    }
    options = Options(
        weights=weights,
        work=work,
        device=device,
        implementations=None if implementation is None else tuple(implementation),
        large=large,
        seconds=seconds,
        pause=pause,
        threads=threads or available_cores(),
        quick=quick,
        command=command_line("nms", quick, given),
    )
    question = Question(
        "The price of NMS", run_nms, sheets, lambda r: [*conclusions(r), *notes(r)], draw
    )
    answer(question, options, out, json_file)
