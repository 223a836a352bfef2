"""The variants of the frontier: opened, weighed, evaluated; how they are timed and recorded."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nmsfree.backends import Backend
from nmsfree.datasets.formats.coco import DetectionDataset
from nmsfree.detector import Detector
from nmsfree.errors import NmsfreeError
from nmsfree.machine import sha256
from nmsfree_benchmarks.common.engines import ENGINES
from nmsfree_benchmarks.common.run_options import Progress
from nmsfree_benchmarks.frontier import accuracy as frontier_accuracy
from nmsfree_benchmarks.frontier.accuracy import Accuracy
from nmsfree_benchmarks.frontier.rules import SPEED, is_reference
from nmsfree_benchmarks.frontier.variants import Variant
from nmsfree_benchmarks.machine.measure import Call, Stopwatch, Times
from nmsfree_benchmarks.machine.memory import MemoryMeter
from nmsfree_benchmarks.record.records import Ratio, Record, Subject
from nmsfree_benchmarks.table.entries import timed_call
from nmsfree_benchmarks.table.onnx_engine import TimedBackend, engine_call, prepare_of

PARTS = ("preprocess", "engine", "to_source")


@dataclass(frozen=True, eq=False)
class Entry:
    """A variant, ready to run."""

    variant: Variant
    file: Path
    backend: Backend
    detector: Detector
    figures: Mapping[str, Any]
    accuracy: Accuracy


class Opener:
    """Opens variants until the stack unwinds.

    Args:
        judged: images for AP.
        threads: of every engine.
        watch: what the detectors' backends mark.
        stack: closes the detectors.
    """

    def __init__(
        self, judged: DetectionDataset, threads: int, watch: Stopwatch, stack: ExitStack
    ) -> None:
        self.judged, self.threads, self.watch, self.stack = judged, threads, watch, stack
        self.memory = MemoryMeter()

    def open(self, variant: Variant, file: Path) -> Entry:
        """Measure memory and AP of one variant, and leave it open.

        Raises:
            NmsfreeError: the engine does not take the file.
        """
        engine = ENGINES[variant.engine]
        backend = engine.open(file, self.threads)
        detector = self.stack.enter_context(Detector(TimedBackend(backend, self.watch)))
        figures = self.memory.measure(
            engine.ran(file), engine.device, self.threads, engine.arithmetic
        )
        accuracy = frontier_accuracy.measure(detector, self.judged)
        return Entry(variant, file, backend, detector, figures, accuracy)

    def open_all(
        self,
        variants: Sequence[Variant],
        files: Mapping[str, Path],
        skipped: dict[str, str],
        progress: Progress,
    ) -> list[Entry]:
        """Open all; one that its engine refuses goes to `skipped` with the reason."""
        entries = []
        for done, variant in enumerate(variants):
            progress("memory and AP", done, len(variants))
            file = files[variant.wanted.name]
            try:
                entries.append(self.open(variant, file))
            except NmsfreeError as error:
                skipped[variant.name] = str(error).replace(str(file), file.name)
        progress("memory and AP", len(variants), len(variants))
        return entries


def calls_of(entries: Sequence[Entry], watch: Stopwatch) -> dict[str, Call]:
    """Name what takes turns: each detector as its users call it, and its engine alone."""
    calls: dict[str, Call] = {}
    for entry in entries:
        calls[entry.variant.name] = timed_call(entry.detector, watch)
        calls[f"{entry.variant.name} bare"] = engine_call(entry.backend, prepare_of(entry.detector))
    return calls


def records_of(entry: Entry, times: Mapping[str, Times], threads: int) -> list[Record]:
    """The detector's record, with AP and memory, and that of its engine alone."""
    variant, accuracy = entry.variant, entry.accuracy
    subject = Subject.of(
        entry.detector.spec,
        training=variant.wanted.source.training,
        sha256=sha256(entry.file),
        file_bytes=entry.file.stat().st_size,
        engine=variant.engine,
        provider=entry.backend.description,
        threads=threads,
        ap=round(accuracy.ap, 5),
        ap50=round(accuracy.ap50, 5),
        ap_images=accuracy.images,
        **ENGINES[variant.engine].state(entry.backend, variant.wanted.precision),
    )
    tenths = [round(ap, 5) for ap in accuracy.without]
    figures = {**entry.figures, "ap_without_tenths": tenths}
    source = variant.wanted.source
    same = {
        "file": variant.wanted.precision,
        "deployed_size": variant.size == source.checkpoint.input_size,
    }
    name, bare = variant.name, f"{variant.name} bare"
    whole = Record(name, same | {"call": "detector"}, times[name], PARTS, figures, subject)
    return [whole, Record(bare, same | {"call": "bare"}, times[bare], subject=subject)]


def ratios_of(records: Sequence[Record], burst: int) -> list[Ratio]:
    """Of every detector: its model's reference by it, and it by its engine alone."""
    found = {record.name: record for record in records}
    detectors = [record for record in records if record.parameters["call"] == "detector"]
    references = {r.subject.model: r for r in detectors if r.subject and is_reference(r)}
    ratios = []
    for record in detectors:
        assert record.subject is not None
        reference = references.get(record.subject.model)
        if reference is not None and reference is not record:
            ratios.append(Ratio.between(reference, record, SPEED, burst))
        bare = found[f"{record.name} bare"]
        ratios.append(Ratio.between(record, bare, "Detector by bare call", burst))
    return ratios
