"""Throughput in tables: a row for each load, smallest first."""

from nmsfree_benchmarks.common.on_device import CPU, device_of
from nmsfree_benchmarks.common.sheets import Sheet, number
from nmsfree_benchmarks.record.records import Record, Results
from nmsfree_benchmarks.throughput.rules import AXES, PER_IMAGE, curves

HEADER = (
    *("load", "images/s", "ms/image", "by that of single (95 %)", "call p50 ms", "call p99 ms"),
    "CPU ms/image",
)


def sheets(results: Results) -> list[Sheet]:
    """A table for each model and number of engine threads: batches, then streams."""
    found: dict[str, list[tuple[str, ...]]] = {}
    for axis in AXES[::-1]:
        for curve in curves(results.records):
            if curve.axis == axis:
                rows = found.setdefault(curve.name, [])
                # one image at a time is the first of both curves
                new = curve.records[1:] if rows else curve.records
                rows += [_row(results, record, axis) for record in new]
    return [Sheet(name, HEADER, tuple(rows)) for name, rows in found.items()]


def _row(results: Results, record: Record, axis: str) -> tuple[str, ...]:
    ratios = (r for r in results.ratios if r.of == record.name and r.meaning == PER_IMAGE)
    ratio = next(ratios, None)
    size = record.parameters[axis]
    load = f"batch {size}" if axis == "batch" else f"{size} streams"
    return (
        ("single" if size == 1 else load) + ("" if record.summary.trusted else "!"),
        record.summary.fps_text,
        f"{record.summary.p50:.2f}",
        "1" if ratio is None else str(ratio.interval),
        f"{record.figures['call_p50_ms']:.2f}",
        number(record.figures["call_p99_ms"], ".2f"),
        f"{record.figures['processor_ms_per_image']:.2f}",
    )


def notes(results: Results) -> list[str]:
    """What the columns mean."""
    window = results.settings["window_s"]
    return [
        f"Every load runs for windows of {window:g} s, in turn with all others, from pictures in "
        "memory to boxes; images/s is the median of its windows, single is one image a call and "
        "one stream. Streams are threads that share "
        "one Detector, each with one image a call. CPU ms is the processor time of an image, "
        "with what the engine's threads spend waiting. ! distrusts itself: interquartile range "
        "of its windows above 10 % of the median.",
        *([] if device_of(results) == CPU else ["Every batch has a file of its own."]),
    ]
