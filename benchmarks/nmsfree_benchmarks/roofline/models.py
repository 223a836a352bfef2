"""The files that a roofline run measures: bundled models, exported, or those that were named."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nmsfree.backends import OnnxRuntimeBackend
from nmsfree.detector import Detector
from nmsfree.errors import InputError
from nmsfree.machine import sha256
from nmsfree_benchmarks.common.exported import Wanted, export_all
from nmsfree_benchmarks.common.run_options import Progress
from nmsfree_benchmarks.common.sources import NANO, PUBLISHED, trained_sources
from nmsfree_benchmarks.machine.measure import Call, Image
from nmsfree_benchmarks.record.records import Subject
from nmsfree_benchmarks.roofline.peaks import timed
from nmsfree_benchmarks.table.eager import Source, open_source, standin_source
from nmsfree_benchmarks.table.onnx_engine import bare_call

if TYPE_CHECKING:
    from nmsfree_benchmarks.roofline.suite import Options

LARGE = "fcos_e2e_r18_3x"  # the three published networks do the same arithmetic


@dataclass(frozen=True, eq=False)
class Entry:
    """An ONNX file, ready to run: what was timed, and its input for a profile."""

    name: str
    file: Path
    subject: Subject
    detector: Detector
    call: Call


def find_files(
    options: "Options", progress: Progress
) -> tuple[list[tuple[Path, str]], dict[str, str]]:
    """ONNX files with what their weights were trained on; and what is not there, and why."""
    if options.onnx:
        return [(path, "not stated") for path in options.onnx], {}
    sources, skipped = _sources(options)
    wanted = [Wanted(source) for source in sources]
    made, refused = export_all(
        wanted, options.work, progress=lambda done, total: progress("export", done, total)
    )
    found = [(made[w.name], w.source.training) for w in wanted if w.name in made]
    if not found:
        raise InputError("nothing to measure: " + "; ".join((skipped | refused).values()))
    return found, skipped | refused


def _sources(options: "Options") -> tuple[list[Source], dict[str, str]]:
    known = (*NANO, LARGE)
    chosen = options.models or (NANO if options.quick else known)
    for name in chosen:
        if name not in known:
            raise InputError(f"model is {name!r}, expected one of: {', '.join(known)}")
    sources, skipped = trained_sources(options.weights) if set(chosen) & set(NANO) else ([], {})
    sources = [source for source in sources if source.name in chosen]
    if LARGE in chosen:
        path = options.weights / "published" / PUBLISHED[LARGE]
        there = path.is_file()
        large = open_source(path, "published", LARGE) if there else None
        sources.append(large or standin_source(LARGE, options.work))
    return sources, {name: reason for name, reason in skipped.items() if name in chosen}


def open_entry(file: Path, training: str, options: "Options") -> Entry:
    on_gpu = options.device != "cpu"
    backend = OnnxRuntimeBackend(file, options.device, None if on_gpu else options.threads)
    detector, spec = Detector(backend), backend.spec

    def prepare(image: Image) -> Any:
        return detector.preprocess([image])[0]

    def on_device(image: Image) -> Sequence[int]:
        pixels = prepare(image)
        return timed(lambda: backend.run(pixels))(image)

    subject = Subject.of(
        spec,
        training=training,
        sha256=sha256(file),
        file_bytes=file.stat().st_size,
        engine="onnxruntime",
        provider=backend.description,
        threads=options.threads,
        tf32=False if on_gpu else None,
        transfers="in and out" if on_gpu else "none",
    )
    call = on_device if on_gpu else bare_call(file, options.threads, prepare)
    name = f"{spec.name} {spec.precision} {spec.height}x{spec.width} bare"
    return Entry(name, file, subject, detector, call)


def refuse_doubles(entries: Sequence[Entry]) -> None:
    names = [entry.name for entry in entries]
    for entry in entries:
        if names.count(entry.name) > 1:
            raise InputError(
                f"{entry.file}: another file holds {entry.name.removesuffix(' bare')} too: "
                "measure them in two runs and compare those"
            )
