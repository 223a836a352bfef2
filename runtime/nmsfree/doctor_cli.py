"""`nmsfree doctor`: which engines run on this machine, and what is missing."""

from typing import Annotated

import typer

from nmsfree.files import check_outputs, write_json


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

    check_outputs([json_file])
    with progress_bar() as bar:
        task = bar.add_task("trying engines", total=len(ENGINES))
        report = examine(lambda name: bar.advance(task))
    if json_file != "-":
        print_report(report)
    write_json(json_file, report.to_json())
    if not report.healthy:
        raise typer.Exit(1)
