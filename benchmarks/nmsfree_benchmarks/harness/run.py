"""A run of a question: what every run begins with, and what it leaves behind."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import cv2
import typer
from rich.console import Console

from nmsfree.backends.options import parse_device
from nmsfree.cli.progress import progress_bar
from nmsfree.datasets.formats.coco import DetectionDataset, load_coco
from nmsfree.datasets.formats.folder import load_dataset
from nmsfree.errors import GateError, InputError, NmsfreeError
from nmsfree.files import check_outputs, write_atomic
from nmsfree.text import in_markdown, shown
from nmsfree_benchmarks.harness.engines import Engine, engine_of, on_gpu, use_device
from nmsfree_benchmarks.harness.gpu import GpuWatch
from nmsfree_benchmarks.harness.machine import LoadMeter, describe, hardware
from nmsfree_benchmarks.harness.options import RunOptions
from nmsfree_benchmarks.harness.pictures import digits
from nmsfree_benchmarks.harness.records import Ratio, Record, Results, State
from nmsfree_benchmarks.harness.subject import Subject, subjects_of
from nmsfree_benchmarks.harness.table import Table
from nmsfree_benchmarks.harness.timer import Call, Image, Plan, Progress, Rounds, take_turns

WIDEST = 1000  # columns that a table may have
AP_IMAGES = 40  # of a quick run
Tell = Callable[[str, int, int], None]  # what, done, in all


@dataclass(frozen=True, eq=False)
class Case:
    """Something to time, and what its record says beside the times; see `Record`."""

    name: str
    call: Call
    parameters: Mapping[str, Any]
    figures: Mapping[str, Any] = field(default_factory=dict)
    parts: tuple[str, ...] = ("total",)
    state: State | None = None


class Run:
    """What every run begins with: device, threads, environment, data, exports, progress, load."""

    def __init__(self, options: RunOptions, tell: Tell, stack: ExitStack) -> None:
        import torch

        self.options, self._tell = options, tell
        self.stack = stack  # closes what was opened
        self.started, self.stamp = time.monotonic(), f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
        self._ends = math.inf  # of a quick run, unless it was told its time
        if options.quick and options.seconds is None:
            self._ends = self.started + options.quick_seconds
        torch.set_num_threads(options.cores)
        cv2.setNumThreads(options.cores)
        self.environment = describe(options.cores, options.device)
        # It looks at the GPU after each round, and at nothing on the processor.
        self.gpu = GpuWatch(on_gpu(options.device), parse_device(options.device).index)
        self.skipped: dict[str, str] = {}  # what is not there → why
        self.settings: dict[str, Any] = {}  # of the result file
        if options.files:
            self.settings["files"] = [file.stem for file in options.files]
        self._loads: list[float] = []

    @property
    def left(self) -> float:
        """Seconds that a quick run still has; others have no end."""
        return self._ends - time.monotonic()

    def hurries(self, what: str) -> bool:
        """Whether the rounds need what a quick run still has; it then has no time for `what`."""
        if self.left >= self.options.quick_seconds / 2:
            return False
        self.skipped[what] = "a quick run has no time for it here"
        return True

    def step(self, what: str) -> Progress:
        return lambda done, total: self._tell(what, done, total)

    def val(self) -> DetectionDataset:
        """The split val of the digits; for files of the user's own that of `data`, in any format.

        Where `data` is not there digits are made.
        """
        data = self.options.data
        if self.options.files and data.exists():
            return load_dataset(data, "val")
        return load_coco(digits(data, self.options.work, "val", self.step("digits val")), "val")

    def judged(self, dataset: DetectionDataset) -> DetectionDataset:
        """The images that AP is measured on."""
        return replace(
            dataset, samples=dataset.samples[: AP_IMAGES if self.options.quick else None]
        )

    def files(self, engine: Engine | None = None, threads: int | None = None) -> list[Subject]:
        """The user's own files, in the engine of the device unless another one is given."""
        o = self.options
        chosen = engine or engine_of(o.device)
        return subjects_of(o.files, chosen, threads or o.cores, o.work)

    def export(self, subjects: Sequence[Subject], what: str = "export") -> list[Subject]:
        """Export the files of subjects; returns those that have one, the others are skipped.

        A quick run may take as much longer.
        """
        from nmsfree_benchmarks.harness.exports import export_all  # brings PyTorch

        began = time.monotonic()
        calibration = None
        if any(subject.target for subject in subjects):
            step = self.step("digits train")
            calibration = digits(self.options.data, self.options.work, "train", step)
        refused = export_all(subjects, self.options.work, calibration, self.step(what))
        self._ends += time.monotonic() - began
        self.skipped |= refused
        return [subject for subject in subjects if subject.file_name not in refused]

    def export_whole(self, subjects: Sequence[Subject], what: str = "export") -> None:
        """Export the files of subjects (GateError: one could not be made)."""
        made = self.export(subjects, what)
        if len(made) < len(subjects):
            raise GateError("; ".join(self.skipped[s.file_name] for s in subjects if s not in made))

    def open(self, subject: Subject, name: str, images: Sequence[Image] = ()) -> bool:
        """Open a subject, and try it on pictures.

        One that its engine refuses, or that answers nonsense, is skipped by this name, with the
        reason.
        """
        try:
            subject.open(self.stack)
            for image in images:
                subject.detector(image, threshold=subject.floor)
        except NmsfreeError as error:
            self.skip(name, error, subject.file)
            return False
        return True

    def skip(self, name: str, error: NmsfreeError, file: Path) -> None:
        """Tell why something is not there, without the folder of its file."""
        self.skipped[name] = str(error).replace(str(file), file.name)

    def nothing(self) -> InputError:
        """The error where everything was skipped."""
        return InputError("nothing to measure: " + "; ".join(self.skipped.values()))

    def time(
        self, calls: Mapping[str, Call], images: Sequence[Image], plan: Plan, what: str = "rounds"
    ) -> Rounds:
        """Let calls take turns, while the load and the GPU are watched.

        A quick run has fewer rounds where its time is up, unless the plan has one number of them;
        they then allow no interval.
        """
        step = self.step(what)
        if plan.min_rounds < plan.max_rounds:
            plan = replace(plan, limit=max(plan.seconds, self.left))

        def after_round(done: int, total: int) -> None:
            self.gpu.look()
            step(done, total)

        step(0, plan.min_rounds)
        with LoadMeter() as meter:
            rounds = take_turns(calls, images, plan, after_round)
        self._loads += [] if meter.others is None else [meter.others]
        if on_gpu(self.options.device):
            rounds.processor = {}  # the processor only waits
        return rounds

    def records(
        self, cases: Sequence[Case], images: Sequence[Image], plan: Plan, what: str = "rounds"
    ) -> tuple[list[Record], int]:
        """Let cases take turns; returns their records, and the timed calls of a turn."""
        rounds = self.time({case.name: case.call for case in cases}, images, plan, what)
        made = []
        for case in cases:
            figures = {**case.figures, **rounds.figures(case.name)}
            times = rounds[case.name]
            made.append(Record(case.name, case.parameters, times, case.parts, figures, case.state))
        return made, rounds.burst

    def results(self, kind: str, command: str, records: Iterable[Record]) -> Results:
        found = tuple(records)  # measuring them fills the rest
        return Results(
            kind,
            self.stamp,
            command,
            self.options.quick,
            self.environment | self.gpu.to_json(),
            found,
            max(self._loads, default=None),
            self.settings | self.options.settings(),
            skipped=self.skipped,
            seconds=time.monotonic() - self.started,
        )


class Question(Protocol):
    """What a sub-command asks, and how its answer is shown: a module of `questions`.

    A module may have `page_pictures(results)`, too: drawn anew for the page in place of the PNG.
    """

    KIND: str  # of result files, and the sub-command's name
    TITLE: str  # of its report
    SHORT: str  # of its section on the page
    ASKS: str  # the question there

    def measure(self, options: Any, run: Run, /) -> Iterable[Record]:
        """Time everything; tells the run what else there is."""

    def ratios(self, results: Results, /) -> Iterable[Ratio]:
        """Read from the records."""

    def facts(self, results: Results, /) -> Mapping[str, Any]:
        """Read from the records and the ratios; ready for JSON."""

    def tables(self, results: Results, /) -> Sequence[Table]:
        """What to show."""

    def conclusions(self, results: Results, /) -> Iterable[str]:
        """What the tables say, a line each."""

    def notes(self, results: Results, /) -> Iterable[str]:
        """What their numbers mean, a line each."""

    def draw(self, results: Results, path: Path, /) -> None:
        """Write the picture as PNG."""


def sub_command(question: Question) -> str:
    return "" if question.KIND == "table" else question.KIND


def ask(
    question: Question, options: RunOptions, tell: Tell = lambda what, done, total: None
) -> Results:
    """Measure, and read from the times what they say."""
    with ExitStack() as stack:
        run = Run(options, tell, stack)
        command = options.command_line(sub_command(question))
        results = run.results(question.KIND, command, question.measure(options, run))
    results = replace(results, ratios=tuple(question.ratios(results)))
    return replace(results, facts=dict(question.facts(results)))


def lines(question: Question, results: Results) -> list[str]:
    """The verdict, the mark in the tables, conclusions, what numbers mean, what is not there."""
    said = [f"Verdict: {results.verdict_text()}."]
    doubtful = sum(not record.summary.trusted for record in results.records)
    if doubtful:
        said.append(
            f"! {doubtful} of {len(results.records)} rows distrust themselves: their interquartile "
            "range is above 10 % of the median."
        )
    skipped = (f"Skipped {name}: {reason}." for name, reason in results.skipped.items())
    return [*said, *question.conclusions(results), *question.notes(results), *skipped]


def environment_lines(results: Results) -> list[str]:
    e = results.environment
    versions = ", ".join(f"{name} {number}" for name, number in e["versions"].items())
    return [
        f"{hardware(e)}, threads per engine: {e['threads']}, cores: "
        f"{e['cores']}, {e['system']}, Python {e['python']}",
        versions,
        f"{results.stamp}, `{results.command}`, {results.seconds:.0f} s",
    ]


def markdown(question: Question, results: Results, picture: str) -> str:
    """The whole report; `picture` is a file beside it."""
    about = [f"- {in_markdown(line, 1000)}" for line in environment_lines(results)]
    tables = [line for table in question.tables(results) for line in table.markdown()]
    notes = [f"- {in_markdown(line, 1000)}" for line in lines(question, results)]
    title = question.TITLE
    top = [f"# {title}", "", *about, "", f"![{title}]({picture})", ""]
    return "\n".join([*top, *tables, *notes, ""])


def write(question: Question, results: Results, folder: Path, stem: str = "") -> list[Path]:
    """Write JSON, picture and Markdown; returns them.

    Their name is that of the question, with the time of the run, unless a stem is given.
    InputError: the folder cannot be written to.
    """
    stem = stem or "-".join(filter(None, (results.stamp, sub_command(question))))
    data, picture, text = (folder / f"{stem}.{kind}" for kind in ("json", "png", "md"))
    results.write(data)
    question.draw(results, picture)
    write_atomic(text, markdown(question, results, picture.name).encode())
    return [data, picture, text]


def answer(question: Question, options: RunOptions) -> None:
    """Measure, with progress on stderr, and publish what was found: files, tables, sentences.

    With `--json -` stdout is for the JSON alone. InputError: a file cannot be written, or would
    replace what is measured.
    """
    options.check()
    if options.tries_device:
        options = replace(options, device=use_device(options.device))
    check_outputs([options.json_file, options.out / "results.json"], options.inputs())
    results = _ask_with_progress(question, options)
    files = write(question, results, options.out)
    console = console_for(options.json_file)
    for line in environment_lines(results):
        console.print(shown(line, 1000), markup=False)
    for table in question.tables(results):
        print_table(console, table)
    for line in lines(question, results):
        console.print(f"• {shown(line, 1000)}", markup=False)
    console.print(f"written: {', '.join(map(shown, files))}", soft_wrap=True, markup=False)
    if options.json_file == "-":
        typer.echo(results.to_text(), nl=False)
    elif options.json_file is not None:
        results.write(Path(options.json_file))


def console_for(json_file: str | None) -> Console:
    """A console; stdout is for the JSON where that goes to "-"."""
    return Console(stderr=json_file == "-", highlight=False)


def print_table(console: Console, table: Table) -> None:
    """Print a table as wide as it is: a narrow terminal wraps lines, rather than lose digits."""
    width, console.width = console.width, WIDEST
    console.print(table.rich())
    console.width = width


def _ask_with_progress(question: Question, options: RunOptions) -> Results:
    """Bars on stderr; where that is no terminal they are drawn at the end, a line for a step."""
    with progress_bar() as bar:
        tasks: dict[str, Any] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what)
                if not bar.console.is_terminal:
                    typer.echo(f"{what} …", err=True)
            bar.update(tasks[what], completed=done, total=total)

        return ask(question, options, tell)
