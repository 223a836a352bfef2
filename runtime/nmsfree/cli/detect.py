"""`nmsfree detect`: draw detections on images, folders, videos or a camera."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, NamedTuple, cast

import numpy as np
import typer
from numpy.typing import NDArray
from rich.progress import Progress

from nmsfree.backends import open_backend
from nmsfree.backends.options import DEFAULTS, DEVICE, Options
from nmsfree.cli.options import command, end_with, json_option
from nmsfree.cli.progress import progress_bar
from nmsfree.decode import whole_number
from nmsfree.detections import Detections
from nmsfree.detector import Detector, Threshold
from nmsfree.errors import InputError
from nmsfree.images import quiet_opencv, read_image
from nmsfree.options import Option
from nmsfree.streams.sources import Source, Video, expand
from nmsfree.streams.writers import Output, new_run_folder, picture_names
from nmsfree.text import shown
from nmsfree.tiles import WHOLE, Tiling

RUNS = Path("runs/detect")
INTERRUPTED = 130  # exit status of a command that Ctrl-C ended

# Finds the objects of up to `Run.batch` images, BGR uint8 [h, w, 3].
Look = Callable[[list[NDArray[np.uint8]]], list[Detections]]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `nmsfree detect` is asked."""

    sources: Annotated[
        tuple[str, ...],
        Option(
            "Image files, folders, patterns, videos, a camera's index.",
            argument=True,
            metavar="SOURCE",
        ),
    ]
    model: Annotated[Path, Option("An .onnx, or an .engine.", ("--model", "-m"))]
    threshold: Annotated[
        str | None,
        Option(
            "Keep scores above this; the model's own if not given. per-class: the best-F1 "
            "threshold of each class; precision: the lowest that reaches the target precision, "
            "both as `nmsfree eval` measured them for the file.",
            metavar="NUMBER|per-class|precision",
        ),
    ] = None
    classes: Annotated[str | None, Option("Keep these classes, names or ids.", metavar="A,B")] = (
        None
    )
    max_detections: Annotated[
        int | None, Option("Keep at most this many in an image, the best.", min=1, max=1_000_000)
    ] = None
    tiling: Tiling = WHOLE
    save_dir: Annotated[
        Path | None, Option("Where to write; a new runs/detect/N if not given.")
    ] = None
    save: Annotated[bool, Option("Write pictures and detections.jsonl.", ("--save/--no-save",))] = (
        True
    )
    pictures: Annotated[
        bool, Option("Write annotated pictures, videos.", ("--pictures/--no-pictures",))
    ] = True
    json_file: Annotated[str | None, json_option('Write the lines here too; "-" is stdout.')] = None
    max_frames: Annotated[
        int | None, Option("Stop each video or camera after this many.", min=1, max=2**31 - 1)
    ] = None
    device: Annotated[str | None, DEVICE] = None
    engine: Options = DEFAULTS


def _detect(request: Request) -> None:
    """Draw detections on images, folders, videos or a camera.

    Writes annotated pictures (small ones enlarged) and detections.jsonl, a line per object.

    Inputs that cannot be read are named at the end; the exit status is 1 then.

    Ctrl-C ends a camera, or anything else, and keeps what is done.

    Example: nmsfree detect street.jpg holiday/ "clips/*.mp4" --model model.onnx

    Large pictures: nmsfree detect aerial.tif --model model.onnx --tile 400
    """
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # read when the first video opens
    quiet_opencv()
    found, problems = expand(request.sources)
    if not found:
        raise InputError("no source found: " + "; ".join(problems))
    with Detector(open_backend(request.model, request.device, request.engine)) as detector:
        look = _look(request, detector)
        look([])  # refuses wrong options before anything is written
        typer.echo(f"engine: {detector.backend.description}", err=True)
        names = picture_names(found)
        folder = (request.save_dir or new_run_folder(RUNS)) if request.save else None
        output = Output(
            names,
            folder,
            pictures=request.pictures,
            json_target=request.json_file,
            model=request.model,
        )
        with output:
            run = Run(look, output, detector.spec.batch or 1, request.max_frames)
            run.over(found)
    place = "nothing saved" if folder is None else f"saved in {shown(folder)}"
    typer.echo(f"{run}, {place}", err=request.json_file == "-")
    if run.truncated:
        rows = f"{detector.spec.top_k} row{'' if detector.spec.top_k == 1 else 's'}"
        typer.echo(
            f"warning: {run.truncated} of them filled all {rows} of the model, and may hold more"
            " objects: export with a larger --top-k, or raise --threshold",
            err=True,
        )
    problems += [*run.problems, *output.problems]
    end_with(problems, INTERRUPTED if run.interrupted else 0)


detect = command(_detect, Request)


def _look(request: Request, detector: Detector) -> Look:
    threshold, tiling = _threshold(request.threshold), request.tiling
    classes, most = _split_classes(request.classes, detector.names), request.max_detections
    whole = partial(detector.batch, threshold=threshold, classes=classes, max_detections=most)
    if tiling.tile is None:
        return whole
    whole([])  # checks the options
    tiled = partial(
        detector.tiled,
        tile=tiling.tile,
        overlap=tiling.overlap,
        threshold=threshold,
        classes=classes,
        max_detections=most,
    )
    return lambda images: [tiled(image) for image in images]


def _threshold(text: str | None) -> Threshold | None:
    """Read a number or one of the words that `Detector` takes."""
    if text is None or text in ("per-class", "precision"):
        return cast("Threshold | None", text)
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


class Frame(NamedTuple):
    """One image to look at, BGR uint8 [h, w, 3]; `number` and `fps` are those of a video."""

    source: Source
    image: NDArray[np.uint8]
    number: int | None = None
    fps: float = 0.0


@dataclass
class Run:
    """One pass over sources, and what it has done."""

    look: Look
    output: Output  # takes what was found
    batch: int  # how many images to give to `look` at once
    max_frames: int | None  # stop each video or camera after this many; None goes on to its end
    images: int = 0
    objects: int = 0
    truncated: int = 0  # images that may hold more
    seconds: float = 0.0  # in the detector; reading and drawing excluded
    problems: list[str] = field(default_factory=list)  # a line for each unreadable source
    interrupted: bool = False

    def __str__(self) -> str:
        images = f"{self.images} image{'' if self.images == 1 else 's'}"
        objects = f"{self.objects} object{'' if self.objects == 1 else 's'}"
        speed = f", {1000 * self.seconds / self.images:.1f} ms/image" if self.images else ""
        return f"{'interrupted after ' if self.interrupted else ''}{images}, {objects}{speed}"

    def over(self, sources: Sequence[Source]) -> None:
        """Work through the sources; Ctrl-C ends this early and well."""
        with progress_bar() as bar:
            bar.add_task("detect", total=len(sources))
            frames = self._frames(sources, bar)
            try:
                while chunk := list(islice(frames, self.batch)):
                    self._detect(chunk)
                    bar.update(bar.task_ids[0], completed=self.images)
            except KeyboardInterrupt:
                self.interrupted = True

    def _frames(self, sources: Sequence[Source], bar: Progress) -> Iterator[Frame]:
        """Read the sources one by one; those that cannot be read become problems."""
        for source in sources:
            try:
                if source.kind == "image":
                    yield Frame(source, read_image(source.name))
                else:
                    yield from self._video_frames(source, bar)
            except InputError as error:
                self.problems.append(str(error))

    def _video_frames(self, source: Source, bar: Progress) -> Iterator[Frame]:
        with Video(source) as video:
            known = [count for count in (video.frame_count, self.max_frames) if count is not None]
            task = bar.tasks[0]  # it counted the source as one image; a camera is endless
            task.total = task.total - 1 + min(known) if known and task.total is not None else None
            for number, image in enumerate(islice(video, self.max_frames)):
                yield Frame(source, image, number, video.fps)

    def _detect(self, chunk: list[Frame]) -> None:
        start = time.perf_counter()
        results = self.look([frame.image for frame in chunk])
        self.seconds += time.perf_counter() - start
        for frame, detections in zip(chunk, results, strict=True):
            self.output.add(frame.source, frame.number, frame.image, detections, frame.fps)
            self.images += 1
            self.objects += len(detections)
            self.truncated += detections.truncated
