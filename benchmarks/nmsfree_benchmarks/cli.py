"""`nmsfree bench`: measure NMS-free against NMS."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nmsfree.errors import InputError

if TYPE_CHECKING:
    from nmsfree_benchmarks.results import Report
    from nmsfree_benchmarks.suite import Options


MIN_WIDTH = 100  # columns; a narrower terminal wraps lines, rather than lose digits


def bench(
    quick: Annotated[
        bool, typer.Option("--quick", help="Under two minutes: fewer rounds, rows and images.")
    ] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of every engine; the physical cores if not given.")
    ] = None,
    weights: Annotated[
        Path, typer.Option(help="Trained checkpoints; published ones in its published/.")
    ] = Path("weights"),
    data: Annotated[
        Path, typer.Option(help="Digits set; its val split is made elsewhere when missing.")
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
        float | None, typer.Option(min=0, help="Time for the rounds of each input size.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where the models run: cpu.")] = "cpu",
    json_file: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE", help='Write the JSON here too; "-" is stdout.'),
    ] = None,
) -> None:
    """Measure NMS-free against NMS: latency by stage, and AP of the very files that are timed.

    All models of a size run in turn, in eager PyTorch as published and in ONNX Runtime, which
    runs files exported here. Models at 512 × 736 without published weights get stand-in weights
    and no AP.

    Example: nmsfree bench --quick
    """
    if device != "cpu":
        raise InputError(f"device is {device!r}, the benchmark runs on: cpu")
    from nmsfree_benchmarks.environment import available_cores
    from nmsfree_benchmarks.suite import SIZES, Options

    if size not in (None, *SIZES):
        raise InputError(f"size is {size!r}, expected one of: {', '.join(SIZES)}")
    options = Options(
        weights,
        data,
        work,
        threads or available_cores(),
        quick,
        seconds,
        sizes=SIZES if size is None else (size,),
    )
    report = _run(options)
    if not report.rows:
        raise InputError("nothing to measure: " + "; ".join(report.skipped.values()))
    _publish(report, out, json_file)


def _run(options: "Options") -> "Report":
    from nmsfree.progress import progress_bar
    from nmsfree_benchmarks.suite import run_suite

    with progress_bar() as bar:
        tasks = {}

        def on_progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what)
            bar.update(tasks[what], completed=done, total=total)

        return run_suite(options, on_progress)


def _publish(report: "Report", out: Path, json_file: str | None) -> None:
    from rich.console import Console

    from nmsfree_benchmarks.report import to_text, write
    from nmsfree_benchmarks.tables import show

    files = write(report, out)
    to_stdout = json_file == "-"
    console = Console(stderr=to_stdout)
    console.width = max(console.width, MIN_WIDTH)
    show(report, console)
    console.print(f"{report.seconds:.0f} s; written: {', '.join(map(str, files))}", soft_wrap=True)
    if to_stdout:
        typer.echo(to_text(report), nl=False)
    elif json_file is not None:
        Path(json_file).write_text(to_text(report), encoding="utf-8", newline="\n")
