"""`nmsfree bench frontier`: AP against latency over precision, engine, input size and model."""

import os

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


def frontier(
    quick: Quick = False,
    model: Models = None,
    threads: Threads = None,
    weights: Weights = WEIGHTS,
    data: Data = DATA,
    work: Work = WORK,
    out: Out = OUT,
    seconds: Seconds = None,
    pause: Pause = None,
    json_file: Json = None,
) -> None:
    """AP against latency: which precision, engine and input size are worth their time.

    FP32, FP16 and INT8 in every engine that works here, and FP32 in ONNX Runtime at other input
    sizes: latency of Detector(image) and of the engine alone, AP of the very file in that very
    engine, its size, and the memory it takes. INT8 is calibrated with the train split of digits.
    Ends with advice for each model, unless the machine was too busy to rank.

    Example: nmsfree bench frontier --model fcos_e2e_nano

    A first look: nmsfree bench frontier --quick
    """
    from nmsfree.backends.onnxruntime.gpu import TF32_VARIABLE
    from nmsfree_benchmarks.common.publishing import Question, answer, command_line
    from nmsfree_benchmarks.frontier.picture import draw
    from nmsfree_benchmarks.frontier.rules import conclusions
    from nmsfree_benchmarks.frontier.suite import Options, run_frontier
    from nmsfree_benchmarks.frontier.tables import notes, sheets
    from nmsfree_benchmarks.machine.environment import available_cores

    # FP32 is FP32 on a GPU, too; its libraries read this once, when they are loaded.
    os.environ.setdefault(TF32_VARIABLE, "0")
    given = {"model": model, "threads": threads, "seconds": seconds, "pause": pause}
    options = Options(
        weights=weights,
        data=data,
        work=work,
        models=None if model is None else tuple(model),
        seconds=seconds,
        pause=pause,
        threads=threads or available_cores(),
        quick=quick,
        command=command_line("frontier", quick, given),
    )
    question = Question(
        "AP against latency", run_frontier, sheets, lambda r: [*conclusions(r), *notes(r)], draw
    )
    answer(question, options, out, json_file)
