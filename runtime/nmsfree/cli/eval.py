"""`nmsfree eval`: what a model file finds, and how to use it."""

import time
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nmsfree.backends.options import Options
from nmsfree.cli.options import (
    AllowCpuOption,
    DeviceOption,
    PrecisionOption,
    RebuildOption,
    Tf32Option,
    ThreadsOption,
    TrustOption,
)
from nmsfree.errors import InputError, MissingExtraError
from nmsfree.files import check_outputs, problems_in, write_atomic, write_json
from nmsfree.machine import sha256
from nmsfree.text import shown

if TYPE_CHECKING:
    from nmsfree.datasets.dataset import DetectionDataset
    from nmsfree.evaluation.analysis import Analysis
    from nmsfree.evaluation.evaluate import Progress, Result
    from nmsfree.spec import ModelSpec

PROTOCOLS = ("deployed", "published")
RUNS = Path("runs/eval")
SUMMARIES = ("summary.json", "summary.md")


def eval_command(
    file: Annotated[Path, typer.Argument(help="Model: an .onnx, an .engine or a checkpoint.")],
    data: Annotated[Path, typer.Option(help="Folder of a COCO, YOLO or VOC dataset.")],
    split: Annotated[str, typer.Option(help="Split to measure on.")] = "val",
    protocol: Annotated[
        str,
        typer.Option(
            help="deployed: the model's fixed input. published: the authors' evaluation, "
            "inputs of varying size; checkpoints only."
        ),
    ] = "deployed",
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    allow_cpu: AllowCpuOption = False,
    tf32: Tf32Option = False,
    engine_precision: PrecisionOption = None,
    rebuild: RebuildOption = True,
    trust: TrustOption = False,
    precision: Annotated[
        float, typer.Option(min=0, max=1, help="Recommend thresholds that reach this precision.")
    ] = 0.9,
    all_classes: Annotated[
        bool, typer.Option("--all-classes", help="List every class, not the worst 20 only.")
    ] = False,
    plots: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Pictures and a summary go here; if not given, to "
            "runs/eval/FOLDER-FILE-SUFFIX-DATA-SPLIT, as in runs/eval/run-best-onnx-digits-val.",
        ),
    ] = None,
    no_plots: Annotated[
        bool, typer.Option("--no-plots", help="Write no pictures and no summary.")
    ] = False,
    json_file: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE", help='Write the figures as JSON; "-" is stdout.'),
    ] = None,
) -> None:
    """COCO metrics, duplicates, calibration and the thresholds to use, of one model file.

    The file of --json also hands the thresholds to `nmsfree export --thresholds`.

    Example: nmsfree eval model.onnx --data data/digits --split val
    """
    from rich.console import Console

    from nmsfree.datasets.formats.folder import load_dataset
    from nmsfree.evaluation.analysis import analyse, folder_name
    from nmsfree.evaluation.plots import write_plots
    from nmsfree.evaluation.report import markdown, print_report
    from nmsfree.evaluation.scores import import_coco
    from nmsfree.plotting import import_figure

    _check_request(file, protocol, plots, no_plots)
    import_coco()  # what is not installed is told before the work
    if not no_plots:
        import_figure()
    dataset = load_dataset(data, split)
    folder = None
    if not no_plots:
        folder = plots or RUNS / _run_name(file, folder_name(dataset), split, protocol)
    summaries = [folder / name for name in SUMMARIES] if folder else []
    check_outputs([json_file, *summaries], [file, *dataset.files()])
    start = time.perf_counter()
    options = Options(threads, allow_cpu, tf32, engine_precision, rebuild, trust)
    spec, results = _run(file, dataset, protocol, device, options)
    capped = protocol == "deployed"
    analysis = analyse(dataset, results, spec, target_precision=precision, capped=capped)
    seconds = time.perf_counter() - start
    report = _report(file, dataset, protocol, analysis, seconds)
    title = _title(file, dataset, protocol, analysis)
    problems: list[str] = []
    try:
        if folder is not None:
            with problems_in(problems):
                pictures = [path.name for path in write_plots(analysis, folder)]
                write_atomic(folder / "summary.md", markdown(analysis, title, pictures).encode())
                write_json(folder / "summary.json", report)
                typer.echo(f"pictures and summary: {shown(folder)}", err=True)
        with problems_in(problems):
            write_json(json_file, report)
    finally:  # whatever became of the files; and last: a pager that closes early takes nothing away
        if json_file != "-":
            print_report(analysis, title, Console(), all_classes)
    for problem in problems:
        typer.echo(f"error: {problem}", err=True)
    if problems:
        raise typer.Exit(1)


def _check_request(file: Path, protocol: str, plots: Path | None, no_plots: bool) -> None:
    if protocol not in PROTOCOLS:
        raise InputError(f"protocol is {protocol!r}, expected {' or '.join(PROTOCOLS)}")
    one_size = {".onnx": "an ONNX file", ".engine": "an engine"}.get(file.suffix.lower())
    if protocol == "published" and one_size is not None:
        raise InputError(
            f"{file}: {one_size} has one input size, the published protocol feeds every image "
            "at its own: give the checkpoint, or use --protocol deployed"
        )
    if plots is not None and no_plots:
        raise InputError("--plots and --no-plots exclude one another: give one of them")


def _run(
    file: Path,
    dataset: "DetectionDataset",
    protocol: str,
    device: str | None,
    options: Options,
) -> "tuple[ModelSpec, list[Result]]":
    """Run the model over the dataset, with a progress bar."""
    from nmsfree.backends import open_backend
    from nmsfree.cli.progress import progress_bar
    from nmsfree.detector import Detector
    from nmsfree.evaluation.evaluate import predict

    with progress_bar() as bar:
        task = bar.add_task(f"{file.name} on {dataset.name}", total=len(dataset))

        def advance(done: int, _: int) -> None:
            bar.update(task, completed=done)

        if protocol == "published":
            options.check("the published protocol", "threads")
            return _predict_published(file, dataset, device or "cpu", options.threads, advance)
        with Detector(open_backend(file, device, options)) as detector:
            typer.echo(f"engine: {detector.backend.description}", err=True)
            return detector.spec, predict(detector, dataset, advance)


def _predict_published(
    file: Path,
    dataset: "DetectionDataset",
    device: str,
    threads: int | None,
    progress: "Progress",
) -> "tuple[ModelSpec, list[Result]]":
    found = entry_points(group="nmsfree.backends", name="published")
    if not found:
        raise MissingExtraError("the published protocol", "nmsfree-training")
    predict_published = next(iter(found)).load()
    outcome: tuple[ModelSpec, list[Result]] = predict_published(
        file, dataset, device=device, threads=threads, progress=progress
    )
    return outcome


def _report(
    file: Path, dataset: "DetectionDataset", protocol: str, analysis: "Analysis", seconds: float
) -> dict[str, Any]:
    return {
        "file": str(file),
        "sha256": sha256(file),
        "model": analysis.spec.name,
        "head": analysis.spec.head,
        "data": str(dataset.annotation_file),
        "split": dataset.name,
        "protocol": protocol,
        "seconds": round(seconds, 3),
        **analysis.to_json(),
    }


def _title(file: Path, dataset: "DetectionDataset", protocol: str, analysis: "Analysis") -> str:
    what = "" if protocol == "deployed" else f", {protocol} protocol"
    counts = f"{analysis.images} images, {analysis.objects} objects"
    return f"{file.name} on {dataset.name}{what}: {counts}"


def _run_name(file: Path, data: str, split: str, protocol: str) -> str:
    """FOLDER-FILE-SUFFIX-DATA-SPLIT, and the protocol if it is not the deployed one.

    The folder belongs to it because every training calls its file `best.safetensors`.
    """
    parts = [file.resolve().parent.name, file.stem, file.suffix.lstrip("."), data, split]
    if protocol != "deployed":
        parts.append(protocol)
    return "-".join(part for part in parts if part)
