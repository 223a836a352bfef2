"""`nmsfree bench jitter`: does latency depend on what is in the picture?"""

from typing import Annotated

import typer

from nmsfree_benchmarks.common.options import (
    OUT,
    WEIGHTS,
    WORK,
    Json,
    Out,
    Quick,
    Threads,
    Weights,
    Work,
)


def jitter(
    quick: Quick = False,
    passes: Annotated[
        int | None, typer.Option(min=1, help="Of the stream, in each order; 10, quick 2.")
    ] = None,
    threads: Threads = None,
    weights: Weights = WEIGHTS,
    work: Work = WORK,
    out: Out = OUT,
    json_file: Json = None,
) -> None:
    """Latency over a stream that goes from empty to 500 objects and back, then shuffled.

    The NMS-free detector beside the one with NMS at score floors 0.05 and 0.001, in turn on the
    same frames: p99 and the worst case by the median, and milliseconds for 100 further objects.

    Example: nmsfree bench jitter

    A first look: nmsfree bench jitter --quick
    """
    from nmsfree_benchmarks.common.publishing import Question, answer, command_line
    from nmsfree_benchmarks.jitter.facts import conclusions, sheet
    from nmsfree_benchmarks.jitter.picture import draw
    from nmsfree_benchmarks.jitter.suite import Options, run_jitter
    from nmsfree_benchmarks.machine.environment import available_cores

    given = {"passes": passes, "threads": threads}
    options = Options(
        weights=weights,
        work=work,
        passes=passes,
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
