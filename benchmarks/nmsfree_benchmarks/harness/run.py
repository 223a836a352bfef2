"""A run of a question: its options, what every run begins with, and what it leaves behind."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import cv2
import typer
from rich.console import Console

from nmsfree.cli.progress import progress_bar
from nmsfree.datasets.formats.coco import DetectionDataset
from nmsfree.errors import GateError, NmsfreeError
from nmsfree.files import check_outputs, write_atomic
from nmsfree.options import Option, options_of
from nmsfree.text import in_markdown, shown
from nmsfree_benchmarks.harness import pictures
from nmsfree_benchmarks.harness.engines import CPU, on_gpu, use_device, watch_gpu
from nmsfree_benchmarks.harness.machine import LoadMeter, available_cores, describe, hardware
from nmsfree_benchmarks.harness.records import Ratio, Record, Results, State
from nmsfree_benchmarks.harness.subject import Subject
from nmsfree_benchmarks.harness.table import Table
from nmsfree_benchmarks.harness.timer import Call, Image, Plan, Progress, Rounds, take_turns

MIN_WIDTH = 100  # columns; a narrower terminal wraps lines, rather than lose digits
Tell = Callable[[str, int, int], None]  # what, done, in all
T = TypeVar("T")
Models = Annotated[
    tuple[str, ...] | None, Option("Only this model; may be given again.", flags=("--model",))
]
OnDevice = Annotated[str, Option("Where the models run: cpu, openvino, cuda, tensorrt-rtx.")]
Large = Annotated[bool, Option("The published 512 × 736 network as well.", flags=("--large",))]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What every question is asked with; a question adds what it varies."""

    quick: Annotated[bool, Option("About a minute: for a first look.", flags=("--quick",))] = False
    threads: Annotated[
        int | None, Option("Of every engine; the physical cores if not given.", min=1, max=1024)
    ] = None
    weights: Annotated[Path, Option("Folder of trained checkpoints.")] = Path("weights")
    data: Annotated[Path, Option("Digits set; missing splits are made in --work.")] = Path(
        "data/digits"
    )
    work: Annotated[Path, Option("Where ONNX files and missing digits are made.")] = Path(
        "runs/bench"
    )
    out: Annotated[Path, Option("Where JSON, picture and Markdown are written.")] = Path(
        "runs/bench"
    )
    seconds: Annotated[float | None, Option("Time for the timed rounds.", min=0, max=86400)] = None
    pause: Annotated[
        float | None,
        Option("Idle gap before each turn; some ms if not given.", min=0, max=60_000, metavar="MS"),
    ] = None
    json_file: Annotated[
        str | None,
        Option('Write the JSON here too; "-" is stdout.', flags=("--json",), metavar="FILE"),
    ] = None
    device: str = CPU

    @property
    def cores(self) -> int:
        """Processor threads of every engine."""
        return self.threads or available_cores()

    def timed(self, plan: Plan) -> Plan:
        """The plan with the time and the idle gap that were asked for."""
        if self.pause is not None:
            plan = replace(plan, pause=self.pause / 1000)
        return plan if self.seconds is None else replace(plan, seconds=self.seconds)

    def inputs(self) -> Iterator[Path]:
        """Every file that is read: weights and pictures."""
        for folder in (self.weights, self.data):
            yield from folder.rglob("*")

    def settings(self) -> dict[str, Any]:
        """What result files say of a run that was not made in the usual way."""
        found: dict[str, Any] = {} if self.pause is None else {"pause_ms": self.pause}
        return found if self.device == CPU else found | {"device": self.device}


def command_line(name: str, options: RunOptions) -> str:
    """What repeats a run, without the paths of this machine."""
    words = [f"nmsfree bench {name}".rstrip()]
    usual = {one.name: one.default for one in fields(options)}
    for one, _, option in options_of(type(options)):
        value = getattr(options, one.name)
        if option is None or value == usual[one.name] or one.name == "json_file":
            continue
        flag = next(iter(option.flags), f"--{one.name.replace('_', '-')}")
        for each in value if isinstance(value, tuple) else (value,):
            if isinstance(each, bool):
                words.append(flag)
            elif isinstance(value, tuple) or not isinstance(each, Path):
                text = each.name if isinstance(each, Path) else each
                words.append(f"{flag} {text:g}" if isinstance(text, float) else f"{flag} {text}")
    return " ".join(words)


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
    """What every run begins with: device, threads, environment, data, exports, progress, load.

    Attributes:
        skipped: what is not there → why.
        settings: of the result file.
        gpu: looks at the GPU after each round.
        stack: closes what was opened.
    """

    def __init__(self, options: RunOptions, tell: Tell, stack: ExitStack) -> None:
        import torch

        self.options, self._tell, self.stack = options, tell, stack
        self.started, self.stamp = time.monotonic(), f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
        torch.set_num_threads(options.cores)
        cv2.setNumThreads(options.cores)
        self.environment = describe(options.cores, options.device)
        self.gpu = watch_gpu(options.device)
        self.skipped: dict[str, str] = {}
        self.settings: dict[str, Any] = {}
        self._loads: list[float] = []

    def step(self, what: str) -> Progress:
        """The progress of one step."""
        return lambda done, total: self._tell(what, done, total)

    def digits_val(self) -> DetectionDataset:
        return pictures.digits_val(self.options.data, self.options.work, self.step("digits val"))

    def export(self, subjects: Sequence[Subject], what: str = "export") -> list[Subject]:
        """Export the files of subjects; returns those that have one, the others are skipped."""
        from nmsfree_benchmarks.harness.exports import export_all

        calibration = None
        if any(subject.target for subject in subjects):
            step = self.step("digits train")
            calibration = pictures.digits(self.options.data, self.options.work, "train", step)
        refused = export_all(subjects, self.options.work, calibration, self.step(what))
        self.skipped |= refused
        return [subject for subject in subjects if subject.file_name not in refused]

    def export_whole(self, subjects: Sequence[Subject], what: str = "export") -> None:
        """Export the files of subjects.

        Raises:
            GateError: one could not be made.
        """
        made = self.export(subjects, what)
        if len(made) < len(subjects):
            raise GateError("; ".join(self.skipped[s.file_name] for s in subjects if s not in made))

    def open(self, subject: Subject, name: str) -> bool:
        """Open a subject; one that its engine refuses is skipped by this name, with the reason."""
        try:
            subject.open(self.stack)
        except NmsfreeError as error:
            self.skipped[name] = str(error).replace(str(subject.file), subject.file.name)
            return False
        return True

    def time(
        self, calls: Mapping[str, Call], images: Sequence[Image], plan: Plan, what: str = "rounds"
    ) -> Rounds:
        """Let calls take turns, while the load and the GPU are watched."""
        step = self.step(what)

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
        made = [
            Record(
                case.name,
                case.parameters,
                rounds[case.name],
                case.parts,
                {**case.figures, **rounds.figures(case.name)},
                case.state,
            )
            for case in cases
        ]
        return made, rounds.burst

    def results(self, kind: str, command: str, records: Iterable[Record]) -> Results:
        return Results(
            kind,
            self.stamp,
            command,
            self.options.quick,
            self.environment | self.gpu.to_json(),
            tuple(records),
            max(self._loads, default=None),
            self.settings | self.options.settings(),
            skipped=self.skipped,
            seconds=time.monotonic() - self.started,
        )


@dataclass(frozen=True)
class Question:
    """What a sub-command asks, and how its answer is shown.

    Attributes:
        kind, name: of result files, and of the sub-command.
        title, short, asks: of its report; of its section on the page, and the question there.
        measure: times everything; returns the records and tells the run what else there is.
        ratios, facts: read from the records, and from these and the ratios.
        tables: what to show.
        conclusions, notes: what the tables say, and what their numbers mean, a line each.
        draw: writes the picture as PNG.
        pictures: drawn anew for the page; None takes the PNG.
        tries_device: make sure that the device works before anything is made for it.
    """

    kind: str
    title: str
    short: str
    asks: str
    measure: Callable[[Any, Run], Iterable[Record]]
    ratios: Callable[[Results], Iterable[Ratio]]
    facts: Callable[[Results], Mapping[str, Any]]
    tables: Callable[[Results], Sequence[Table]]
    conclusions: Callable[[Results], Iterable[str]]
    notes: Callable[[Results], Iterable[str]]
    draw: Callable[[Results, Path], None]
    pictures: Callable[[Results], list[Any]] | None = None
    tries_device: bool = True

    @property
    def name(self) -> str:
        return "" if self.kind == "table" else self.kind

    def ask(self, options: RunOptions, tell: Tell = lambda what, done, total: None) -> Results:
        """Measure, and read from the times what they say."""
        with ExitStack() as stack:
            run = Run(options, tell, stack)
            records = self.measure(options, run)
            results = run.results(self.kind, command_line(self.name, options), records)
        results = replace(results, ratios=tuple(self.ratios(results)))
        return replace(results, facts=dict(self.facts(results)))

    def lines(self, results: Results) -> list[str]:
        """Conclusions, the verdict, what the numbers mean, and what is not there."""
        skipped = [f"Skipped {name}: {reason}." for name, reason in results.skipped.items()]
        verdict = f"Verdict: {results.verdict_text()}."
        return [*self.conclusions(results), verdict, *self.notes(results), *skipped]

    def markdown(self, results: Results, picture: str) -> str:
        """The whole report; `picture` is a file beside it."""
        about = [f"- {in_markdown(line, 1000)}" for line in environment_lines(results)]
        tables = [line for table in self.tables(results) for line in table.markdown()]
        notes = [f"- {in_markdown(line, 1000)}" for line in self.lines(results)]
        top = [f"# {self.title}", "", *about, "", f"![{self.title}]({picture})", ""]
        return "\n".join([*top, *tables, *notes, ""])

    def write(self, results: Results, folder: Path) -> list[Path]:
        """Write JSON, picture and Markdown; returns them.

        Raises:
            InputError: the folder cannot be written to.
        """
        stem = f"{results.stamp}-{results.kind}" if self.name else results.stamp
        data, picture, text = (folder / f"{stem}.{kind}" for kind in ("json", "png", "md"))
        results.write(data)
        self.draw(results, picture)
        write_atomic(text, self.markdown(results, picture.name).encode())
        return [data, picture, text]


def answer(question: Question, options: RunOptions) -> None:
    """Measure, with progress on stderr, and publish what was found: files, tables, sentences.

    With `--json -` stdout is for the JSON alone.

    Raises:
        InputError: a file cannot be written, or would replace what is measured.
    """
    if question.tries_device:
        options = replace(options, device=use_device(options.device))
    check_outputs([options.json_file, options.out / "results.json"], options.inputs())
    results = with_progress(lambda tell: question.ask(options, tell))
    files = question.write(results, options.out)
    console = console_for(options.json_file)
    for line in environment_lines(results):
        console.print(shown(line, 1000), markup=False)
    for table in question.tables(results):
        console.print(table.rich())
    for line in question.lines(results):
        console.print(f"• {shown(line, 1000)}", markup=False)
    console.print(f"written: {', '.join(map(shown, files))}", soft_wrap=True, markup=False)
    if options.json_file == "-":
        typer.echo(results.to_text(), nl=False)
    elif options.json_file is not None:
        results.write(Path(options.json_file))


def console_for(json_file: str | None) -> Console:
    """A console, wide enough for the tables; stdout is for the JSON where that goes to "-"."""
    console = Console(stderr=json_file == "-", highlight=False)
    console.width = max(console.width, MIN_WIDTH)
    return console


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


def with_progress(run: Callable[[Tell], T]) -> T:
    """Run something that reports how far it is, and show that on stderr.

    Bars are drawn once, at the end, where that is no terminal: a line then names each step.
    """
    with progress_bar() as bar:
        tasks: dict[str, Any] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what)
                if not bar.console.is_terminal:
                    typer.echo(f"{what} …", err=True)
            bar.update(tasks[what], completed=done, total=total)

        return run(tell)
