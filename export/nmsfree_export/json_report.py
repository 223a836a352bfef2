"""Reports as JSON, for `--json FILE`."""

import json
from pathlib import Path

import typer

from nmsfree.files import write_atomic


def write_json(target: str | None, report: dict[str, object]) -> None:
    """Write a report to a file, to stdout for "-", or nowhere for None."""
    if target is None:
        return
    text = json.dumps(report, indent=2)
    if target == "-":
        typer.echo(text)
    else:
        write_atomic(Path(target), (text + "\n").encode())
