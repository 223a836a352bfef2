"""`nmsfree weights`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nmsfree.errors import NmsfreeError
from nmsfree.text import shown

if TYPE_CHECKING:
    from nmsfree_training.weights.manifest import PublishedWeight, Status

app = typer.Typer(no_args_is_help=True, help="List and download published weights.")

ManifestOption = Annotated[Path, typer.Option("--manifest", help="List of all weights.")]
MANIFEST = Path("weights/manifest.toml")


@app.callback()
def weights() -> None:
    """List and download published weights."""


@app.command("list")
def list_weights(
    manifest: ManifestOption = MANIFEST,
    json_file: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE", help='Write the list as JSON; "-" is stdout.'),
    ] = None,
) -> None:
    """Show all weights, where they are and whether their bytes are the right ones.

    Example: nmsfree weights list
    """
    from nmsfree.files import check_outputs, write_json
    from nmsfree_training.weights.manifest import load_manifest, statuses

    weights = load_manifest(manifest)
    check_outputs([json_file], [manifest, *weights.files()])
    found = statuses(weights)
    if json_file != "-":
        _print_table(found)
    write_json(json_file, [asdict(status) | {"file": str(status.file)} for status in found])


def _print_table(found: "list[Status]") -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("name", "AP", "file", "size", "SHA-256"):
        table.add_column(name, overflow="fold", no_wrap=name == "name")
    for status in found:
        table.add_row(
            Text(shown(status.name)),
            ", ".join(f"{value * 100:.1f} {split}" for split, value in status.ap.items()) or "–",
            Text(shown(status.file.name)),
            "missing" if status.size is None else f"{status.size / 1e6:.1f} MB",
            status.sha or "–",
        )
    Console().print(table)


@app.command()
def download(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Which; all by default.")
    ] = None,
    manifest: ManifestOption = MANIFEST,
    allow_http: Annotated[
        bool,
        typer.Option("--allow-http", help="Also without encryption: bytes can be changed."),
    ] = False,
) -> None:
    """Download published weights into published/ beside the manifest.

    Interrupted downloads go on where they stopped. A file is compared with the SHA-256 in the
    manifest; where there is none, it is loaded as a check, and its SHA-256 is recorded at the
    first download and compared from then on. Exit status 1 if some could not be had; the others
    are there.

    Example: nmsfree weights download fcos_e2e_r18_3x
    """
    from nmsfree_training.weights.manifest import load_manifest

    chosen = load_manifest(manifest)
    failed = 0
    for weight in chosen.choose(names or []):
        try:
            _download_one(weight, chosen.downloads, allow_http)
        except (NmsfreeError, OSError) as error:
            typer.echo(f"error: {shown(weight.name)}: {shown(error)}", err=True)
            failed += 1
    if failed:
        raise typer.Exit(1)


def _download_one(weight: "PublishedWeight", folder: Path, allow_http: bool) -> None:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    from nmsfree_training.weights.manifest import obtain, read_sums

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(weight.file, total=None)
        recorded = read_sums(folder).get(weight.file)
        downloaded = obtain(
            weight,
            folder,
            lambda done, total: bar.update(task, completed=done, total=total),
            allow_http=allow_http,
        )
    state = "downloaded" if downloaded else "there already"
    if weight.sha256 is not None:
        state += ", SHA-256 as in the manifest"
    elif recorded is not None:
        state += ", SHA-256 as at the first download"
    else:
        state += ", loads as this model; its SHA-256 was known to nobody and is recorded now"
    typer.echo(f"{shown(weight.name)}: {shown(folder / weight.file)}, {state}", err=True)


@app.command()
def card(
    file: Annotated[Path, typer.Argument(help="Checkpoint of `nmsfree train`.")],
    data: Annotated[Path, typer.Option(help="Dataset with the splits val and overlap.")],
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0, max=10_000_000, help="Training took; else from metrics.jsonl beside FILE."
        ),
    ] = None,
    machine: Annotated[
        str | None, typer.Option(help="Where it was trained; else from the checkpoint.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, max=1024, help="Processor threads.")] = None,
) -> None:
    """Measure a checkpoint on val and overlap and write its card, FILE with the suffix .json.

    Example: nmsfree weights card weights/fcos_e2e_nano.safetensors --data data/digits --minutes 23
    """
    from nmsfree.cli.progress import progress_bar
    from nmsfree.datasets.formats.folder import load_dataset
    from nmsfree.detector import Detector
    from nmsfree.evaluation.evaluate import evaluate
    from nmsfree.files import check_outputs
    from nmsfree_training.weights.card import minutes_of_run, write_card

    target = file.with_suffix(".json")
    check_outputs([target], [file])
    took = minutes_of_run(file) if minutes is None else minutes
    ap = {}
    with Detector(file, threads=threads) as detector, progress_bar() as bar:
        for dataset in [load_dataset(data, split) for split in ("val", "overlap")]:
            task = bar.add_task(f"{file.name} on {dataset.name}", total=len(dataset))
            advance = lambda done, _, task=task: bar.update(task, completed=done)  # noqa: E731
            ap[dataset.name] = evaluate(detector, dataset, progress=advance).ap
    written = write_card(file, target, ap=ap, minutes=took, machine=machine)
    scores = ", ".join(f"{split} {value * 100:.1f}" for split, value in written["AP"].items())
    typer.echo(f"{shown(target)}: AP {scores}; {written['gmac']} GMAC", err=True)
