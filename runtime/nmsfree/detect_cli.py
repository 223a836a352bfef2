"""`nmsfree detect`: draw detections on images, folders, videos or a camera."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nmsfree.decode import whole_number
from nmsfree.engine_options_cli import (
    AllowCpuOption,
    DeviceOption,
    PrecisionOption,
    RebuildOption,
    Tf32Option,
    ThreadsOption,
    TrustOption,
)
from nmsfree.errors import InputError
from nmsfree.text import shown

if TYPE_CHECKING:
    from nmsfree.detect_run import Totals
    from nmsfree.detections import Detections
    from nmsfree.detector import Threshold

RUNS = Path("runs/detect")
INTERRUPTED = 130  # exit status of a command that Ctrl-C ended


def detect(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE", help="Image files, folders, patterns, videos, a camera's index."
        ),
    ],
    model: Annotated[Path, typer.Option("--model", "-m", help="An .onnx, or an .engine.")],
    threshold: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER|per-class|precision",
            help="Keep scores above this; the model's own if not given. per-class: the best-F1 "
            "threshold of each class; precision: the lowest that reaches the target precision, "
            "both as `nmsfree eval` measured them for the file.",
        ),
    ] = None,
    classes: Annotated[
        str | None, typer.Option(metavar="A,B", help="Keep these classes, names or ids.")
    ] = None,
    max_detections: Annotated[
        int | None,
        typer.Option(min=1, max=1_000_000, help="Keep at most this many in an image, the best."),
    ] = None,
    save_dir: Annotated[
        Path | None, typer.Option(help="Where to write; a new runs/detect/N if not given.")
    ] = None,
    save: Annotated[
        bool, typer.Option("--save/--no-save", help="Write pictures and detections.jsonl.")
    ] = True,
    pictures: Annotated[
        bool, typer.Option("--pictures/--no-pictures", help="Write annotated pictures, videos.")
    ] = True,
    json_file: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE", help='Write the lines here too; "-" is stdout.'),
    ] = None,
    max_frames: Annotated[
        int | None,
        typer.Option(min=1, max=2**31 - 1, help="Stop each video or camera after this many."),
    ] = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    allow_cpu: AllowCpuOption = False,
    tf32: Tf32Option = False,
    engine_precision: PrecisionOption = None,
    rebuild: RebuildOption = True,
    trust: TrustOption = False,
) -> None:
    """Draw detections on images, folders, videos or a camera.

    Writes annotated pictures (small ones enlarged) and detections.jsonl, a line per object.

    Inputs that cannot be read are named at the end; the exit status is 1 then.

    Ctrl-C ends a camera, or anything else, and keeps what is done.

    Example: nmsfree detect street.jpg holiday/ "clips/*.mp4" --model model.onnx
    """
    _quiet_opencv()
    from nmsfree.backends import open_backend
    from nmsfree.backends.options import Options
    from nmsfree.detect_output import Output, new_run_folder, picture_names
    from nmsfree.detect_run import Run
    from nmsfree.detector import Detector
    from nmsfree.sources import expand

    found, problems = expand(sources)
    if not found:
        raise InputError("no source found: " + "; ".join(problems))
    options = Options(threads, allow_cpu, tf32, engine_precision, rebuild, trust)
    with Detector(open_backend(model, device, options)) as detector:
        wanted = _split_classes(classes, detector.names)
        above = _threshold(threshold)

        def look(images: list[Any]) -> "list[Detections]":
            return detector.batch(
                images, threshold=above, classes=wanted, max_detections=max_detections
            )

        look([])  # refuses wrong options before anything is written
        typer.echo(f"engine: {detector.backend.description}", err=True)
        names = picture_names(found)
        folder = (save_dir or new_run_folder(RUNS)) if save else None
        output = Output(names, folder, pictures=pictures, json_target=json_file, model=model)
        with output:
            run = Run(look, output, detector.spec.batch or 1, max_frames)
            totals = run.over(found)
    totals.problems[:0] = problems
    totals.problems += output.problems
    _report(totals, folder, to_stderr=json_file == "-")


def _quiet_opencv() -> None:
    """Keep OpenCV's own chatter about unreadable files off the terminal: we name those files."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # read when the first video opens
    import cv2

    if hasattr(cv2, "setLogLevel"):  # OpenCV 4
        cv2.setLogLevel(0)
    else:
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def _threshold(text: str | None) -> "Threshold | None":
    """Read a number or one of the words that `Detector` takes."""
    if text is None:
        return None
    if text == "per-class":
        return "per-class"
    if text == "precision":
        return "precision"
    try:
        return float(text)
    except ValueError:
        raise InputError(
            f"threshold is {text!r}, expected a number, 'per-class' or 'precision'"
        ) from None


def _split_classes(classes: str | None, names: tuple[str, ...]) -> list[str | int] | None:
    """Split "car,dog,3"; a number is a class id unless a class has that name."""
    if classes is None:
        return None
    parts = [part.strip() for part in classes.split(",")]
    numbers = [None if part in names else whole_number(part) for part in parts]
    return [part if n is None else n for part, n in zip(parts, numbers, strict=True) if part]


def _report(totals: "Totals", folder: Path | None, *, to_stderr: bool) -> None:
    """Print the summary, name what failed, and end with the exit status that says so."""
    place = "nothing saved" if folder is None else f"saved in {shown(folder)}"
    typer.echo(f"{totals}, {place}", err=to_stderr)
    for problem in totals.problems:
        typer.echo(f"error: {shown(problem, 2000)}", err=True)
    if totals.interrupted:
        raise typer.Exit(INTERRUPTED)
    if totals.problems:
        raise typer.Exit(1)
