"""`nmsfree data`: making and checking datasets."""

from pathlib import Path
from typing import Annotated

import typer

from nmsfree.cli.data_check import check
from nmsfree.errors import InputError
from nmsfree.files import check_outputs
from nmsfree.text import shown

MOST = 1_000_000  # images of a split

app = typer.Typer(no_args_is_help=True, help="Make and check datasets.")


app.command()(check)


@app.callback()
def data() -> None:
    """Make and check datasets."""


@app.command()
def digits(
    out: Annotated[Path | None, typer.Option(help="Folder to write the set to.")] = None,
    train: Annotated[
        int, typer.Option(min=0, max=MOST, help="Images to train on; 0 leaves it out.")
    ] = 2000,
    val: Annotated[int, typer.Option(min=0, max=MOST, help="Images to validate on.")] = 300,
    crowd: Annotated[
        int, typer.Option(min=0, max=MOST, help="Images full of overlapping pairs of one class.")
    ] = 150,
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives another set.")] = 0,
    preview: Annotated[
        Path | None, typer.Option(help="Write a contact sheet with boxes to this picture.")
    ] = None,
) -> None:
    """Handwritten digits on textures as a COCO-format detection set; needs no download.

    A set that is already there and complete is left as it is.

    Example: nmsfree data digits --out data/digits
    """
    if out is None and preview is None:
        raise InputError("nothing to do: give --out DIR to write the set, --preview FILE to look")
    check_outputs([preview])
    if preview is not None:
        from nmsfree.datasets.digits.scenes import write_preview

        write_preview(preview, seed)
        typer.echo(f"preview: {shown(preview)}", err=True)
    if out is not None:
        _write(out, {"train": train, "val": val, "crowd": crowd}, seed)


def _write(out: Path, counts: dict[str, int], seed: int) -> None:
    from nmsfree.cli.progress import progress_bar
    from nmsfree.datasets.digits.scenes import write_digits

    with progress_bar() as bar:
        tasks = {
            split: bar.add_task(split, total=count) for split, count in counts.items() if count
        }
        written = write_digits(
            out,
            **counts,
            seed=seed,
            progress=lambda split, done, _: bar.update(tasks[split], completed=done),
        )
        for split, task in tasks.items():
            bar.update(task, completed=counts[split])
    state = f"wrote {', '.join(written)}" if written else "complete already"
    typer.echo(f"{shown(out)}: {state}", err=True)
