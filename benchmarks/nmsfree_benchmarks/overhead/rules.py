"""What the overhead's figures say, beside what was promised of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from nmsfree_benchmarks.common.engines import DEPLOYED, ENGINES
from nmsfree_benchmarks.common.on_device import ran_in
from nmsfree_benchmarks.record.intervals import AIM, Interval, ratio_interval
from nmsfree_benchmarks.record.records import Ratio, Record, Results
from nmsfree_benchmarks.record.verdict import judge

OVERHEAD = "Detector by bare call"
PREPROCESS_LIMIT = 1.5  # ms, a 1080p picture → 512 × 736
# Times the bare call, a 640×480 picture → the nano network; promised of ONNX Runtime on the
# processor: beside the call of a GPU the same preprocessing is a large part.
CALL_LIMIT = 1.15
CALL_SOURCE, PREPROCESS_SOURCE = "640×480", "1920×1080"
LARGE_INPUT = (512, 736)  # height, width
NANO, LARGE = "fcos_e2e_nano", "fcos_e2e_r18_3x"  # the networks
PREPROCESS_BESIDE = NANO  # whose turns preprocessing alone takes part in


@dataclass(frozen=True)
class Target:
    """A promise: what it is about, the most it allows, and what was measured."""

    name: str
    limit: float
    unit: str
    found: Interval
    ranks: bool

    @property
    def met(self) -> bool | None:
        """None where the run does not rank, or the interval has the limit in it."""
        return self.found.within(self.limit) if self.ranks else None

    def __str__(self) -> str:
        said = AIM[self.met] if self.ranks else "not judged"
        found = self.found.text(unit=f" {self.unit}", dash=" … ")
        return f"Target {said}: {self.name}: {found}, at most {self.limit:g}"

    def to_json(self) -> dict[str, Any]:
        return {"target": self.name, "limit": self.limit, "unit": self.unit, "met": self.met} | (
            self.found.to_json()
        )


def median_ms(record: Record, burst: int) -> Interval:
    """The median of a record's times in milliseconds, with its 95 % interval."""
    one = np.full((len(record.times), 1), 1_000_000, np.int64)
    return ratio_interval(record.times, one, burst)


def targets(results: Results) -> Iterator[Target]:
    """Every promise whose record was measured."""
    ranks = judge(results).ranks
    for record in results.records:
        if record.parameters["call"] == "preprocess":
            height, width = LARGE_INPUT
            found = median_ms(record, results.settings["burst"][PREPROCESS_BESIDE])
            name = f"preprocessing {PREPROCESS_SOURCE} → {height} × {width}"
            yield Target(name, PREPROCESS_LIMIT, "ms", found, ranks)
    for engine, ratio in _small_calls(results):
        if engine == DEPLOYED:
            name = f"{NANO}, {CALL_SOURCE}: Detector(image) by the bare call"
            yield Target(name, CALL_LIMIT, "×", ratio.interval, ranks)


def _small_calls(results: Results) -> Iterator[tuple[str, Ratio]]:
    """The nano network's Detector by the bare call on a usual picture, with the engine's key."""
    for ratio in results.ratios:
        record = results.record(ratio.of)
        small = record.subject is not None and record.subject.model == NANO
        if ratio.meaning == OVERHEAD and small and record.parameters["source"] == CALL_SOURCE:
            assert record.subject is not None
            yield record.subject.engine, ratio


def facts_of(results: Results) -> dict[str, Any]:
    """What is written beside the records."""
    return {"targets": [target.to_json() for target in targets(results)]}


def conclusions(results: Results) -> list[str]:
    """The same in words."""
    elsewhere = [
        f"{NANO}, {CALL_SOURCE}, {ENGINES[engine].label}: Detector(image) takes {ratio.interval} × "
        "the bare call."
        for engine, ratio in _small_calls(results)
        if engine != DEPLOYED
    ]
    return [*elsewhere, *(f"{target}." for target in targets(results)), *ran_in(results)]
