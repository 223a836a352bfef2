"""`nmsfree data`: making and checking datasets."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from nmsfree.cli.data_check import check
from nmsfree.cli.options import command
from nmsfree.cli.progress import progress_bar
from nmsfree.datasets.digits.scenes import SPLITS, write_digits, write_preview
from nmsfree.errors import InputError
from nmsfree.files import check_outputs
from nmsfree.options import Option
from nmsfree.text import shown

MOST = 1_000_000  # images of a split


@dataclass(frozen=True)
class Request:
    """What `nmsfree data digits` is asked."""

    out: Annotated[Path | None, Option("Folder to write the set to.")] = None
    train: Annotated[int, Option("Images to train on; 0 leaves it out.", min=0, max=MOST)] = 2000
    val: Annotated[int, Option("Images to validate on.", min=0, max=MOST)] = 300
    overlap: Annotated[
        int, Option("Images full of overlapping pairs of one class.", min=0, max=MOST, was="crowd")
    ] = 150
    test: Annotated[
        int, Option("Images like those of val, on which nothing is chosen.", min=0, max=MOST)
    ] = 300
    test_overlap: Annotated[
        int, Option("Images like those of overlap, the same.", min=0, max=MOST)
    ] = 150
    seed: Annotated[int, Option("Another seed gives another set.", min=0)] = 0
    preview: Annotated[Path | None, Option("Write a contact sheet with boxes to this picture.")] = (
        None
    )


def _digits(request: Request) -> None:
    """Handwritten digits on textures as a COCO-format detection set; needs no download.

    A set that is already there and complete is left as it is.

    Example: nmsfree data digits --out data/digits
    """
    out, preview = request.out, request.preview
    if out is None and preview is None:
        raise InputError("nothing to do: give --out DIR to write the set, --preview FILE to look")
    check_outputs([preview])
    if preview is not None:
        write_preview(preview, request.seed)
        typer.echo(f"preview: {shown(preview)}", err=True)
    if out is None:
        return
    counts = {split: getattr(request, split.replace("-", "_")) for split in SPLITS}
    with progress_bar() as bar:
        tasks = {
            split: bar.add_task(split, total=count) for split, count in counts.items() if count
        }
        written = write_digits(
            out,
            **counts,
            seed=request.seed,
            progress=lambda split, done, _: bar.update(tasks[split], completed=done),
        )
        for split, task in tasks.items():
            bar.update(task, completed=counts[split])
    state = f"wrote {', '.join(written)}" if written else "complete already"
    typer.echo(f"{shown(out)}: {state}", err=True)


app = typer.Typer(no_args_is_help=True, help="Make and check datasets.")
app.command("check")(check)
app.command("digits")(command(_digits, Request))


@app.callback()
def data() -> None:
    """Make and check datasets."""
