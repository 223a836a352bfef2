"""`nmsfree doctor`: which engines run on this machine, what is missing, and a file's canary."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nmsfree.backends import open_backend
from nmsfree.backends.options import DEFAULTS, DEVICE, Options
from nmsfree.cli.options import command, json_option
from nmsfree.cli.progress import progress_bar
from nmsfree.detector import Detector
from nmsfree.doctor.report import ENGINES, Check, Report, examine
from nmsfree.doctor.system import System
from nmsfree.errors import InputError
from nmsfree.files import check_outputs, write_json
from nmsfree.options import Option
from nmsfree.text import shown


@dataclass(frozen=True)
class Request:
    """What `nmsfree doctor` is asked."""

    model: Annotated[
        Path | None,
        Option("Check this .onnx or .engine instead.", argument=True, metavar="MODEL"),
    ] = None
    device: Annotated[str | None, DEVICE] = None
    engine: Options = DEFAULTS
    json_file: Annotated[str | None, json_option('Write it as JSON; "-" is stdout.')] = None


def _doctor(request: Request) -> None:
    """Which engines run on this machine, what is missing, and the line that installs it.

    Runs a tiny model on every engine, each in a process of its own; installs nothing.

    With MODEL, runs that file's canary instead: does this engine still answer it as the file did
    when it was written?

    The exit status is 0 if at least one engine runs, or if MODEL answers the same, else 1.

    Examples:

    nmsfree doctor

    nmsfree doctor model.engine
    """
    check_outputs([request.json_file], [request.model] if request.model else [])
    if request.model is not None:
        _check_model(request.model, request)
        return
    if request.device is not None or request.engine != DEFAULTS:
        raise InputError("--device and options of engines are for a MODEL: give one")
    with progress_bar() as bar:
        task = bar.add_task("trying engines", total=len(ENGINES))
        report = examine(lambda name: bar.advance(task))
    if request.json_file != "-":
        print_report(report)
    write_json(request.json_file, report.to_json())
    if not report.healthy:
        raise typer.Exit(1)


def _check_model(model: Path, request: Request) -> None:
    """Run a file's canary, and print a line."""
    with Detector(open_backend(model, request.device, request.engine)) as detector:
        found = detector.self_check()
    if request.json_file != "-":
        typer.echo(shown(f"{model}: {found}", 500), err=not found.ok)
    write_json(request.json_file, {"file": str(model)} | found.to_json())
    if not found.ok:
        raise typer.Exit(1)


doctor = command(_doctor, Request)

COLOURS = {"runs": "bold green", "fails": "bold red", "no device": "yellow", "missing": "dim"}
WIDE = 110  # columns of a file or a pipe
GIB = 1 << 30


def print_report(report: Report) -> None:
    """Print the machine, the engines, and what can be done; lines to copy are never wrapped."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDE)
    console.print(_machine(report.system))
    console.print(_engines(report.checks))
    failed = [(c.engine, c.detail, COLOURS["fails"]) for c in report.checks if c.state == "fails"]
    install = [(c.engine, line, COLOURS["missing"]) for c in report.checks for line in c.install]
    conflicts = [("conflict", line, "bold yellow") for line in report.conflicts]
    for subject, line, style in (*failed, *install, *conflicts):
        console.print(Text.assemble((subject, style), ": ", line), soft_wrap=True)
    running = sum(c.state == "runs" and c.runs_models for c in report.checks)
    engines = sum(check.runs_models for check in report.checks)
    said = Text(f"{running} of {engines} engines run") if running else None
    console.print(said or Text("no engine runs", style="bold red"))


def _machine(system: System) -> Table:
    table = Table.grid(padding=(0, 2))
    bf16 = {True: ", bf16", False: ", no bf16", None: ""}[system.bf16]
    rows = {
        "nmsfree": f"{system.nmsfree}, Python {system.python}",
        "system": system.system,
        "processor": f"{system.processor}, {system.cores} threads{bf16}",
        "memory": "unknown" if system.memory is None else f"{system.memory / GIB:.1f} GiB",
        "GPU": _gpus(system),
    }
    for subject, text in rows.items():
        table.add_row(Text(subject, style="bold"), Text(text))
    return table


def _gpus(system: System) -> str:
    gpus = system.gpus
    if gpus.problem:
        return gpus.problem
    lines = [f"{gpu}, {gpu.memory / GIB:.1f} GiB" for gpu in gpus.found]
    driver = f"driver {system.driver}, " if system.driver else ""
    return "\n".join([*lines, f"{driver}up to CUDA {gpus.cuda}"])


def _engines(checks: tuple[Check, ...]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("engine", "version", "state"):
        table.add_column(name, no_wrap=True)
    table.add_column("what and where", overflow="fold")
    engines = False
    for check in checks:
        state = Text(check.state, style=COLOURS[check.state])
        detail = Text("" if check.state == "fails" else check.detail)
        if engines and not check.runs_models:
            table.add_section()  # what follows are libraries, and not counted below
        engines = check.runs_models
        table.add_row(Text(check.engine), Text(check.version or "–"), state, detail)
    return table
