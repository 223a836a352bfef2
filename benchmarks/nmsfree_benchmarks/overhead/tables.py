"""The overhead in tables: a row for each size of the source picture."""

from collections.abc import Iterator

import numpy as np

from nmsfree_benchmarks.common.on_device import CPU, device_of
from nmsfree_benchmarks.common.sheets import Sheet, number
from nmsfree_benchmarks.overhead.rules import OVERHEAD
from nmsfree_benchmarks.overhead.stages import PARTS
from nmsfree_benchmarks.record.records import Record, Results

HEADER = (
    *("source", "resize + pad", "engine", "map back", "Python", "Detector", "bare"),
    "Detector / bare (95 %)",
)
DECODE_HEADER = ("source", "format", "MB", "p50 ms", "p99 ms", "MB/s")


def by_call(results: Results, call: str) -> list[Record]:
    """The records of one kind: "detector", "bare", "decode" or "preprocess"."""
    return [record for record in results.records if record.parameters["call"] == call]


def models(results: Results) -> list[str]:
    """Which models were measured, in order."""
    found = (r.subject.model for r in by_call(results, "detector") if r.subject is not None)
    return list(dict.fromkeys(found))


def of_model(results: Results, model: str) -> list[Record]:
    """The whole calls of one model, smallest picture first."""
    records = by_call(results, "detector")
    return [r for r in records if r.subject is not None and r.subject.model == model]


def stage_ms(record: Record) -> dict[str, float]:
    """The median of each stage in milliseconds."""
    return dict(zip(PARTS, (np.median(record.times, axis=0) / 1e6).tolist(), strict=True))


def sheets(results: Results) -> list[Sheet]:
    """Stages of each model, and decoding."""
    return [*(_sheet(results, model) for model in models(results)), *_decoding(results)]


def _sheet(results: Results, model: str) -> Sheet:
    records = of_model(results, model)
    subject = records[0].subject
    assert subject is not None
    height, width = subject.size
    weights = ", stand-in weights" if subject.training == "untrained" else ""
    title = f"{model}, {height} × {width}{weights}: medians in ms, from the picture in memory"
    return Sheet(title, HEADER, tuple(_row(results, record) for record in records))


def _row(results: Results, record: Record) -> tuple[str, ...]:
    ratio = next(r for r in results.ratios if r.of == record.name and r.meaning == OVERHEAD)
    doubt = "" if record.summary.trusted else "!"
    return (
        str(record.parameters["source"]) + doubt,
        *(f"{ms:.3f}" for ms in stage_ms(record).values()),
        f"{record.summary.p50:.3f}",
        f"{results.record(ratio.to).summary.p50:.3f}",
        str(ratio.interval),
    )


def _decoding(results: Results) -> Iterator[Sheet]:
    rows = []
    for record in by_call(results, "decode"):
        megabytes, seconds = record.figures["file_mb"], record.summary.p50 / 1000
        rows.append(
            (
                str(record.parameters["source"]) + ("" if record.summary.trusted else "!"),
                str(record.parameters["format"]),
                f"{megabytes:.2f}",
                f"{record.summary.p50:.2f}",
                number(record.summary.p99, ".2f"),
                f"{megabytes / seconds:.0f}",
            )
        )
    if rows:
        yield Sheet("Reading and decoding a file, before all that", DECODE_HEADER, tuple(rows), 2)


def notes(results: Results) -> list[str]:
    """What the columns mean."""
    on_cpu = device_of(results) == CPU
    bare = "the same file's session.run and nothing else" if on_cpu else "the same call by itself"
    return [
        f"Engine is the backend's call, bare {bare}. Python is what is between the stages: "
        "arguments, thresholds, the answer. Files are read from the system's cache. ! distrusts "
        "itself: interquartile range above 10 % of the median.",
    ]
