"""Exported files in the work folder, each made once for its weights and settings."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nmsfree.preprocess
import nmsfree.spec
import nmsfree_export
import nmsfree_training
from nmsfree.datasets.digits.scenes import write_digits
from nmsfree.errors import NmsfreeError
from nmsfree.machine import sha256
from nmsfree.spec import Target
from nmsfree_benchmarks.common.exporting import exporter
from nmsfree_benchmarks.table.eager import Source
from nmsfree_export.export import ExportOptions
from nmsfree_export.options import Precision

CALIBRATION_IMAGES = 128
TIMED_IMAGES = 16  # where a file is timed and not evaluated: ranges change no kernels
TRAIN_ANNOTATIONS = Path("annotations/instances_train.json")
LIBRARIES = ("torch", "onnx", "onnxscript", "onnxruntime")
MADE_OF = (
    Path(nmsfree_export.__file__).parent,
    Path(nmsfree_training.__file__).parent,
    Path(nmsfree.spec.__file__),
    Path(nmsfree.preprocess.__file__),
)

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Wanted:
    """A file to export.

    Attributes:
        source: its weights.
        precision, target: of the file; a target belongs to "int8" and to no other.
        size: (height, width) of the input; None takes the checkpoint's.
        batch: fixed batch size, or None for any.
    """

    source: Source
    precision: Precision = "fp32"
    target: Target | None = None
    size: tuple[int, int] | None = None
    batch: int | None = 1

    @property
    def name(self) -> str:
        """The only one of this name: "fcos_e2e_nano-int8-cpu-256x256-batch1"."""
        height, width = self.size or self.source.checkpoint.input_size
        kind = self.precision if self.target is None else f"{self.precision}-{self.target}"
        return f"{self.source.name}-{kind}-{height}x{width}-batch{self.batch or 'N'}"

    @property
    def calibration_images(self) -> int:
        """Digits scenes that an INT8 file is calibrated with; few for what knows no digits."""
        return CALIBRATION_IMAGES if self.source.training == "digits" else TIMED_IMAGES

    def options(self, calibration: Path | None) -> ExportOptions:
        """Say it to the exporter; `calibration` is a folder with a split `train`."""
        int8 = self.target is not None
        return ExportOptions(
            input_size=self.size,
            batch=self.batch,
            precision=self.precision,
            target=self.target,
            calibrate=calibration if int8 else None,
            calibration_images=self.calibration_images if int8 else None,
        )


def digits_train(data: Path, work: Path, progress: Progress = lambda done, total: None) -> Path:
    """Return a folder with training pictures: `data` as it is, else one written below `work`.

    `data` is never written to.
    """
    if (data / TRAIN_ANNOTATIONS).is_file():
        return data
    made = work / "digits"
    write_digits(
        made,
        train=CALIBRATION_IMAGES,
        val=0,
        crowd=0,
        progress=lambda _, done, total: progress(done, total),
    )
    return made


def export_all(
    wanted: Sequence[Wanted],
    work: Path,
    calibration: Path | None = None,
    progress: Progress = lambda done, total: None,
) -> tuple[dict[str, Path], dict[str, str]]:
    """Export what is not there yet, in a process of its own.

    Returns:
        The files by `Wanted.name`; and of those that could not be made, why.
    """
    files = {w.name: work / f"{w.name}-{_key(w, calibration)}.onnx" for w in wanted}
    missing = [w for w in wanted if not files[w.name].is_file()]
    refused: dict[str, str] = {}
    if missing:
        with exporter() as other:
            for done, w in enumerate(missing):
                progress(done, len(missing))
                try:
                    options = w.options(calibration)
                    other.export(w.source.file, w.source.name, files[w.name], options)
                except NmsfreeError as error:
                    refused[w.name] = str(error)
        progress(len(missing), len(missing))
    return {name: path for name, path in files.items() if name not in refused}, refused


def _key(wanted: Wanted, calibration: Path | None) -> str:
    """Hash what a file depends on: weights, settings, pictures, and what makes it."""
    what: dict[str, Any] = {
        "weights": wanted.source.sha256,
        "name": wanted.name,
        "made by": made_by(MADE_OF),
    }
    if wanted.target is not None and calibration is not None:
        what["pictures"] = sha256(calibration / TRAIN_ANNOTATIONS), wanted.calibration_images
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]


@cache
def made_by(sources: tuple[Path, ...]) -> str:
    """Hash the code and the libraries that make files, so that no old one is measured after a
    change of the network, the exporter or what the runtime writes into a file.

    Args:
        sources: Python files, and folders of them.
    """
    digest = hashlib.sha256()
    for source in sources:
        for file in sorted(source.rglob("*.py")) if source.is_dir() else [source]:
            digest.update(f"{file.relative_to(source.parent)} {sha256(file)}\n".encode())
    for name in LIBRARIES:
        digest.update(f"{name} {version(name)}\n".encode())
    return digest.hexdigest()
