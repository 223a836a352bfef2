"""`nmsfree batch`: many pictures on many processors or machines."""

import time
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nmsfree.backends.options import DEFAULTS, DEVICE, Options
from nmsfree.cli.options import EVERYTHING, MODEL, REDUCED, Choice, command, end_with
from nmsfree.cli.progress import progress_bar
from nmsfree.detector import Detector
from nmsfree.errors import InputError, import_extra
from nmsfree.machine import sha256
from nmsfree.options import Option
from nmsfree.text import shown

if TYPE_CHECKING:
    from nmsfree.cluster.work import Task

PANEL = "Workers"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `nmsfree batch` is asked."""

    sources: Annotated[
        tuple[str, ...],
        Option(
            "Image files, folders, patterns, addresses (s3://bucket/folder).",
            argument=True,
            metavar="SOURCE",
        ),
    ]
    model: Annotated[Path, MODEL]
    out: Annotated[str, Option("Folder or address of the Parquet files.", metavar="DIR|ADDRESS")]
    choice: Choice = EVERYTHING
    reduced: Annotated[bool, REDUCED] = False
    workers: Annotated[
        int | None, Option("Processes; as many as find room if not given.", min=1, panel=PANEL)
    ] = None
    cpus: Annotated[int, Option("Processors of a worker.", min=1, max=256, panel=PANEL)] = 1
    gpus: Annotated[
        float | None,
        Option(
            "GPUs of a worker, or a share; 1 with a GPU's --device.", min=0, max=64, panel=PANEL
        ),
    ] = None
    address: Annotated[
        str | None,
        Option("A Ray cluster: auto, or HOST:PORT; this machine if not given.", panel=PANEL),
    ] = None
    device: Annotated[str | None, DEVICE] = None
    engine: Options = DEFAULTS

    def __post_init__(self) -> None:
        if self.address is not None and "://" in self.address:
            raise InputError(
                f"--address is {shown(self.address)}, expected auto or HOST:PORT: start this on a"
                " machine of the cluster"
            )


def _batch(request: Request) -> None:
    """Detect objects on many pictures at once, on processors or a cluster → Parquet.

    The answers are those of `nmsfree detect`, a row per picture; one that cannot be read is a row
    with its error, and the exit status is 1 then.

    Run it again, and it goes on with what is missing.

    Example: nmsfree batch s3://photos/2026 --model model.onnx --out s3://results/2026
    """
    for module in ("ray", "pyarrow"):
        import_extra(module, "nmsfree batch", "nmsfree[ray]")
    from nmsfree.cluster.run import Workers, parts_of, run
    from nmsfree.cluster.store import find_pictures, named, names_done

    on_gpu = request.device is not None and not request.device.startswith(("cpu", "openvino"))
    gpus = float(on_gpu) if request.gpus is None else request.gpus
    task = _task(request, on_gpu)
    done = names_done(task.out, task.about)
    found, problems = find_pictures(request.sources)
    total, parts = sum(len(pictures.paths) for pictures in found), parts_of(found, done)
    left = sum(len(part["paths"]) for part in parts)
    if not total:
        raise InputError("no picture found: " + "; ".join(problems))
    if total > left:
        typer.echo(f"{total - left} of {total} pictures have their result already", err=True)
    images, failed, said = 0, 0, ""
    start, began = time.time(), inf
    with progress_bar() as bar:
        bar.add_task("starting", total=left)
        workers = Workers(
            address=request.address, count=request.workers, processors=request.cpus, gpus=gpus
        )
        for part in run(task, parts, workers) if left else ():
            images, failed = images + part["images"], failed + part["failed"]
            began = min(began, part["began"])
            rate = images / (time.time() - began)
            bar.update(bar.task_ids[0], description=f"{rate:.1f} images/s", completed=images)
            said = f", {rate:.1f}/s after a start of {began - start:.1f} s"
    typer.echo(f"{images} images{said}, results in {named(task.out)}")
    if failed:
        problems.append(f"{failed} of {images} could not be read: see the column error")
    end_with(problems)


batch = command(_batch, Request)


def _task(request: Request, on_gpu: bool) -> "Task":
    """Check the request against the model, before any work is done."""
    from nmsfree.cluster.work import Task

    engine = request.engine
    if not on_gpu and request.model.suffix == ".onnx":
        engine = replace(engine, threads=engine.threads or request.cpus)
    with Detector(request.model, device=request.device, **vars(engine)) as detector:
        chosen = request.choice.of(detector)
    return Task(
        model=str(request.model.absolute()),
        sha256=sha256(request.model),
        device=request.device,
        engine=engine,
        **chosen,
        reduced=request.reduced,
        out=request.out if "://" in request.out else str(Path(request.out).absolute()),
        folder=str(Path.cwd()),
    )
