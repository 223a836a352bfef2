"""`nmsfree study`."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nmsfree.errors import InputError
from nmsfree.machine import computes_bf16
from nmsfree.text import shown

if TYPE_CHECKING:
    from nmsfree_training.study.results import Result
    from nmsfree_training.study.runner import Failure

app = typer.Typer(no_args_is_help=True, help="Compare recipes: many short runs, then a table.")

DataOption = Annotated[Path, typer.Option("--data", help="With splits train, val and overlap.")]
RunsOption = Annotated[Path, typer.Option("--runs", help="Run folders and logs.")]
ResultsOption = Annotated[Path, typer.Option("--results", help="Figures of finished runs.")]
FoldersOption = Annotated[
    list[Path] | None,
    typer.Option("--results", help="Figures of finished runs, docs/study; again for more of them."),
]
EpochsOption = Annotated[
    int, typer.Option("--epochs", min=1, max=1_000_000, help="Length of a run.")
]
LengthOption = Annotated[
    int | None, typer.Option("--epochs", min=1, help="Only runs of this length.")
]
PrecisionOption = Annotated[
    str, typer.Option("--precision", help="fp32, bf16, or auto: bf16 where the processor has it.")
]
DeviceOption = Annotated[str, typer.Option("--device", help="Where to train: cpu or cuda.")]
AUTO = "auto"
DATA, RUNS, RESULTS = Path("data/digits"), Path("runs/study"), Path("docs/study")
EPOCHS, SEEDS = 16, (0, 1, 2)


@app.callback()
def study() -> None:
    """Compare recipes: many short runs, then a table.

    A row is a recipe, a run is a row with one seed. Each run is plain `nmsfree train`.
    """


@app.command("list")
def list_rows(results: ResultsOption = RESULTS) -> None:
    """Show the rows, what each one asks, and which of its runs are done.

    Example: nmsfree study list
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from nmsfree_training.study.results import read_results
    from nmsfree_training.study.rows import ROWS

    found = read_results(results)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("row", no_wrap=True)
    for name in ("recipe", "question", "done: epochs × seeds"):
        table.add_column(name)
    for row in ROWS:
        done = _done([result for result in found if result["row"] == row.name])
        table.add_row(*(Text(cell) for cell in (row.name, row.title, row.question, done)))
    Console().print(table)


def _done(results: "list[Result]") -> str:
    """Finished runs of a row: "16 × 0, 1, 2"."""
    seeds: dict[int, list[int]] = {}
    for result in results:
        seeds.setdefault(result["epochs"], []).append(result["seed"])
    parts = [f"{e} × {', '.join(map(str, sorted(s)))}" for e, s in sorted(seeds.items())]
    return "; ".join(parts) or "–"


@app.command()
def run(
    row: Annotated[
        list[str] | None, typer.Option("--row", help="Which row; all if not given.")
    ] = None,
    epochs: EpochsOption = EPOCHS,
    seed: Annotated[
        list[int] | None, typer.Option("--seed", min=0, help="Which seed; 0, 1, 2 if not given.")
    ] = None,
    jobs: Annotated[
        int, typer.Option(min=1, max=128, help="Runs at a time; one thread each on a processor.")
    ] = 2,
    precision: PrecisionOption = AUTO,
    device: DeviceOption = "cpu",
    data: DataOption = DATA,
    results: ResultsOption = RESULTS,
    runs: RunsOption = RUNS,
) -> None:
    """Carry out all runs that are not done yet; stop and start again whenever you like.

    All rows of the first seed come first. Ctrl-C stops: the trainings save, and the same command
    goes on. Exit status 1 if some runs failed; the others are done.

    Example: nmsfree study run

    Only some: nmsfree study run --row o2m --row e2e_published --seed 0 --epochs 4
    """
    from rich.console import Console

    from nmsfree_training.study.job import is_done, plan
    from nmsfree_training.study.rows import choose_rows
    from nmsfree_training.study.runner import StoppedError, StudyDisplay, run_study

    if not data.is_dir():
        raise InputError(f"--data is {data}, which is not a folder: `nmsfree data digits` makes it")
    wanted = plan(
        choose_rows(row or ()),
        seed or SEEDS,
        epochs=epochs,
        data=data,
        runs=runs,
        results=results,
        precision=_precision(precision, device),
        device=device,
    )
    pending = [job for job in wanted if not is_done(job)]
    console = Console(stderr=True)
    try:
        with StudyDisplay(console, wanted, len(wanted) - len(pending), jobs) as display:
            failures = run_study(pending, jobs, display)
    except StoppedError as stopped:
        again = shlex.join(["nmsfree", *sys.argv[1:]])
        typer.echo(f"stopped, all is saved; go on with: {again}", err=True)
        raise typer.Exit(stopped.exit_status) from None
    _conclude(len(wanted), failures, results)


def _precision(chosen: str, device: str) -> str:
    """Resolve "auto". A recipe's figures are the same in each, but for noise."""
    if device not in ("cpu", "cuda"):
        raise InputError(f"--device is {device!r}, expected cpu or cuda")
    if chosen not in (AUTO, "fp32", "bf16"):
        raise InputError(f"--precision is {chosen!r}, expected fp32, bf16 or auto")
    if chosen != AUTO:
        return chosen
    return "bf16" if device == "cuda" or computes_bf16() else "fp32"


def _conclude(count: int, failures: "list[Failure]", results: Path) -> None:
    for job, reason in failures:
        typer.echo(f"failed: {job.name}: {shown(reason)}; see {shown(job.log)}", err=True)
    typer.echo(
        f"{count - len(failures)} of {count} runs are done, in {results}: `nmsfree study table`",
        err=True,
    )
    if failures:
        raise typer.Exit(1)


@app.command()
def command(
    row: Annotated[str, typer.Argument(help="Name of the row.")],
    epochs: EpochsOption = EPOCHS,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the run.")] = 0,
    precision: PrecisionOption = AUTO,
    device: DeviceOption = "cpu",
    data: DataOption = DATA,
    runs: RunsOption = RUNS,
) -> None:
    """Print the command that one run is.

    Example: nmsfree study command e2e_published --seed 1
    """
    from nmsfree_training.study.job import Job
    from nmsfree_training.study.rows import choose_rows

    (chosen,) = choose_rows([row])
    how = _precision(precision, device), device
    job = Job(chosen, epochs, seed, data, runs, RESULTS, *how)
    typer.echo(job.command)


@app.command()
def table(
    results: FoldersOption = None,
    epochs: LengthOption = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="Also write Markdown.")
    ] = None,
    json_file: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE", help='Also write JSON, AP 0–1; "-" is stdout.'),
    ] = None,
) -> None:
    """Show mean ± deviation of every row over its seeds, and the difference to NMS.

    Example: nmsfree study table --markdown docs/study.md
    """
    from rich.console import Console

    from nmsfree.files import check_outputs, problems_in, write_atomic, write_json
    from nmsfree_training.study.report import markdown as as_markdown
    from nmsfree_training.study.report import print_table, to_json
    from nmsfree_training.study.results import summarize

    folders = results or [RESULTS]
    check_outputs([markdown, json_file], _result_files(folders))
    rows = summarize(_read(folders, epochs))
    if json_file != "-":
        print_table(rows, Console())
    problems: list[str] = []
    if markdown is not None:
        with problems_in(problems):
            write_atomic(markdown, as_markdown(rows).encode())
    with problems_in(problems):
        write_json(json_file, to_json(rows))
    for problem in problems:
        typer.echo(f"error: {problem}", err=True)
    if problems:
        raise typer.Exit(1)


@app.command()
def plot(
    out: Annotated[Path, typer.Option(help="The PNG to write.")],
    results: FoldersOption = None,
    epochs: LengthOption = None,
) -> None:
    """Draw the AP of every row: dots are seeds, bars their means, lines what NMS reaches.

    Example: nmsfree study plot --out docs/study.png

    With older results: nmsfree study plot --epochs 16 --results docs/study
    --results docs/study/narrow-filter --out docs/study.png
    """
    from nmsfree.files import check_outputs
    from nmsfree_training.study.report import write_plot

    folders = results or [RESULTS]
    check_outputs([out], _result_files(folders))
    write_plot(_read(folders, epochs), out)
    typer.echo(shown(out), err=True)


@app.command()
def scenes(
    with_nms: Annotated[Path, typer.Argument(help="Detector that needs NMS.")],
    without: Annotated[Path, typer.Argument(help="Detector that needs none.")],
    out: Annotated[Path, typer.Option(help="The .png or .jpg to write.")],
    data: DataOption = DATA,
    split: Annotated[
        str, typer.Option(help="Split whose pictures are looked through.")
    ] = "overlap",
    count: Annotated[int, typer.Option(min=1, max=1000, help="How many scenes.")] = 3,
) -> None:
    """Draw the scenes where NMS loses most objects that the other detector finds.

    Example: nmsfree study scenes weights/fcos_rt_nano.safetensors
    weights/fcos_e2e_nano.safetensors --out scenes.png
    """
    from nmsfree.cli.progress import progress_bar
    from nmsfree_training.study.scenes import write_scenes

    if out.suffix not in (".png", ".jpg"):
        raise InputError(f"--out is {out}, expected a name that ends in .png or .jpg")
    with progress_bar() as bars:
        task = bars.add_task("detecting", total=None)
        outcome = write_scenes(
            *(with_nms, without, data, split, out, count),
            lambda done, total: bars.update(task, completed=done, total=total),
        )
    typer.echo(
        f"of {outcome.objects} objects of {split} NMS misses {outcome.lost_with_nms}, without it "
        f"{outcome.lost_without} are missed; {outcome.only_with_nms} only with NMS, "
        f"{outcome.only_without} only without: {out}",
        err=True,
    )


def _result_files(folders: list[Path]) -> list[Path]:
    return [file for folder in folders for file in folder.glob("*.json")]


def _read(folders: list[Path], epochs: int | None) -> "list[Result]":
    from nmsfree_training.study.results import of_one_length, once, read_results

    found = [result for folder in folders for result in read_results(folder)]
    return once(of_one_length(found, epochs, folders[0]))
