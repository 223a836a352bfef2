"""`nmsfree bench overhead`: what is around the network, by the size of the source picture."""

from typing import Annotated

import typer

from nmsfree_benchmarks.common.options import (
    DATA,
    OUT,
    WEIGHTS,
    WORK,
    Data,
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


def overhead(
    quick: Quick = False,
    large: Annotated[
        bool, typer.Option("--large", help="The published 512 × 736 network as well.")
    ] = False,
    device: Device = "cpu",
    threads: Threads = None,
    weights: Weights = WEIGHTS,
    data: Data = DATA,
    work: Work = WORK,
    out: Out = OUT,
    seconds: Seconds = None,
    pause: Pause = None,
    json_file: Json = None,
) -> None:
    """What the runtime adds to the engine's call, by the size of the source picture.

    Pictures from 256×256 to 3840×2160: resizing and padding, mapping boxes back, and Python
    between, beside the engine's call; and, apart, reading and decoding JPEG and PNG files. The
    published network runs with stand-in weights until `nmsfree weights download` has been run.

    Example: nmsfree bench overhead

    With the large network: nmsfree bench overhead --large --seconds 60

    On a GPU: nmsfree bench overhead --device cuda
    """
    from nmsfree_benchmarks.common.on_device import unless_cpu, use_device

    device = use_device(device)
    from nmsfree_benchmarks.common.publishing import Question, answer, command_line
    from nmsfree_benchmarks.machine.environment import available_cores
    from nmsfree_benchmarks.overhead.picture import draw
    from nmsfree_benchmarks.overhead.rules import conclusions
    from nmsfree_benchmarks.overhead.suite import Options, run_overhead
    from nmsfree_benchmarks.overhead.tables import notes, sheets

    given = {
        "device": unless_cpu(device),
        "large": large,
        "threads": threads,
        "seconds": seconds,
        "pause": pause,
    }
    options = Options(
        weights=weights,
        data=data,
        work=work,
        device=device,
        large=large,
        seconds=seconds,
        pause=pause,
        threads=threads or available_cores(),
        quick=quick,
        command=command_line("overhead", quick, given),
    )
    question = Question(
        "What is around the network",
        run_overhead,
        sheets,
        lambda r: [*conclusions(r), *notes(r)],
        draw,
    )
    answer(question, options, out, json_file)
