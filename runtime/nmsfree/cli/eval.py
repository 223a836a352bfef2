"""`nmsfree eval`: what a model file finds, and how to use it."""

import time
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from nmsfree.backends import open_backend
from nmsfree.backends.options import DEFAULTS, DEVICE, Options
from nmsfree.cli.options import SIZE, command, end_with, json_option
from nmsfree.cli.progress import progress_bar
from nmsfree.datasets.dataset import DetectionDataset
from nmsfree.datasets.formats.folder import load_dataset
from nmsfree.detector import Detector
from nmsfree.errors import InputError, MissingExtraError
from nmsfree.evaluation.analysis import Analysis, analyse, folder_name
from nmsfree.evaluation.evaluate import count_overlapping, predict
from nmsfree.evaluation.plots import write_plots
from nmsfree.evaluation.report import markdown, print_report
from nmsfree.evaluation.scores import Result, import_coco
from nmsfree.files import check_outputs, problems_in, write_atomic, write_json
from nmsfree.machine import sha256
from nmsfree.options import Option
from nmsfree.plotting import import_figure
from nmsfree.spec import TARGET_PRECISION, ModelSpec
from nmsfree.text import shown
from nmsfree.tiles import WHOLE, Tiling

PROTOCOLS = ("deployed", "published")
RUNS = Path("runs/eval")
SUMMARIES = ("summary.json", "summary.md")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `nmsfree eval` is asked."""

    file: Annotated[Path, Option("Model: an .onnx, an .engine or a checkpoint.", argument=True)]
    data: Annotated[Path, Option("Folder of a COCO, YOLO or VOC dataset.")]
    split: Annotated[str, Option("Split to measure on.")] = "val"
    protocol: Annotated[
        str,
        Option(
            "deployed: the model's fixed input. published: the authors' evaluation, "
            "inputs of varying size; checkpoints only."
        ),
    ] = "deployed"
    tiling: Tiling = WHOLE
    size: Annotated[tuple[int, int] | None, SIZE] = None
    device: Annotated[str | None, DEVICE] = None
    engine: Options = DEFAULTS
    target_precision: Annotated[
        float,
        Option("Recommend thresholds that reach this precision.", ("--precision",), min=0, max=1),
    ] = TARGET_PRECISION
    all_classes: Annotated[
        bool, Option("List every class, not the worst 20 only.", ("--all-classes",))
    ] = False
    plots: Annotated[
        Path | None,
        Option(
            "Pictures and a summary go here; if not given, to "
            "runs/eval/FOLDER-FILE-SUFFIX-DATA-SPLIT, as in runs/eval/run-best-onnx-digits-val.",
            metavar="DIR",
        ),
    ] = None
    no_plots: Annotated[bool, Option("Write no pictures and no summary.", ("--no-plots",))] = False
    json_file: Annotated[str | None, json_option('Write the figures as JSON; "-" is stdout.')] = (
        None
    )

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise InputError(f"protocol is {self.protocol!r}, expected {' or '.join(PROTOCOLS)}")
        one_size = {".onnx": "an ONNX file", ".engine": "an engine"}.get(self.file.suffix.lower())
        if self.protocol == "published" and one_size is not None:
            raise InputError(
                f"{self.file}: {one_size} has one input size, the published protocol feeds every "
                "image at its own: give the checkpoint, or use --protocol deployed"
            )
        if self.protocol == "published" and (self.tiling.tile, self.size) != (None, None):
            raise InputError(
                "--tile and --size are for one input size, the published protocol feeds every image"
                " at its own: leave them out"
            )
        if self.plots is not None and self.no_plots:
            raise InputError("--plots and --no-plots exclude one another: give one of them")


def _eval(request: Request) -> None:
    """COCO metrics, duplicates, calibration and the thresholds to use, of one model file.

    The file of --json also hands the thresholds to `nmsfree export --thresholds`.

    Example: nmsfree eval model.onnx --data data/digits --split val
    """
    import_coco()  # what is not installed is told before the work
    if not request.no_plots:
        import_figure()
    dataset = load_dataset(request.data, request.split)
    named = request.plots or RUNS / run_name(request, folder_name(dataset))
    folder = None if request.no_plots else named
    summaries = [folder / name for name in SUMMARIES] if folder else []
    check_outputs([request.json_file, *summaries], [request.file, *dataset.files()])
    start = time.perf_counter()
    spec, results = _run(request, dataset)
    tiled = request.tiling.tile is not None
    analysis = analyse(
        dataset,
        results,
        spec,
        target_precision=request.target_precision,
        capped=request.protocol == "deployed" and not tiled,
        tiled=tiled,
    )
    longer = None
    if spec.nms is not None and spec.nms.steps is not None:
        longer = count_overlapping(results, spec.nms)
        typer.echo(
            f"NMS in {spec.nms.steps} steps: chains of overlaps may be longer in {longer} images",
            err=True,
        )
    report = {
        "file": str(request.file),
        "sha256": sha256(request.file),
        "model": spec.name,
        "head": spec.head,
        "data": str(dataset.annotation_file),
        "split": dataset.name,
        "protocol": request.protocol,
        "size": [spec.height, spec.width] if request.protocol == "deployed" else None,
        **vars(request.tiling),
        "longer_chains": longer,
        "seconds": round(time.perf_counter() - start, 3),
        **analysis.to_json(),
    }
    title = _title(request, analysis)
    problems: list[str] = []
    try:
        if folder is not None:
            with problems_in(problems):
                pictures = [path.name for path in write_plots(analysis, folder)]
                write_atomic(folder / "summary.md", markdown(analysis, title, pictures).encode())
                write_json(folder / "summary.json", report)
                typer.echo(f"pictures and summary: {shown(folder)}", err=True)
        with problems_in(problems):
            write_json(request.json_file, report)
    finally:  # whatever became of the files; and last: a pager that closes early takes nothing away
        if request.json_file != "-":
            print_report(analysis, title, Console(), request.all_classes)
    end_with(problems)


eval_command = command(_eval, Request)


def _title(request: Request, analysis: Analysis) -> str:
    what = "" if request.protocol == "deployed" else f", {request.protocol} protocol"
    if request.tiling.tile is not None:
        what = f", tiles of {request.tiling.tile} pixels"
    counts = f"{analysis.images} images, {analysis.objects} objects"
    return f"{request.file.name} on {analysis.split}{what}: {counts}"


def _run(request: Request, dataset: DetectionDataset) -> tuple[ModelSpec, list[Result]]:
    """Run the model over the dataset, with a progress bar."""
    with progress_bar() as bar:
        task = bar.add_task(f"{request.file.name} on {dataset.name}", total=len(dataset))

        def advance(done: int, _: int) -> None:
            bar.update(task, completed=done)

        if request.protocol == "deployed":
            backend = open_backend(request.file, request.device, request.engine)
            with Detector(backend, size=request.size) as detector:
                typer.echo(f"engine: {detector.backend.describe()}", err=True)
                return detector.spec, predict(detector, dataset, advance, request.tiling)
        request.engine.check("the published protocol", "threads")
        found = entry_points(group="nmsfree.backends", name="published")
        if not found:
            raise MissingExtraError("the published protocol", "nmsfree-training")
        predict_published = next(iter(found)).load()
        outcome: tuple[ModelSpec, list[Result]] = predict_published(
            request.file,
            dataset,
            device=request.device or "cpu",
            threads=request.engine.threads,
            progress=advance,
        )
        return outcome


def run_name(request: Request, data: str) -> str:
    """FOLDER-FILE-SUFFIX-DATA-SPLIT, and the protocol if it is not the deployed one, and tiles.

    The folder belongs to it because every training calls its file `best.safetensors`.
    """
    file = request.file
    parts = [file.resolve().parent.name, file.stem, file.suffix.lstrip("."), data, request.split]
    if request.protocol != "deployed":
        parts.append(request.protocol)
    if request.tiling.tile is not None:
        parts.append(f"tile{request.tiling.tile}")
    return "-".join(part for part in parts if part)
