"""`nmsfree detect`: draw detections on images, folders, videos or a camera."""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from numpy.typing import NDArray
from rich.progress import Progress

from nmsfree.cli.options import (
    AllowCpuOption,
    DeviceOption,
    PrecisionOption,
    RebuildOption,
    Tf32Option,
    ThreadsOption,
    TrustOption,
)
from nmsfree.cli.progress import progress_bar
from nmsfree.decode import whole_number
from nmsfree.detections import Detections
from nmsfree.detector import Threshold
from nmsfree.errors import InputError
from nmsfree.images import read_image
from nmsfree.streams.sources import Source, Video
from nmsfree.streams.writers import Output
from nmsfree.text import shown

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
    from nmsfree.detector import Detector
    from nmsfree.streams.sources import expand
    from nmsfree.streams.writers import Output, new_run_folder, picture_names

    found, problems = expand(sources)
    if not found:
        raise InputError("no source found: " + "; ".join(problems))
    options = Options(threads, allow_cpu, tf32, engine_precision, rebuild, trust)
    with Detector(open_backend(model, device, options)) as detector:
        wanted = _split_classes(classes, detector.names)
        above = _threshold(threshold)

        def look(images: list[Any]) -> list[Detections]:
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


def _threshold(text: str | None) -> Threshold | None:
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


Look = Callable[[list[NDArray[np.uint8]]], list[Detections]]


class Frame(NamedTuple):
    """One image to look at, BGR uint8 [h, w, 3]; `number` and `fps` are those of a video."""

    source: Source
    image: NDArray[np.uint8]
    number: int | None = None
    fps: float = 0.0


@dataclass
class Totals:
    """What a run has done."""

    images: int = 0
    objects: int = 0
    seconds: float = 0.0  # in the detector; reading and drawing excluded
    problems: list[str] = field(default_factory=list)  # a line for each unreadable source
    interrupted: bool = False

    def __str__(self) -> str:
        images = f"{self.images} image{'' if self.images == 1 else 's'}"
        objects = f"{self.objects} object{'' if self.objects == 1 else 's'}"
        speed = f", {1000 * self.seconds / self.images:.1f} ms/image" if self.images else ""
        return f"{'interrupted after ' if self.interrupted else ''}{images}, {objects}{speed}"


class Run:
    """One pass over sources; a new one for every pass.

    Args:
        look: finds the objects of up to `batch` images, BGR uint8 [h, w, 3].
        output: takes what was found.
        batch: how many images to give to `look` at once.
        max_frames: stop each video or camera after this many; None goes on to its end.
    """

    def __init__(self, look: Look, output: Output, batch: int, max_frames: int | None) -> None:
        self._look = look
        self._output = output
        self._batch = batch
        self._max_frames = max_frames
        self._totals = Totals()

    def over(self, sources: list[Source]) -> Totals:
        """Work through the sources; Ctrl-C ends this early and well."""
        with progress_bar() as bar:
            bar.add_task("detect", total=len(sources))
            try:
                for chunk in _chunks(self._frames(sources, bar), self._batch):
                    self._detect(chunk)
                    bar.update(bar.task_ids[0], completed=self._totals.images)
            except KeyboardInterrupt:
                self._totals.interrupted = True
        return self._totals

    def _frames(self, sources: list[Source], bar: Progress) -> Iterator[Frame]:
        """Read the sources one by one; those that cannot be read become problems."""
        for source in sources:
            try:
                if source.kind == "image":
                    yield Frame(source, read_image(source.name))
                else:
                    yield from self._video_frames(source, bar)
            except InputError as error:
                self._totals.problems.append(str(error))

    def _video_frames(self, source: Source, bar: Progress) -> Iterator[Frame]:
        with Video(source) as video:
            known = [count for count in (video.frame_count, self._max_frames) if count is not None]
            _correct_total(bar, min(known, default=None))
            for number, image in enumerate(islice(video, self._max_frames)):
                yield Frame(source, image, number, video.fps)

    def _detect(self, chunk: list[Frame]) -> None:
        start = time.perf_counter()
        results = self._look([frame.image for frame in chunk])
        self._totals.seconds += time.perf_counter() - start
        for frame, detections in zip(chunk, results, strict=True):
            self._output.add(frame.source, frame.number, frame.image, detections, frame.fps)
            self._totals.images += 1
            self._totals.objects += len(detections)


def _correct_total(bar: Progress, frames: int | None) -> None:
    """A source that was counted as one image turns out to be a video of `frames`, None: endless."""
    task = bar.tasks[0]
    task.total = None if frames is None or task.total is None else task.total - 1 + frames


def _chunks(frames: Iterable[Frame], size: int) -> Iterator[list[Frame]]:
    iterator = iter(frames)
    while chunk := list(islice(iterator, size)):
        yield chunk
