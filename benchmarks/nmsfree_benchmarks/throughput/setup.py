"""A detector under one load: how it is timed, and its record."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nmsfree.detector import Detector
from nmsfree_benchmarks.common.on_device import subject_on
from nmsfree_benchmarks.machine.measure import Image, Times, percentile
from nmsfree_benchmarks.record.records import Ratio, Record
from nmsfree_benchmarks.table.eager import Source
from nmsfree_benchmarks.throughput.rules import PER_IMAGE, WITH_NMS
from nmsfree_benchmarks.throughput.streams import Window, run_window


@dataclass(eq=False)
class Setup:
    """A detector under one load; called as `measure.Call` it runs one window."""

    source: Source
    file: Path
    device: str
    detector: Detector
    threads: int
    batch: int
    streams: int
    pictures: Sequence[Image]
    seconds: float
    windows: list[Window] = field(default_factory=list)

    @property
    def name(self) -> str:
        return (
            f"{self.source.name} threads {self.threads} batch {self.batch} streams {self.streams}"
        )

    def __call__(self, _: Image) -> Sequence[int]:
        """Nanoseconds per image of a window of all pictures."""
        window = run_window(self.detector, self.pictures, self.batch, self.streams, self.seconds)
        self.windows.append(window)
        return (window.elapsed_ns // window.images,)

    def record(self, times: Times) -> Record:
        """Times [windows, 1] ns an image; latency and processor time of the same windows."""
        kept = self.windows[-len(times) :]  # without the warm-up
        calls = np.concatenate([window.calls_ns for window in kept]) / 1e6
        p99 = percentile(calls, 99)
        images = sum(window.images for window in kept)
        processor = sum(window.processor_ns for window in kept) / images / 1e6
        subject = subject_on(
            self.device,
            self.detector.backend,
            self.file,
            training=self.source.training,
            threads=self.threads,
            batch=self.batch,
        )
        figures = {
            "images": images,
            "call_p50_ms": round(float(np.median(calls)), 3),
            "call_p99_ms": None if p99 is None else round(p99, 3),
            "processor_ms_per_image": round(processor, 4),
        }
        load = {"batch": self.batch, "streams": self.streams, "threads": self.threads}
        return Record(self.name, load, times, ("image",), figures, subject)


def ratios_of(records: Sequence[Record]) -> list[Ratio]:
    """Every load by one image at a time, and with NMS by without under the same load."""
    by_key = {
        (r.subject.model, *r.parameters.values()): r for r in records if r.subject is not None
    }
    ratios = []
    for (model, batch, streams, threads), record in by_key.items():
        single = by_key[model, 1, 1, threads]
        if record is not single:
            ratios.append(Ratio.between(record, single, PER_IMAGE))
        assert record.subject is not None
        for (_, *load), other in by_key.items():
            same = tuple(load) == (batch, streams, threads)
            if same and record.subject.nms is None and other.subject and other.subject.nms:
                ratios.append(Ratio.between(other, record, WITH_NMS))
    return ratios
