"""What a sub-command leaves behind: STAMP-KIND.json, .png and .md, and the same on the terminal."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import typer
from rich.console import Console

from nmsfree.cli.progress import progress_bar
from nmsfree.files import check_outputs, write_atomic
from nmsfree.text import in_markdown, shown
from nmsfree_benchmarks.common.run_options import Progress, RunOptions
from nmsfree_benchmarks.common.sheets import Sheet
from nmsfree_benchmarks.machine.environment import hardware
from nmsfree_benchmarks.record import file as results_file
from nmsfree_benchmarks.record.records import Results
from nmsfree_benchmarks.record.verdict import judge

MIN_WIDTH = 100  # columns; a narrower terminal wraps lines, rather than lose digits

T = TypeVar("T")


@dataclass(frozen=True)
class Publication:
    """A run in words and pictures.

    Attributes:
        title: of the report.
        results: what was measured.
        sheets: its tables.
        conclusions: what they say, one line each; none that ranks where the verdict does not.
        draw: writes the picture as PNG.
    """

    title: str
    results: Results
    sheets: Sequence[Sheet]
    conclusions: Sequence[str]
    draw: Callable[[Results, Path], None]

    def lines(self) -> list[str]:
        """Conclusions, the verdict, and what is not there."""
        results = self.results
        skipped = [f"Skipped {name}: {reason}." for name, reason in results.skipped.items()]
        return [*self.conclusions, f"Verdict: {judge(results)}.", *skipped]

    def markdown(self, picture: str) -> str:
        """The whole report; `picture` is a file beside it."""
        about = [f"- {in_markdown(line, 1000)}" for line in environment_lines(self.results)]
        tables = [line for sheet in self.sheets for line in sheet.markdown()]
        notes = [f"- {in_markdown(line, 1000)}" for line in self.lines()]
        top = [f"# {self.title}", "", *about, "", f"![{self.title}]({picture})", ""]
        return "\n".join([*top, *tables, *notes, ""])


@dataclass(frozen=True)
class Question:
    """What a sub-command asks, and how its answer is shown; `Publication` has the parts.

    Attributes:
        run: measures, with the sub-command's options.
    """

    title: str
    run: Callable[[Any, Progress], Results]
    sheets: Callable[[Results], Sequence[Sheet]]
    conclusions: Callable[[Results], Iterable[str]]
    draw: Callable[[Results, Path], None]

    def publication(self, results: Results) -> Publication:
        """Return what is to be shown of a run."""
        sheets, said = self.sheets(results), list(self.conclusions(results))
        return Publication(self.title, results, sheets, said, self.draw)


def answer(question: Question, options: RunOptions, out: Path, json_file: str | None) -> None:
    """Measure, with progress on stderr, and publish what was found.

    Raises:
        InputError: a file cannot be written, or would replace what is measured.
    """
    check_places(options, out, json_file)
    results = with_progress(lambda progress: question.run(options, progress))
    results = replace(results, settings={**results.settings, **options.settings()})
    publish(question.publication(results), out, json_file)


def check_places(options: RunOptions, out: Path, json_file: str | None) -> None:
    """Refuse outputs that cannot be or that would replace an input, before anything is measured."""
    check_outputs([json_file, out / "results.json"], options.inputs())


def write_results(json_file: str | None, results: Results) -> None:
    """Write a result file to the place that `--json` names: "-" is stdout, None none."""
    if json_file == "-":
        typer.echo(results_file.to_text(results), nl=False)
    elif json_file is not None:
        results_file.write(results, Path(json_file))


def now() -> str:
    """UTC time as a stamp, YYYYMMDDTHHMMSSZ."""
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")


def command_line(name: str, quick: bool, given: Mapping[str, Any]) -> str:
    """What repeats a run, without the paths of this machine; options that are None are left out."""
    words = [f"nmsfree bench {name}".rstrip(), *(["--quick"] if quick else [])]
    for option, value in given.items():
        if isinstance(value, bool):
            words += [f"--{option}"] if value else []
        elif isinstance(value, list | tuple):
            words += [f"--{option} {one}" for one in value]
        elif value is not None:
            words.append(
                f"--{option} {value:g}" if isinstance(value, float) else f"--{option} {value}"
            )
    return " ".join(words)


def environment_lines(results: Results) -> list[str]:
    """Processor, versions, and the command."""
    e = results.environment
    versions = ", ".join(f"{name} {number}" for name, number in e["versions"].items())
    return [
        f"{hardware(e)}, threads per engine: {e['threads']}, cores: "
        f"{e['cores']}, {e['system']}, Python {e['python']}",
        versions,
        f"{results.stamp}, `{results.command}`, {results.seconds:.0f} s",
    ]


def with_progress(run: Callable[[Progress], T]) -> T:
    """Run something that reports how far it is, and show that on stderr.

    Bars are drawn once, at the end, where that is no terminal: a line then names each step.
    """
    with progress_bar() as bar:
        tasks: dict[str, Any] = {}

        def on_progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what)
                if not bar.console.is_terminal:
                    typer.echo(f"{what} …", err=True)
            bar.update(tasks[what], completed=done, total=total)

        return run(on_progress)


def write(publication: Publication, folder: Path) -> list[Path]:
    """Write JSON, picture and Markdown; returns them.

    Raises:
        InputError: the folder cannot be written to.
    """
    results = publication.results
    data, picture, table = (
        folder / f"{results.stamp}-{results.kind}.{kind}" for kind in ("json", "png", "md")
    )
    results_file.write(results, data)
    publication.draw(results, picture)
    write_atomic(table, publication.markdown(picture.name).encode())
    return [data, picture, table]


def publish(publication: Publication, out: Path, json_file: str | None) -> None:
    """Write the files, print the tables; with `json_file` "-" stdout is for the JSON alone."""
    files = write(publication, out)
    console = Console(stderr=json_file == "-", highlight=False)
    console.width = max(console.width, MIN_WIDTH)
    for line in environment_lines(publication.results):
        console.print(shown(line, 1000), markup=False)
    for sheet in publication.sheets:
        console.print(sheet.rich())
    for line in publication.lines():
        console.print(f"• {shown(line, 1000)}", markup=False)
    console.print(f"written: {', '.join(map(shown, files))}", soft_wrap=True, markup=False)
    write_results(json_file, publication.results)
