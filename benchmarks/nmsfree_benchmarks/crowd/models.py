"""The detectors that are run on crowded scenes: exported at the scenes' size, then cached."""

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import onnx

from nmsfree.backends import Backend
from nmsfree.detector import Detector
from nmsfree.errors import InputError
from nmsfree.files import write_atomic
from nmsfree.machine import sha256
from nmsfree.spec import NmsSpec
from nmsfree_benchmarks.common.exported import MADE_OF, made_by
from nmsfree_benchmarks.common.exporting import exporter
from nmsfree_benchmarks.common.on_device import CPU, DeviceOptions, open_on, subject_on
from nmsfree_benchmarks.common.run_options import Progress
from nmsfree_benchmarks.machine.measure import Stopwatch
from nmsfree_benchmarks.nms.graphs import with_settings
from nmsfree_benchmarks.record.records import Subject
from nmsfree_benchmarks.table.onnx_engine import TimedBackend
from nmsfree_export.export import ExportOptions
from nmsfree_training.weights.checkpoint import load_checkpoint, save_checkpoint

WITH_NMS, NMS_FREE = "fcos_rt_nano", "fcos_e2e_nano"
LOWEST_FLOOR = 0.001  # all files are exported with it; others are set in a copy
TOP_K = 1000  # rows of the output: 500 objects and what else is above a low floor
IOU = NmsSpec().iou


@dataclass(frozen=True)
class Job:
    """One file to export.

    Attributes:
        model, checkpoint: name and weights.
        options: of the export.
        training: what the weights were trained on; "untrained" for stand-ins.
    """

    model: str
    checkpoint: Path
    options: ExportOptions
    training: str = "digits"

    def file(self, work: Path) -> Path:
        """Return where the exported file is: weights, options and code are in its name."""
        key = f"{sha256(self.checkpoint)} {self.options!r} {made_by(MADE_OF)}"
        return work / "crowd" / f"{self.model}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.onnx"


def batch_on(device: str) -> int | None:
    """Return the batch of the files for a device: one picture, and any number on the processor.

    On the processor NMS is measured at several batches. Elsewhere files are as they are deployed
    for one picture after another: compilers and CUDA graphs want shapes that are fixed.
    """
    return None if device == CPU else 1


def nano_jobs(weights: Path, side: int, device: str = CPU) -> list[Job]:
    """Return the o2m and the NMS-free detector for square pictures, see `batch_on`.

    Raises:
        InputError: the weights are not there.
    """
    options = ExportOptions(
        input_size=(side, side), batch=batch_on(device), top_k=TOP_K, score_floor=LOWEST_FLOOR
    )
    return [Job(name, _weights(weights, name), options) for name in (WITH_NMS, NMS_FREE)]


def unfiltered_job(job: Job, work: Path) -> Job | None:
    """Return the job of the same weights with the rival filter taken out; None if there is none.

    For timing: such a detector finds many objects more than once.
    """
    checkpoint = load_checkpoint(job.checkpoint)
    if not checkpoint.model.rival_iou:
        return None
    bare = work / "crowd" / f"{job.model}-unfiltered-{sha256(job.checkpoint)[:12]}.safetensors"
    if not bare.is_file():
        state = {k: v for k, v in checkpoint.state.items() if ".rival_filter." not in k}
        model = replace(checkpoint.model, rival_iou=0.0)
        bare.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(replace(checkpoint, model=model, state=state), bare)
    return replace(job, checkpoint=bare)


def _weights(folder: Path, name: str) -> Path:
    path = folder / f"{name}.safetensors"
    if not path.is_file():
        raise InputError(
            f"{path}: no such file, expected trained weights: give their folder with --weights, "
            f"or train them with `nmsfree train --data data/digits --model {name}`"
        )
    return path


def export_all(jobs: list[Job], work: Path, progress: Progress) -> list[Path]:
    """Export what is not in the work folder yet; returns the files.

    Raises:
        GateError: a file differs from its checkpoint.
    """
    files = [job.file(work) for job in jobs]
    missing = [(job, file) for job, file in zip(jobs, files, strict=True) if not file.is_file()]
    if missing:
        progress("export", 0, len(missing))
        with exporter() as other:
            for done, (job, file) in enumerate(missing, start=1):
                other.export(job.checkpoint, job.model, file, job.options)
                progress("export", done, len(missing))
    return files


def with_floor(file: Path, floor: float) -> Path:
    """Write a file of the o2m head with another score floor beside it; returns it."""
    changed = file.with_name(f"{file.stem}-floor{floor:g}.onnx")
    write_atomic(changed, with_settings(onnx.load(file), floor, IOU).SerializeToString())
    return changed


@dataclass(frozen=True, eq=False)
class Opened:
    """A file on a device, whose calls mark a stopwatch.

    Attributes:
        detector: its backend marks the watch before and after the engine's call.
        backend: without the marks.
        subject: how it is described in the results.
        file: that was opened.
    """

    detector: Detector
    backend: Backend
    subject: Subject
    file: Path

    @property
    def floor(self) -> float:
        return self.detector.spec.score_floor


def open_all(
    files: Sequence[Path], training: str, options: DeviceOptions, watch: Stopwatch, stack: ExitStack
) -> list[Opened]:
    """Open exported files for one image at a time, until the stack unwinds."""
    opened = []
    for file in files:
        backend = open_on(file, options.device, options.threads)
        detector = stack.enter_context(Detector(TimedBackend(backend, watch)))
        subject = subject_on(
            options.device, backend, file, training=training, threads=options.threads, batch=1
        )
        opened.append(Opened(detector, backend, subject, file))
    return opened


def use_threads(threads: int) -> None:
    """Give OpenCV this many threads; an engine is told when a file is opened."""
    cv2.setNumThreads(threads)
