"""`nmsfree weights`."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nmsfree.cli.options import command, end_with, json_option
from nmsfree.errors import NmsfreeError
from nmsfree.files import check_outputs, write_json
from nmsfree.options import Option
from nmsfree.text import shown

if TYPE_CHECKING:
    from nmsfree_training.weights.manifest import PublishedWeight, Status

SPLITS = ("val", "overlap")


@dataclass(frozen=True, kw_only=True)
class ManifestOptions:
    """Where the weights are listed."""

    manifest: Annotated[Path, Option("List of all weights.")] = Path("weights/manifest.toml")


@dataclass(frozen=True, kw_only=True)
class ListOptions(ManifestOptions):
    """What `nmsfree weights list` is asked."""

    json_file: Annotated[str | None, json_option('Write the list as JSON; "-" is stdout.')] = None


def _list(options: ListOptions) -> None:
    """Show all weights, where they are and whether their bytes are the right ones.

    Example: nmsfree weights list
    """
    from nmsfree_training.weights.manifest import load_manifest, statuses

    weights = load_manifest(options.manifest)
    check_outputs([options.json_file], [options.manifest, *weights.files()])
    found = statuses(weights)
    if options.json_file != "-":
        _print_table(found)
    rows = [asdict(status) | {"file": str(status.file)} for status in found]
    write_json(options.json_file, rows)


def _print_table(found: "list[Status]") -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("name", "AP", "file", "size", "SHA-256"):
        table.add_column(name, overflow="fold", no_wrap=name in ("name", "AP", "file"))
    for status in found:
        table.add_row(
            Text(shown(status.name)),
            "\n".join(f"{value * 100:.1f} {split}" for split, value in status.ap.items()) or "–",
            Text(shown(status.file.name)),
            "missing" if status.size is None else f"{status.size / 1e6:.1f} MB",
            status.sha or "–",
        )
    Console().print(table)


@dataclass(frozen=True, kw_only=True)
class DownloadOptions(ManifestOptions):
    """What `nmsfree weights download` is asked."""

    names: Annotated[
        tuple[str, ...] | None, Option("Which; all by default.", metavar="[NAME]...", argument=True)
    ] = None
    allow_http: Annotated[
        bool, Option("Also without encryption: bytes can be changed.", flags=("--allow-http",))
    ] = False


def _download(options: DownloadOptions) -> None:
    """Download published weights into published/ beside the manifest.

    Interrupted downloads go on where they stopped. A file is compared with the SHA-256 in the
    manifest; where there is none, it is loaded as a check, and its SHA-256 is recorded at the
    first download and compared from then on. Exit status 1 if some could not be had; the others
    are there.

    Example: nmsfree weights download fcos_e2e_r18_3x
    """
    from nmsfree_training.weights.manifest import load_manifest

    chosen = load_manifest(options.manifest)
    problems = 0
    for weight in chosen.choose(options.names or ()):
        try:
            state = _obtain(weight, chosen.downloads, options.allow_http)
        except (NmsfreeError, OSError) as error:
            typer.echo(f"error: {shown(weight.name)}: {shown(error)}", err=True)
            problems = 1
        else:
            file = shown(chosen.downloads / weight.file)
            typer.echo(f"{shown(weight.name)}: {file}, {state}", err=True)
    end_with([], problems)


def _obtain(weight: "PublishedWeight", folder: Path, allow_http: bool) -> str:
    """Download with a bar; returns how it went."""
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

    from nmsfree_training.weights.manifest import obtain, read_sums

    recorded = read_sums(folder).get(weight.file)
    text, line, _, left = Progress.get_default_columns()
    columns = (text, line, DownloadColumn(), TransferSpeedColumn(), left)
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(weight.file, total=None)
        downloaded = obtain(
            weight,
            folder,
            lambda done, total: bar.update(task, completed=done, total=total),
            allow_http=allow_http,
        )
    state = "downloaded" if downloaded else "there already"
    if weight.sha256 is not None:
        return f"{state}, SHA-256 as in the manifest"
    if recorded is not None:
        return f"{state}, SHA-256 as at the first download"
    return f"{state}, loads as this model; its SHA-256 was known to nobody and is recorded now"


@dataclass(frozen=True, kw_only=True)
class CardOptions:
    """What `nmsfree weights card` is asked."""

    file: Annotated[Path, Option("Checkpoint of `nmsfree train`.", argument=True)]
    data: Annotated[Path, Option("Dataset with the splits val and overlap.")]
    minutes: Annotated[
        float | None,
        Option("Training took; else from metrics.jsonl beside FILE.", min=0, max=10_000_000),
    ] = None
    machine: Annotated[str | None, Option("Where it was trained; else from the checkpoint.")] = None
    threads: Annotated[int | None, Option("Processor threads.", min=1, max=1024)] = None


def _card(options: CardOptions) -> None:
    """Measure a checkpoint on val and overlap and write its card, FILE with the suffix .json.

    Example: nmsfree weights card weights/fcos_e2e_nano.safetensors --data data/digits --minutes 23
    """
    from nmsfree.cli.progress import progress_bar
    from nmsfree.datasets.formats.folder import load_dataset
    from nmsfree.detector import Detector
    from nmsfree.evaluation.evaluate import evaluate
    from nmsfree_training.weights.card import minutes_of_run, write_card

    file, minutes = options.file, options.minutes
    target = file.with_suffix(".json")
    check_outputs([target], [file])
    if minutes is None:
        minutes = minutes_of_run(file)
    ap = {}
    with Detector(file, threads=options.threads) as detector, progress_bar() as bar:
        for dataset in [load_dataset(options.data, split) for split in SPLITS]:
            task = bar.add_task(f"{file.name} on {dataset.name}", total=len(dataset))
            advance = lambda done, _, task=task: bar.update(task, completed=done)  # noqa: E731
            ap[dataset.name] = evaluate(detector, dataset, progress=advance).ap
    written = write_card(file, target, ap=ap, minutes=minutes, machine=options.machine)
    scores = ", ".join(f"{split} {value * 100:.1f}" for split, value in written["AP"].items())
    typer.echo(f"{shown(target)}: AP {scores}; {written['gmac']} GMAC", err=True)


app = typer.Typer(no_args_is_help=True, help="List and download published weights.")
app.command("list")(command(_list, ListOptions))
app.command("download")(command(_download, DownloadOptions))
app.command("card")(command(_card, CardOptions))


@app.callback()
def weights() -> None:
    """List and download published weights."""
