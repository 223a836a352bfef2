"""`nmsfree doctor`: which engines run on this machine, and what is missing."""

import json
from pathlib import Path
from typing import Annotated

import typer

from nmsfree.files import write_atomic


def doctor(
    json_file: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE", help='Write it as JSON; "-" is stdout.'),
    ] = None,
) -> None:
    """Which engines run on this machine, what is missing, and the line that installs it.

    Runs a tiny model on every engine, each in a process of its own; installs nothing.

    The exit status is 0 if at least one engine runs, else 1.
    """
    from nmsfree.doctor import ENGINES, examine
    from nmsfree.doctor_print import print_report
    from nmsfree.progress import progress_bar

    with progress_bar() as bar:
        task = bar.add_task("trying engines", total=len(ENGINES))
        report = examine(lambda name: bar.advance(task))
    if json_file is not None:
        _write_json(json_file, report.to_json())
    if json_file != "-":
        print_report(report)
    if not report.healthy:
        raise typer.Exit(1)


def _write_json(target: str, report: dict[str, object]) -> None:
    text = json.dumps(report, indent=2, ensure_ascii=False)
    if target == "-":
        typer.echo(text)
        return
    write_atomic(Path(target), (text + "\n").encode())
