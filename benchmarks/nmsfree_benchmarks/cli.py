"""`nmsfree bench`: measure NMS-free against NMS; `nmsfree bench training`: a training step."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nmsfree.cli.options import command
from nmsfree.errors import InputError
from nmsfree.text import shown
from nmsfree_benchmarks.common.options import Pause
from nmsfree_benchmarks.frontier.cli import frontier
from nmsfree_benchmarks.jitter.cli import jitter
from nmsfree_benchmarks.nms.cli import nms
from nmsfree_benchmarks.overhead.cli import overhead
from nmsfree_benchmarks.page.cli import report
from nmsfree_benchmarks.questions import gpu_check, throughput, training
from nmsfree_benchmarks.record.compare_cli import compare
from nmsfree_benchmarks.roofline.cli import roofline

if TYPE_CHECKING:
    from nmsfree_benchmarks.table.results import Report


app = typer.Typer(invoke_without_command=True)
app.command()(compare)
app.command("gpu-check")(command(gpu_check.gpu_check, gpu_check.Options))
app.command()(frontier)
app.command()(jitter)
app.command()(nms)
app.command()(overhead)
app.command()(report)
app.command()(roofline)
app.command()(command(throughput.throughput, throughput.Options))
app.command()(command(training.training, training.Options))
app.command()(command(training.criterion, training.CriterionOptions))


@app.callback()
def bench(
    context: typer.Context,
    quick: Annotated[
        bool, typer.Option("--quick", help="Two minutes on a processor: fewer rounds and rows.")
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option(min=1, max=1024, help="Of every engine; the physical cores if not given."),
    ] = None,
    weights: Annotated[
        Path, typer.Option(help="Trained checkpoints; published ones in its published/.")
    ] = Path("weights"),
    data: Annotated[
        Path,
        typer.Option(help="Digits set: val for AP, train for INT8; made elsewhere when missing."),
    ] = Path("data/digits"),
    work: Annotated[
        Path, typer.Option(help="Where ONNX files and missing digits are made.")
    ] = Path("runs/bench"),
    out: Annotated[
        Path, typer.Option(help="Where the report is written: JSON, Markdown, picture.")
    ] = Path("benchmarks/results"),
    size: Annotated[
        str | None, typer.Option(help="Only nano (digits) or only large (512 × 736).")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0, max=86400, help="Time for the rounds of each input size.")
    ] = None,
    pause: Pause = None,
    device: Annotated[str, typer.Option(help="Where the models run: cpu or cuda.")] = "cpu",
    json_file: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE", help='Write the JSON here too; "-" is stdout.'),
    ] = None,
) -> None:
    """Measure NMS-free against NMS: latency by stage, and AP of the very files that are timed.

    All models of a size run in turn: in eager PyTorch as published, and as files exported here in
    ONNX Runtime and OpenVINO, FP32 and INT8 (bf16 where the processor has it); on a GPU in
    PyTorch, ONNX Runtime and TensorRT-RTX, FP32, FP16 and INT8. Models at 512 × 736 without
    published weights get stand-in weights and no AP.

    A first look: nmsfree bench --quick

    On a GPU: nmsfree bench --device cuda
    """
    if context.invoked_subcommand is not None:
        return
    if device not in ("cpu", "cuda"):
        raise InputError(f"device is {device!r}, the benchmark runs on: cpu, cuda")
    if device == "cuda":
        from nmsfree_benchmarks.harness.engines import the_gpu

        the_gpu()  # without one, that is the reason to give
    from nmsfree_benchmarks.common.publishing import check_places, command_line, with_progress
    from nmsfree_benchmarks.machine.environment import available_cores
    from nmsfree_benchmarks.table.options import SIZES, Options
    from nmsfree_benchmarks.table.suite import run_suite

    if size not in (None, *SIZES):
        raise InputError(f"size is {size!r}, expected one of: {', '.join(SIZES)}")
    given = {
        "device": None if device == "cpu" else device,
        "threads": threads,
        "size": size,
        "seconds": seconds,
        "pause": pause,
    }
    options = Options(
        weights=weights,
        data=data,
        work=work,
        threads=threads or available_cores(),
        quick=quick,
        seconds=seconds,
        pause=pause,
        sizes=SIZES if size is None else (size,),
        command=command_line("", quick, given),
        device=device,
    )
    check_places(options, out, json_file)
    report = with_progress(lambda progress: run_suite(options, progress))
    if not report.rows:
        raise InputError("nothing to measure: " + "; ".join(report.skipped.values()))
    _publish(report, out, json_file)


def _publish(report: "Report", out: Path, json_file: str | None) -> None:
    from rich.console import Console

    from nmsfree_benchmarks.common.publishing import MIN_WIDTH, write_results
    from nmsfree_benchmarks.table.report import write
    from nmsfree_benchmarks.table.tables import show

    files = write(report, out)
    console = Console(stderr=json_file == "-")
    console.width = max(console.width, MIN_WIDTH)
    show(report, console)
    written = ", ".join(map(shown, files))
    console.print(f"{report.seconds:.0f} s; written: {written}", soft_wrap=True, markup=False)
    write_results(json_file, report.results())
