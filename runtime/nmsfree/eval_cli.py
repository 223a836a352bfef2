"""`nmsfree eval`: COCO metrics of a model file."""

import hashlib
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nmsfree.atomic import write_atomic

if TYPE_CHECKING:
    from nmsfree.data.coco import DetectionDataset
    from nmsfree.evaluate import Metrics


def eval_command(
    file: Annotated[Path, typer.Argument(help="Model: an exported .onnx or a checkpoint.")],
    data: Annotated[
        Path, typer.Option(help="Dataset: DIR/annotations/instances_SPLIT.json, DIR/SPLIT/.")
    ],
    split: Annotated[str, typer.Option(help="Split to measure on.")] = "val",
    device: Annotated[str, typer.Option(help="Where the model runs.")] = "cpu",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Processor threads; the engine's choice if not given.")
    ] = None,
    json_file: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE", help='Write the metrics as JSON; "-" is stdout.'),
    ] = None,
) -> None:
    """COCO metrics of an ONNX file or a checkpoint.

    Example: nmsfree eval model.onnx --data data/digits --split val
    """
    from nmsfree.data.coco import load_coco
    from nmsfree.detector import Detector
    from nmsfree.evaluate import evaluate
    from nmsfree.progress import progress_bar

    dataset = load_coco(data, split)
    with Detector(file, device=device, threads=threads) as detector:
        start = time.perf_counter()
        with progress_bar() as bar:
            task = bar.add_task(f"{file.name} on {split}", total=len(dataset))
            metrics = evaluate(
                detector, dataset, progress=lambda done, _: bar.update(task, completed=done)
            )
        seconds = time.perf_counter() - start
    if json_file != "-":
        _print_table(file, dataset, metrics)
    if json_file is not None:
        _write_json(json_file, _report(file, dataset, metrics, seconds))


def _report(
    file: Path, dataset: "DetectionDataset", metrics: "Metrics", seconds: float
) -> dict[str, Any]:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {
        "file": str(file),
        "sha256": digest,
        "data": str(dataset.annotation_file),
        "split": dataset.name,
        "images": len(dataset),
        "seconds": round(seconds, 3),
        **metrics.to_json(),
    }


def _write_json(target: str, report: dict[str, Any]) -> None:
    text = json.dumps(report, indent=2)
    if target == "-":
        typer.echo(text)
        return
    write_atomic(Path(target), (text + "\n").encode())


def _print_table(file: Path, dataset: "DetectionDataset", metrics: "Metrics") -> None:
    from rich.console import Console
    from rich.table import Table

    values = metrics.to_json()
    table = Table(title=f"{file.name} on {dataset.name}, {len(dataset)} images, × 100")
    for name in values:
        table.add_column(name, justify="right")
    table.add_row(*("–" if value is None else f"{value * 100:.1f}" for value in values.values()))
    Console().print(table)
