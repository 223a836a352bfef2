"""`nmsfree bench jitter`: does latency depend on what is in the picture?"""

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
    Threads,
    Weights,
    Work,
)


def jitter(
    quick: Quick = False,
    passes: Annotated[
        int | None,
        typer.Option(min=1, max=100_000, help="Of the stream, in each order; 30, quick 10."),
    ] = None,
    side: Annotated[
        int,
        typer.Option(min=64, max=4096, help="Input of the networks, in pixels; frames have 1024."),
    ] = 512,
    device: Device = "cpu",
    threads: Threads = None,
    weights: Weights = WEIGHTS,
    work: Work = WORK,
    out: Out = OUT,
    pause: Pause = None,
    json_file: Json = None,
) -> None:
    """Latency over a stream that goes from empty to 500 objects and back, then shuffled.

    The NMS-free detector beside the one with NMS at score floors 0.05 and 0.001, in turn on the
    same frames: p99 and the worst case by the median, and milliseconds for 100 further objects.
    On the processor a constant piece of work before and after every call tells which calls the
    machine left alone; p99 by the median is given of these, too.

    Example: nmsfree bench jitter

    A first look: nmsfree bench jitter --quick

    On a GPU: nmsfree bench jitter --device tensorrt-rtx
    """
    from nmsfree_benchmarks.common.on_device import unless_cpu, use_device

    device = use_device(device)
    from nmsfree_benchmarks.common.publishing import Question, answer, command_line
    from nmsfree_benchmarks.jitter.picture import draw
    from nmsfree_benchmarks.jitter.suite import SIDE, Options, run_jitter
    from nmsfree_benchmarks.jitter.words import conclusions, sheet
    from nmsfree_benchmarks.machine.environment import available_cores

    given = {
        "device": unless_cpu(device),
        "passes": passes,
        "side": None if side == SIDE else side,
        "threads": threads,
        "pause": pause,
    }
    options = Options(
        weights=weights,
        work=work,
        device=device,
        passes=passes,
        side=side,
        pause=pause,
        threads=threads or available_cores(),
        quick=quick,
        command=command_line("jitter", quick, given),
    )
    question = Question(
        "Latency over a stream whose crowding changes",
        run_jitter,
        lambda results: [sheet(results)],
        conclusions,
        draw,
    )
    answer(question, options, out, json_file)
