"""`nmsfree bench throughput`: images a second over batch and parallel streams."""

from nmsfree_benchmarks.common.options import (
    DATA,
    OUT,
    WEIGHTS,
    WORK,
    Data,
    Device,
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


def throughput(
    quick: Quick = False,
    model: Models = None,
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
    """Images a second over batch and parallel streams, until the device is full.

    Batches of 1 to 16 and 1 to 8 threads that share one Detector, with one engine thread and with
    --threads of them, with NMS and without; and where more stops to give more, unless the machine
    was too busy to tell. On another device than the processor every batch has a file of its own.

    Example: nmsfree bench throughput

    One model: nmsfree bench throughput --model fcos_e2e_nano --seconds 60

    On a GPU: nmsfree bench throughput --device tensorrt-rtx
    """
    from nmsfree_benchmarks.common.on_device import unless_cpu, use_device

    device = use_device(device)
    from nmsfree_benchmarks.common.publishing import Question, answer, command_line
    from nmsfree_benchmarks.machine.environment import available_cores
    from nmsfree_benchmarks.throughput.picture import draw
    from nmsfree_benchmarks.throughput.rules import conclusions
    from nmsfree_benchmarks.throughput.suite import Options, run_throughput
    from nmsfree_benchmarks.throughput.tables import notes, sheets

    given = {
        "device": unless_cpu(device),
        "model": model,
        "threads": threads,
        "seconds": seconds,
        "pause": pause,
    }
    options = Options(
        weights=weights,
        data=data,
        work=work,
        device=device,
        models=None if model is None else tuple(model),
        seconds=seconds,
        pause=pause,
        threads=threads or available_cores(),
        quick=quick,
        command=command_line("throughput", quick, given),
    )
    question = Question(
        "Throughput", run_throughput, sheets, lambda r: [*conclusions(r), *notes(r)], draw
    )
    answer(question, options, out, json_file)
