"""What a stream says: how the times scatter, and whether they follow the number of objects."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmsfree_benchmarks.common.sheets import Sheet
from nmsfree_benchmarks.crowd.stats import slope
from nmsfree_benchmarks.record.intervals import Interval
from nmsfree_benchmarks.record.records import Ratio, Record, Results
from nmsfree_benchmarks.record.verdict import judge

WITH_BY_FREE = "call with NMS by the NMS-free call, same frames"
FLAT = 0.01  # of the median: so little for the whole stream's change of objects is no dependence


def milliseconds(record: Record) -> NDArray[np.float64]:
    """Return the time of every call, float64 [timed calls]."""
    total: NDArray[np.float64] = record.times.sum(axis=1) / 1e6
    return total


def label(record: Record) -> str:
    """Short name of a detector: "NMS, floor 0.05"."""
    assert record.subject is not None
    if record.subject.nms is None:
        return "NMS-free"
    return f"NMS, floor {record.parameters['floor']:g}"


def by_level(record: Record) -> dict[int, float]:
    """Return the median milliseconds of the calls with each number of objects."""
    objects, times = np.array(record.figures["objects"]), milliseconds(record)
    return {int(n): float(np.median(times[objects == n])) for n in np.unique(objects)}


def by_frame(record: Record, frames: int) -> NDArray[np.float64]:
    """Return the median milliseconds of each frame over the passes, [frames].

    What happens to the machine during one pass is not in it; what a frame costs is.
    """
    medians: NDArray[np.float64] = np.median(milliseconds(record).reshape(-1, frames), axis=0)
    return medians


def facts_of(results: Results) -> dict[str, Any]:
    """Return the facts of every record, by its name."""
    return {record.name: _facts(record, results.settings) for record in results.records}


def _facts(record: Record, settings: Mapping[str, Any]) -> dict[str, Any]:
    summary, times, levels = record.summary, milliseconds(record), by_level(record)
    middle, high = np.percentile(by_frame(record, settings["frames"]), (50, 99))
    return {
        "p99_by_p50": round(summary.p99 / summary.p50, 4),
        "frame_p99_by_p50": round(float(high / middle), 4),
        "worst_by_p50": round(float(times.max()) / summary.p50, 4),
        "slowest_level_by_fastest": round(max(levels.values()) / min(levels.values()), 4),
        "ms_per_100_objects": slope(times, record.figures["objects"], settings["burst"]).to_json(),
    }


def ratios_of(results: Results) -> Iterator[Ratio]:
    """Every detector with NMS by the NMS-free one of the same stream."""
    for order in dict.fromkeys(r.parameters["order"] for r in results.records):
        own = [r for r in results.records if r.parameters["order"] == order]
        free = next(r for r in own if label(r) == "NMS-free")
        for record in own:
            if record is not free:
                yield Ratio.between(record, free, WITH_BY_FREE, results.settings["burst"])


def sheet(results: Results) -> Sheet:
    """One row for each detector and order."""
    header = (
        "order",
        "detector",
        "p50",
        "p99",
        "worst",
        "p99/p50",
        "by frame",
        "ms per 100 objects (95 %)",
    )
    return Sheet(
        "A stream whose crowding changes, ms a frame",
        header,
        tuple(_row(results, record) for record in results.records),
        words=2,
    )


def _row(results: Results, record: Record) -> tuple[str, ...]:
    facts, summary = results.facts[record.name], record.summary
    doubt = "" if summary.trusted else "!"
    return (
        record.parameters["order"],
        label(record),
        f"{summary.p50:.1f}{doubt}",
        f"{summary.p99:.1f}",
        f"{milliseconds(record).max():.1f}",
        f"{facts['p99_by_p50']:.2f}",
        f"{facts['frame_p99_by_p50']:.2f}",
        signed(Interval(**facts["ms_per_100_objects"])),
    )


def signed(interval: Interval) -> str:
    """A slope with its interval: "+0.12 (+0.05 – +0.20)"."""
    value, low, high = (round(v, 2) + 0.0 for v in (interval.value, interval.low, interval.high))
    return f"{value:+.2f} ({low:+.2f} – {high:+.2f})"  # + 0.0 makes 0 of −0


def conclusions(results: Results) -> list[str]:
    """Say it in sentences; whether content matters only where the run may be believed."""
    lines = [*_scatter(results), _stream(results), *_found(results)]
    if not judge(results).ranks:
        return [*lines, "The machine was too noisy to rank: whose times depend on content is open."]
    return lines + [_dependence(results, record) for record in results.records]


def _scatter(results: Results) -> Iterator[str]:
    """p99 by p50 of every detector, one line for each order."""
    for order in dict.fromkeys(r.parameters["order"] for r in results.records):
        own = [r for r in results.records if r.parameters["order"] == order]
        facts = {label(r): results.facts[r.name] for r in own}
        said = (
            f"{name} {f['p99_by_p50']:.2f} (by frame {f['frame_p99_by_p50']:.2f})"
            for name, f in facts.items()
        )
        yield f"p99 / p50, {order}: {', '.join(said)}."


def _stream(results: Results) -> str:
    s = results.settings
    height, width = s["size"]
    return (
        f"{s['frames']} frames of {height} × {width} pixels, {s['passes']} passes in each order, "
        f"turns of {s['burst']} frames; NMS with IoU {s['iou']:g} within a class, {s['top_k']} "
        "rows of output; from the picture in memory to boxes in its pixels."
    )


def _found(results: Results) -> Iterator[str]:
    first = results.records[0].parameters["order"]
    for record in results.records:
        if record.parameters["order"] == first:
            objects = record.figures["objects"]
            yield (
                f"{label(record)} finds {record.figures['found_empty']:.0f} with a score above 0.3 "
                f"in frames of {min(objects)} objects, {record.figures['found_fullest']:.0f} in "
                f"frames of {max(objects)}."
            )


def _dependence(results: Results, record: Record) -> str:
    interval = Interval(**results.facts[record.name]["ms_per_100_objects"])
    objects = record.figures["objects"]
    change = abs(interval.value) * (max(objects) - min(objects)) / 100
    unsure = interval.low <= 0 <= interval.high
    small = change <= FLAT * record.summary.p50
    verdict = "no dependence on content is seen" if unsure or small else "depends on content"
    which = f"{record.parameters['order']}, {label(record)}"
    return f"{which}: {signed(interval)} ms per 100 objects: {verdict}."
