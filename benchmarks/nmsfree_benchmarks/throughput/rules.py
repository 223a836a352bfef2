"""Where throughput saturates, by rule."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nmsfree_benchmarks.common.engines import ENGINES
from nmsfree_benchmarks.common.on_device import ran_in
from nmsfree_benchmarks.record.intervals import ratio_interval
from nmsfree_benchmarks.record.records import Record, Results
from nmsfree_benchmarks.record.verdict import judge

NEAR = 1.05  # times the time of the best one up to which a configuration is as good
AXES = ("streams", "batch")  # what grows along a curve; the other one is 1
WITH_NMS, PER_IMAGE = "with NMS by without", "time of an image by that of one at a time"


@dataclass(frozen=True)
class Curve:
    """Records of one model and number of engine threads along one axis, smallest first."""

    model: str
    threads: int
    axis: str
    records: tuple[Record, ...]

    @property
    def name(self) -> str:
        return f"{self.model}, {engine_text(self.records[0])}"


def engine_text(record: Record) -> str:
    """What tells curves of one model apart: "2 engine threads", and of a GPU the engine."""
    assert record.subject is not None
    if on_a_gpu(record):
        return ENGINES[record.subject.engine].label
    threads = int(record.parameters["threads"])
    return f"{threads} engine thread" + ("s" if threads > 1 else "")


def on_a_gpu(record: Record) -> bool:
    """Whether pictures go elsewhere to be seen."""
    return record.subject is not None and record.subject.transfers != "none"


def curves(records: Sequence[Record]) -> list[Curve]:
    """Sort records into curves; that of one stream and batch 1 begins both of its engine's."""
    groups: dict[tuple[str, int, str], list[Record]] = {}
    for axis, other in (AXES, AXES[::-1]):
        for record in records:
            p = record.parameters
            if record.subject is not None and p[other] == 1:
                groups.setdefault((record.subject.model, p["threads"], axis), []).append(record)
    return [
        Curve(*key, tuple(sorted(found, key=lambda r: int(r.parameters[key[2]]))))
        for key, found in groups.items()
    ]


@dataclass(frozen=True)
class Saturation:
    """Attributes:
    at: the smallest record that is surely as good as the best one.
    best: the record with the most images a second.
    open_end: whether more may give more: nothing before the last is surely as good as the last.
    """

    curve: Curve
    at: Record
    best: Record
    open_end: bool

    def __str__(self) -> str:
        axis = self.curve.axis
        at, best = (_amount(axis, r.parameters[axis]) for r in (self.at, self.best))
        reach = "reach" if axis == "streams" and self.at.parameters[axis] > 1 else "reaches"
        text = f"{self.curve.name}: {at} {reach} {self.at.summary.fps:.0f} images/s"
        if self.at is not self.best:
            text += f", the best ({best}) {self.best.summary.fps:.0f}"
        if not self.open_end:
            return f"{text}: saturated"
        if self.at is self.curve.records[-1]:
            return f"{text}: not saturated within what was tried"
        return f"{text}: undecided whether more gives more"


def _amount(axis: str, number: int) -> str:
    if axis == "batch":
        return f"batch {number}"
    return f"{number} stream" + ("s" if number > 1 else "")


def saturation(curve: Curve) -> Saturation:
    """Find the smallest configuration whose time per image is surely near that of the best."""
    best = min(curve.records, key=lambda r: r.summary.p50)
    at = next(r for r in curve.records if r is best or _near(r, best))
    last = curve.records[-1]
    open_end = len(curve.records) > 1 and (at is last or not _near(at, last))
    return Saturation(curve, at, best, open_end)


def _near(record: Record, best: Record) -> bool:
    return ratio_interval(record.times, best.times).high <= NEAR


def facts_of(results: Results) -> dict[str, Any]:
    """What is written beside the records; no saturation where the run does not rank."""
    if not judge(results).ranks:
        return {"saturation": []}
    found = [saturation(curve) for curve in curves(results.records)]
    return {
        "saturation": [
            {
                "model": s.curve.model,
                "threads": s.curve.threads,
                "axis": s.curve.axis,
                "at": s.at.parameters[s.curve.axis],
                "best": s.best.parameters[s.curve.axis],
                "open_end": s.open_end,
                "images_per_second": round(s.at.summary.fps, 1),
            }
            for s in found
        ]
    }


def conclusions(results: Results) -> list[str]:
    """The same in words, and the most images a second of each model."""
    if not judge(results).ranks:
        unsure = "No saturation point and no winner: this run cannot tell its rows apart."
        return [unsure, *ran_in(results)]
    lines = [f"{saturation(curve)}." for curve in curves(results.records)]
    return [*lines, *_most(results), *ran_in(results)]


def _most(results: Results) -> list[str]:
    best: dict[str, Record] = {}
    for record in results.records:
        assert record.subject is not None
        known = best.get(record.subject.model)
        if known is None or record.summary.p50 < known.summary.p50:
            best[record.subject.model] = record
    return [
        f"{model} at most: {r.summary.fps:.0f} images/s, batch {r.parameters['batch']}, streams "
        f"{r.parameters['streams']}"
        + ("." if on_a_gpu(r) else f", engine threads {r.parameters['threads']}.")
        for model, r in best.items()
    ]
