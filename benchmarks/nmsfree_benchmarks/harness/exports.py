"""Exported files in the work folder, each made once for its weights and settings.

They are made in a process of its own: tracing a network leaves the process's memory fragmented, and
the engines that are opened in it afterwards run about 3 % slower (measured); an application that
embeds a model never traces one.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import nmsfree.preprocess
import nmsfree.spec
import nmsfree_export
import nmsfree_training
from nmsfree.errors import NmsfreeError
from nmsfree.machine import sha256
from nmsfree_benchmarks.harness.pictures import CALIBRATION_IMAGES
from nmsfree_benchmarks.harness.subject import Subject
from nmsfree_benchmarks.harness.timer import Progress
from nmsfree_export.export import ExportOptions, export_onnx
from nmsfree_training.weights.checkpoint import load_checkpoint

TIMED_IMAGES = 16  # where a file is timed and not evaluated: ranges change no kernels
LIBRARIES = ("torch", "onnx", "onnxscript", "onnxruntime")
MADE_OF = (
    Path(nmsfree_export.__file__).parent,
    Path(nmsfree_training.__file__).parent,
    Path(nmsfree.spec.__file__),
    Path(nmsfree.preprocess.__file__),
)
Exporter = Callable[[Path, str, Path, ExportOptions], None]


def export_all(
    subjects: Sequence[Subject], work: Path, calibration: Path | None, progress: Progress
) -> dict[str, str]:
    """Export what is not there yet, and tell every subject its file.

    `calibration` is a folder with a split `train`, for INT8. Returns by `Subject.file_name` why a
    file could not be made.
    """
    missing: dict[Path, Subject] = {}
    for subject in subjects:
        subject.file = work / f"{subject.file_name}-{_key(subject, calibration)}.onnx"
        if not subject.file.is_file():
            missing.setdefault(subject.file, subject)
    refused: dict[str, str] = {}
    if missing:
        with exporter() as export:
            for done, (file, subject) in enumerate(missing.items()):
                progress(done, len(missing))
                assert subject.weights is not None
                try:
                    export(subject.weights.file, subject.model, file, _how(subject, calibration))
                except NmsfreeError as error:
                    refused[subject.file_name] = str(error)
        progress(len(missing), len(missing))
    return refused


def _how(subject: Subject, calibration: Path | None) -> ExportOptions:
    int8: dict[str, object] = {}
    if subject.target is not None:  # few pictures calibrate weights that know no digits
        count = CALIBRATION_IMAGES if subject.training == "digits" else TIMED_IMAGES
        int8 = {"calibrate": calibration, "calibration_images": count}
    return ExportOptions(
        input_size=subject.size,
        batch=subject.batch,
        precision=subject.precision,
        target=subject.target,
        nms=subject.nms,
        **int8,  # type: ignore[arg-type]
        **subject.output,
    )


def _key(subject: Subject, calibration: Path | None) -> str:
    """Hash what a file depends on: weights, settings, pictures, and what makes it."""
    assert subject.weights is not None
    what: list[object] = [subject.weights.sha256, subject.file_name, dict(subject.output)]
    if subject.target is not None and calibration is not None:
        annotations = sha256(calibration / "annotations" / "instances_train.json")
        what += [annotations, subject.training]
    text = json.dumps([*what, made_by(MADE_OF)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@cache
def made_by(sources: tuple[Path, ...]) -> str:
    """Hash the code (Python files and folders of them) and the libraries that make files.

    So no old file is measured after a change of the network, the exporter or what the runtime
    writes into a file.
    """
    digest = hashlib.sha256()
    for source in sources:
        for file in sorted(source.rglob("*.py")) if source.is_dir() else [source]:
            digest.update(f"{file.relative_to(source.parent)} {sha256(file)}\n".encode())
    for name in LIBRARIES:
        digest.update(f"{name} {version(name)}\n".encode())
    return digest.hexdigest()


@contextmanager
def exporter() -> Iterator[Exporter]:
    """Open the other process, which ends with the block; gives what exports a checkpoint there."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        yield lambda *job: pool.submit(export_here, *job).result()


def export_here(checkpoint: Path, model: str, out: Path, how: ExportOptions) -> None:
    """Write the ONNX file of a checkpoint's deployed head.

    GateError: it differs from its checkpoint. InputError, DataError: an option, or the pictures of
    a calibration, cannot be used.
    """
    export_onnx(load_checkpoint(checkpoint, model), out, how)
