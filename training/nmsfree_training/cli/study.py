"""`nmsfree study`."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nmsfree.cli.options import command, end_with, json_option
from nmsfree.errors import InputError
from nmsfree.files import check_outputs, problems_in, write_atomic, write_json
from nmsfree.machine import computes_bf16
from nmsfree.options import Option
from nmsfree.text import shown

if TYPE_CHECKING:
    from nmsfree_training.study.job import Job
    from nmsfree_training.study.results import Result
    from nmsfree_training.study.rows import Row

DATA, RUNS, RESULTS = Path("data/digits"), Path("runs/study"), Path("docs/study")
SEEDS = (0, 1, 2)
AUTO = "auto"
_Data = Annotated[Path, Option("Dataset folder.")]
_Results = Annotated[Path, Option("Figures of finished runs.")]


@dataclass(frozen=True)
class ListOptions:
    """What `nmsfree study list` is asked."""

    results: _Results = RESULTS


def _list(options: ListOptions) -> None:
    """Show the rows, what each one asks, and which of its runs are done.

    Example: nmsfree study list
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from nmsfree_training.study.results import read_results
    from nmsfree_training.study.rows import ROWS

    found = read_results(options.results)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("row", no_wrap=True)
    for name in ("recipe", "question", "done: epochs × seeds"):
        table.add_column(name)
    for row in ROWS:
        done = _done([result for result in found if result.row == row.name])
        table.add_row(*(Text(cell) for cell in (row.name, row.title, row.question, done)))
    Console().print(table)


def _done(results: "list[Result]") -> str:
    """Finished runs of a row: "16 × 0, 1, 2"."""
    seeds: dict[int, list[int]] = {}
    for result in sorted(results, key=lambda result: (result.epochs, result.seed)):
        seeds.setdefault(result.epochs, []).append(result.seed)
    return "; ".join(f"{e} × {', '.join(map(str, s))}" for e, s in seeds.items()) or "–"


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """What all runs have in common."""

    epochs: Annotated[int, Option("Length of a run.", min=1, max=1_000_000)] = 16
    precision: Annotated[str, Option("fp32, bf16, or auto: bf16 where the processor has it.")] = (
        AUTO
    )
    device: Annotated[str, Option("Where to train: cpu or cuda.")] = "cpu"
    data: _Data = DATA
    runs: Annotated[Path, Option("Run folders and logs.")] = RUNS
    split: Annotated[
        tuple[str, ...] | None,
        Option("Split that is measured, again for more; thresholds are chosen on the first."),
    ] = None
    more: Annotated[
        str, Option('Words of `nmsfree train` for all rows: "--size 320 320".', flags=("--with",))
    ] = ""

    def plan(
        self, rows: "tuple[Row, ...]", seeds: tuple[int, ...], results: Path = RESULTS
    ) -> "list[Job]":
        """All runs, seed by seed: a study that is stopped has compared all rows alike."""
        from nmsfree_training.study.job import Job
        from nmsfree_training.study.results import SPLITS

        precision, device = self.precision, self.device
        if device not in ("cpu", "cuda"):
            raise InputError(f"--device is {device!r}, expected cpu or cuda")
        if precision not in (AUTO, "fp32", "bf16"):
            raise InputError(f"--precision is {precision!r}, expected fp32, bf16 or auto")
        if precision == AUTO:  # a recipe's figures are the same in each, but for noise
            precision = "bf16" if device == "cuda" or computes_bf16() else "fp32"
        return [
            Job(
                *(row, self.epochs, seed, self.data, self.runs, results, precision, device),
                *(self.split or SPLITS, self.more),
            )
            for seed in dict.fromkeys(seeds)  # one given twice counts once
            for row in rows
        ]


@dataclass(frozen=True, kw_only=True)
class RunOptions(JobOptions):
    """What `nmsfree study run` is asked."""

    row: Annotated[tuple[str, ...] | None, Option("Which row; all if not given.")] = None
    seed: Annotated[tuple[int, ...] | None, Option("Which seed; 0, 1, 2 if not given.", min=0)] = (
        None
    )
    jobs: Annotated[
        int, Option("Runs at a time; one thread each on a processor.", min=1, max=128)
    ] = 2
    results: _Results = RESULTS


def _run(options: RunOptions) -> None:
    """Carry out all runs that are not done yet; stop and start again whenever you like.

    All rows of the first seed come first. Ctrl-C stops: the trainings save, and the same command
    goes on. Exit status 1 if some runs failed; the others are done.

    Example: nmsfree study run

    Only some: nmsfree study run --row o2m --row e2e_published --seed 0 --epochs 4
    """
    from rich.console import Console

    from nmsfree_training.study.job import is_done
    from nmsfree_training.study.rows import choose_rows
    from nmsfree_training.study.runner import StoppedError, StudyDisplay, run_study

    if not options.data.is_dir():
        raise InputError(
            f"--data is {options.data}, which is not a folder: `nmsfree data digits` makes it"
        )
    rows, seeds = choose_rows(options.row or ()), options.seed or SEEDS
    wanted = options.plan(rows, seeds, options.results)
    pending = [job for job in wanted if not is_done(job)]
    console = Console(stderr=True)
    try:
        with StudyDisplay(console, wanted, len(wanted) - len(pending), options.jobs) as display:
            failures = run_study(pending, options.jobs, display)
    except StoppedError as stopped:
        again = shlex.join(["nmsfree", *sys.argv[1:]])
        typer.echo(f"stopped, all is saved; go on with: {again}", err=True)
        raise typer.Exit(stopped.exit_status) from None
    for job, reason in failures:
        typer.echo(f"failed: {job.name}: {shown(reason)}; see {shown(job.log)}", err=True)
    done = f"{len(wanted) - len(failures)} of {len(wanted)} runs are done"
    typer.echo(f"{done}, in {options.results}: `nmsfree study table`", err=True)
    end_with([], int(bool(failures)))


@dataclass(frozen=True, kw_only=True)
class CommandOptions(JobOptions):
    """What `nmsfree study command` is asked."""

    row: Annotated[str, Option("Name of the row.", argument=True)]
    seed: Annotated[int, Option("Seed of the run.", min=0)] = 0


def _command(options: CommandOptions) -> None:
    """Print the command that one run is.

    Example: nmsfree study command e2e_published --seed 1
    """
    from nmsfree_training.study.rows import choose_rows

    (job,) = options.plan(choose_rows([options.row]), (options.seed,))
    typer.echo(job.command)


@dataclass(frozen=True, kw_only=True)
class FinishedOptions:
    """Which finished runs are shown."""

    results: Annotated[
        tuple[Path, ...] | None,
        Option("Figures of finished runs, docs/study; again for more of them."),
    ] = None
    epochs: Annotated[int | None, Option("Only runs of this length.", min=1)] = None

    def read(self, outputs: Sequence[str | Path | None]) -> "list[Result]":
        """Their results, once it is sure that no output replaces one."""
        from nmsfree_training.study.results import of_one_length, once, read_results

        folders = self.results or (RESULTS,)
        check_outputs(outputs, [file for folder in folders for file in folder.glob("*.json")])
        found = [result for folder in folders for result in read_results(folder)]
        return once(of_one_length(found, self.epochs, folders[0]))


@dataclass(frozen=True, kw_only=True)
class TableOptions(FinishedOptions):
    """What `nmsfree study table` is asked."""

    markdown: Annotated[Path | None, Option("Also write Markdown.", metavar="FILE")] = None
    json_file: Annotated[str | None, json_option('Also write JSON, AP 0–1; "-" is stdout.')] = None


def _table(options: TableOptions) -> None:
    """Show mean ± deviation of every row over its seeds, and the difference to NMS.

    Example: nmsfree study table --markdown docs/study.md
    """
    from rich.console import Console

    from nmsfree_training.study.report import markdown, print_table
    from nmsfree_training.study.results import summarize

    rows = summarize(options.read([options.markdown, options.json_file]))
    if options.json_file != "-":
        print_table(rows, Console())
    problems: list[str] = []
    if options.markdown is not None:
        with problems_in(problems):
            write_atomic(options.markdown, markdown(rows).encode())
    with problems_in(problems):
        write_json(options.json_file, [asdict(row) for row in rows])
    end_with(problems)


@dataclass(frozen=True, kw_only=True)
class PlotOptions(FinishedOptions):
    """What `nmsfree study plot` is asked."""

    out: Annotated[Path, Option("The PNG to write.")]


def _plot(options: PlotOptions) -> None:
    """Draw the AP of every row: dots are seeds, bars their means, lines what NMS reaches.

    Example: nmsfree study plot --out docs/study.png

    With older results: nmsfree study plot --epochs 16 --results docs/study
    --results docs/study/narrow-filter --out docs/study.png
    """
    from nmsfree_training.study.report import write_plot

    write_plot(options.read([options.out]), options.out)
    typer.echo(shown(options.out), err=True)


@dataclass(frozen=True, kw_only=True)
class ScenesOptions:
    """What `nmsfree study scenes` is asked."""

    with_nms: Annotated[Path, Option("Detector that needs NMS.", argument=True)]
    without: Annotated[Path, Option("Detector that needs none.", argument=True)]
    out: Annotated[Path, Option("The .png or .jpg to write.")]
    data: _Data = DATA
    split: Annotated[str, Option("Split whose pictures are looked through.")] = "overlap"
    count: Annotated[int, Option("How many scenes.", min=1, max=1000)] = 3


def _scenes(options: ScenesOptions) -> None:
    """Draw the scenes where NMS loses most objects that the other detector finds.

    Example: nmsfree study scenes weights/fcos_rt_nano.safetensors
    weights/fcos_e2e_nano.safetensors --out scenes.png
    """
    from nmsfree.cli.progress import progress_bar
    from nmsfree_training.study.scenes import write_scenes

    out = options.out
    if out.suffix not in (".png", ".jpg"):
        raise InputError(f"--out is {out}, expected a name that ends in .png or .jpg")
    with progress_bar() as bars:
        task = bars.add_task("detecting", total=None)
        outcome = write_scenes(
            **vars(options),
            progress=lambda done, total: bars.update(task, completed=done, total=total),
        )
    typer.echo(
        f"of {outcome.objects} objects of {options.split} NMS misses {outcome.lost_with_nms}, "
        f"without it {outcome.lost_without} are missed; {outcome.only_with_nms} only with NMS, "
        f"{outcome.only_without} only without: {out}",
        err=True,
    )


@dataclass(frozen=True, kw_only=True)
class TestOptions:
    """What `nmsfree study test` is asked."""

    checkpoint: Annotated[
        tuple[Path, ...], Option("Weights; several are seeds of one recipe.", argument=True)
    ]
    against: Annotated[
        tuple[Path, ...] | None, Option("Weights to compare with; again for more seeds.")
    ] = None
    data: Annotated[
        tuple[Path, ...] | None,
        Option("Dataset folder, data/digits; again for folds: weights are of one after the other."),
    ] = None
    choose: Annotated[str, Option("Split on which NMS and score thresholds are chosen.")] = "val"
    split: Annotated[str, Option("Split on which nothing was chosen.")] = "test"
    json_file: Annotated[str | None, json_option('Also write JSON, AP 0–1; "-" is stdout.')] = None


def _test(options: TestOptions) -> None:
    """Say what weights reach on a split on which nothing was chosen, with 95 % of draws.

    Example: nmsfree study test weights/fcos_e2e_nano.safetensors
    --against weights/fcos_rt_nano.safetensors
    """
    from rich.console import Console

    from nmsfree_training.study.untouched import compare, print_comparison

    ours, theirs = options.checkpoint, options.against or ()
    check_outputs([options.json_file], [*ours, *theirs])
    found = compare(ours, theirs, options.data or (DATA,), options.choose, options.split)
    if options.json_file != "-":
        print_comparison(found, Console())
    write_json(options.json_file, found)


app = typer.Typer(no_args_is_help=True, help="Compare recipes: many short runs, then a table.")
app.command("list")(command(_list, ListOptions))
app.command("run")(command(_run, RunOptions))
app.command("command")(command(_command, CommandOptions))
app.command("table")(command(_table, TableOptions))
app.command("plot")(command(_plot, PlotOptions))
app.command("test")(command(_test, TestOptions))
app.command("scenes")(command(_scenes, ScenesOptions))


@app.callback()
def study() -> None:
    """Compare recipes: many short runs, then a table.

    A row is a recipe, a run is a row with one seed. Each run is plain `nmsfree train`.
    """
