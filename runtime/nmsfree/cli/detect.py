"""`nmsfree detect`: draw detections on images, folders, videos, cameras and streams."""

import os
import shutil
import time
from collections import deque
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from rich.progress import Progress, Task

from nmsfree.backends import open_backend
from nmsfree.backends.options import DEFAULTS, DEVICE, Options
from nmsfree.cli.options import (
    EVERYTHING,
    MODEL,
    REDUCED,
    SIZE,
    Choice,
    command,
    end_with,
    json_option,
)
from nmsfree.cli.progress import progress_bar
from nmsfree.detections import Detections
from nmsfree.detector import Detector
from nmsfree.errors import InputError
from nmsfree.images import Reduce, Reduction, quiet_opencv
from nmsfree.options import Option
from nmsfree.preprocess import reduction_for
from nmsfree.streams.flow import Stage
from nmsfree.streams.live import LiveSource
from nmsfree.streams.pipeline import DECODERS, Answer, Look, answers_of
from nmsfree.streams.sources import Frame, Source, expand
from nmsfree.streams.writers import Drawn, Output, new_run_folder, picture_names
from nmsfree.text import shown
from nmsfree.tiles import WHOLE, Tiling

RUNS = Path("runs/detect")
INTERRUPTED = 130  # exit status of a command that Ctrl-C ended
_LIVE = partial(Option, panel="Videos and cameras")
Found = tuple[Frame, Detections, Drawn]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `nmsfree detect` is asked."""

    sources: Annotated[
        tuple[str, ...],
        Option(
            "Image files, folders, patterns, videos, a camera's index, URLs (rtsp, http, udp …).",
            argument=True,
            metavar="SOURCE",
        ),
    ]
    model: Annotated[Path, MODEL]
    choice: Choice = EVERYTHING
    tiling: Tiling = WHOLE
    size: Annotated[tuple[int, int] | None, SIZE] = None
    save_dir: Annotated[
        Path | None, Option("Where to write; a new runs/detect/N if not given.")
    ] = None
    save: Annotated[bool, Option("Write pictures and detections.jsonl.", ("--save/--no-save",))] = (
        True
    )
    pictures: Annotated[
        bool, Option("Write annotated pictures, videos.", ("--pictures/--no-pictures",))
    ] = True
    reduced: Annotated[
        bool,
        replace(REDUCED, help=f"{REDUCED.help} Needs --no-pictures.", panel="Large pictures"),
    ] = False
    json_file: Annotated[str | None, json_option('Write the lines here too; "-" is stdout.')] = None
    max_frames: Annotated[
        int | None, _LIVE("Stop each video or live source after this many.", min=1, max=2**31 - 1)
    ] = None
    give_up: Annotated[
        float | None,
        _LIVE(
            "Seconds without a frame after which a camera or URL is given up; if not given, 10 for"
            " one that never answered.",
            min=0,
        ),
    ] = None
    device: Annotated[str | None, DEVICE] = None
    engine: Options = DEFAULTS

    def __post_init__(self) -> None:
        drawn = self.save and self.pictures
        if self.reduced and (drawn or self.tiling.tile is not None):
            raise InputError(
                "--reduced leaves pixels out, which --tile and annotated pictures need: add"
                " --no-pictures, without --tile"
            )


def _detect(request: Request) -> None:
    """Draw detections on images, folders, videos, cameras and streams.

    Writes annotated pictures (small ones enlarged), H.264 videos, and detections.jsonl, a line per
    object.

    Inputs that cannot be read are named at the end; the exit status is 1 then.

    Cameras and URLs run all at once; late frames are dropped, a lost source is connected again.

    Ctrl-C ends a camera, or anything else, and keeps what is done.

    Example: nmsfree detect street.jpg holiday/ "clips/*.mp4" --model model.onnx

    Large pictures: nmsfree detect aerial.tif --model model.onnx --tile 400
    """
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # read when the first video opens
    quiet_opencv()
    found, problems = expand(request.sources)
    if not found:
        raise InputError("no source found: " + "; ".join(problems))
    backend = open_backend(request.model, request.device, request.engine)
    with Detector(backend, size=request.size) as detector:
        look = _look(request, detector)  # before anything is written
        typer.echo(f"engine: {detector.backend.describe()}", err=True)
        names = picture_names(found)
        # Lines that go to stdout need no folder of their own.
        new = request.save and (request.pictures or request.json_file != "-")
        folder = request.save_dir if request.save else None
        folder = folder or (new_run_folder(RUNS) if new else None)
        output = Output(
            names,
            folder,
            pictures=request.pictures,
            json_target=request.json_file,
            model=request.model,
        )
        with output:
            run = Run(look, output, detector.spec.batch, request.max_frames, request.give_up)
            if request.reduced:
                run.reduction = reduction_for(detector.spec)
            run.over(found)
    if not run.images and folder is not None and request.save_dir is None:
        shutil.rmtree(folder)  # this run's own, with an empty list
        folder = None
    for source in run.live:
        typer.echo(str(source), err=True)
    saved = "not all saved" if output.problems else "saved"
    place = "nothing saved" if folder is None else f"{saved} in {shown(folder)}"
    typer.echo(f"{run}, {place}", err=request.json_file == "-")
    if run.truncated:
        verb = "adopt it" if "adopted" in detector.spec.provenance else "export"
        rows = f"{detector.spec.top_k} row{'' if detector.spec.top_k == 1 else 's'}"
        typer.echo(
            f"warning: {run.truncated} of them filled all {rows} of the model, and may hold more"
            f" objects: {verb} with a larger --top-k, or raise --threshold",
            err=True,
        )
    problems += [*run.problems, *output.problems]
    end_with(problems, INTERRUPTED if run.interrupted else 0)


detect = command(_detect, Request)


def _look(request: Request, detector: Detector) -> Look:
    """Refuses options that this model cannot serve."""
    chosen, tiling = request.choice.of(detector), request.tiling
    if tiling.tile is None:
        return partial(detector.batch, **chosen)
    chosen |= {"tile": tiling.tile, "overlap": tiling.overlap}
    return lambda images: [detector.tiled(image, **chosen) for image in images]


@dataclass
class Run:
    """One pass over sources, and what it has done."""

    look: Look  # several threads call it
    output: Output  # takes what was found
    batch: int | None  # how many images to give to `look` at once; None for any number
    max_frames: int | None = None  # stop each video or live source after this many
    give_up: float | None = None  # seconds, see `stream`
    reduction: Reduction | Reduce = 1  # of JPEGs
    images: int = 0
    frames: int = 0  # of them from videos and live sources
    objects: int = 0
    truncated: int = 0  # images that may hold more
    seconds: float = 0.0  # of all
    problems: list[str] = field(default_factory=list)  # a line for each unreadable source
    live: Sequence[LiveSource] = ()
    ages: deque[float] = field(default_factory=lambda: deque(maxlen=1000))  # seconds, of live ones
    interrupted: bool = False

    def __str__(self) -> str:
        name = "frame" if self.frames and self.frames == self.images else "image"
        images = f"{self.images} {name}{'' if self.images == 1 else 's'}"
        objects = f"{self.objects} object{'' if self.objects == 1 else 's'}"
        speed = f", {self.images / self.seconds:.1f} {name}s/s" if self.images else ""
        age = f", answers {1000 * median(self.ages):.0f} ms old" if self.ages else ""
        start = "interrupted after " if self.interrupted else ""
        return f"{start}{images}, {objects}{speed}{age}"

    def over(self, sources: Sequence[Source]) -> None:
        """Work through the sources; Ctrl-C ends this early and well."""
        start = time.perf_counter()
        with progress_bar() as bar:
            files = sum(not source.is_live for source in sources)
            task = bar.add_task("detect", total=files) if files else None
            answers = answers_of(
                sources,
                self.look,
                self.batch,
                max_frames=self.max_frames,
                give_up=self.give_up,
                reduction=self.reduction,
                then=[Stage("draw", self._draw, DECODERS)],
                on_video=lambda frames: _expect(bar.tasks[0], frames),
                on_live=lambda live: setattr(self, "live", live),
            )
            try:
                with closing(answers):
                    for answer in chain.from_iterable(answers):
                        self._add(answer)
                        if task is not None and not self.live:
                            bar.update(task, completed=self.images)
                        _show(bar, self.live)
            except KeyboardInterrupt:
                self.interrupted = True
            finally:
                self.seconds = time.perf_counter() - start

    def _draw(self, answers: list[Answer | InputError]) -> list[Found | InputError]:
        return [
            one if isinstance(one, InputError) else (*one, self.output.draw(*one))
            for one in answers
        ]

    def _add(self, answer: Found | InputError) -> None:
        if isinstance(answer, InputError):
            self.problems.append(str(answer))
            return
        frame, detections, _ = answer
        self.output.add(*answer)
        self.images += 1
        self.frames += frame.number is not None
        self.objects += len(detections)
        self.truncated += detections.truncated
        if frame.arrived is not None:
            self.ages.append(time.monotonic() - frame.arrived)


def _expect(task: Task, frames: int | None) -> None:
    """Count a video, which was counted as one image; None if it does not say how long it is."""
    if task.total is not None:
        task.total = None if frames is None else task.total - 1 + frames


def _show(bar: Progress, live: Sequence[LiveSource]) -> None:
    """A line for each live source, after that of the files."""
    while len(bar.tasks) < len(live):
        bar.add_task("", total=None)
    for source, task in zip(live, bar.tasks[-len(live) :] if live else (), strict=True):
        bar.update(task.id, completed=source.taken, description=str(source))
