"""What a stream says: how the times scatter, and whether they follow the number of objects."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmsfree_benchmarks.crowd.stats import slope
from nmsfree_benchmarks.machine.quiet import left_alone, tail
from nmsfree_benchmarks.record.intervals import Interval
from nmsfree_benchmarks.record.records import Ratio, Record, Results

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
    facts = {record.name: _facts(record, results.settings) for record in results.records}
    for order in dict.fromkeys(r.parameters["order"] for r in results.records):
        for name, found in _quiet_facts(results, order).items():
            facts[name] |= found
    return facts


def _quiet_facts(results: Results, order: str) -> dict[str, dict[str, Any]]:
    """What the probes say of the records of one order; nothing where there are none.

    "probe_p99_by_p50": the machine's own tail, of constant work; "quiet_calls": that it left
    alone; "quiet_levels": numbers of objects in their frames; "quiet_p99_by_p50": of these calls
    with its interval, "quiet_probe_p99_by_p50": of the work beside them; None of too few calls.
    """
    own = [r for r in results.records if r.parameters["order"] == order]
    probes = [np.array(r.figures["probes_ns"]) for r in own if "probes_ns" in r.figures]
    if len(probes) < len(own):
        return {}
    burst = results.settings["burst"]
    # Two products of each call of each detector lie together in a turn.
    turns = [work.reshape(-1, 2 * burst) for work in probes]
    machine = tail(np.concatenate(turns, axis=1).ravel() / 1e6, 2 * burst * len(own))
    return {
        record.name: {
            "probe_p99_by_p50": _value(machine),
            "quiet_calls": int(quiet.sum()),
            "quiet_levels": len(set(np.array(record.figures["objects"])[quiet].tolist())),
            "quiet_p99_by_p50": _json(tail(milliseconds(record), burst, quiet)),
            "quiet_probe_p99_by_p50": _value(
                tail(work.ravel() / 1e6, 2 * burst, np.repeat(quiet, 2))
            ),
        }
        for record, work, quiet in zip(own, probes, left_alone(probes), strict=True)
    }


def _value(interval: Interval | None) -> float | None:
    return None if interval is None else round(interval.value, 4)


def _json(interval: Interval | None) -> dict[str, Any] | None:
    return None if interval is None else interval.to_json()


def _facts(record: Record, settings: Mapping[str, Any]) -> dict[str, Any]:
    summary, times, levels = record.summary, milliseconds(record), by_level(record)
    frames = by_frame(record, settings["frames"])
    return {
        "p99_by_p50": None if summary.p99 is None else round(summary.p99 / summary.p50, 4),
        "worst_frame_by_median": round(float(frames.max() / np.median(frames)), 4),
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
