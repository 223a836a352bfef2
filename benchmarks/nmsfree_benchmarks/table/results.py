"""One run of the table: its rows, and what its result file says of them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from nmsfree_benchmarks.common.engines import REFERENCES
from nmsfree_benchmarks.record.records import EAGER_BY, FP32_BY, Ratio, Results
from nmsfree_benchmarks.record.verdict import Verdict, judge
from nmsfree_benchmarks.table.facts import (
    ap_gaps,
    beside_fp32,
    limit_shares,
    overheads,
    postprocess_ms,
    size_of,
    speedups,
)
from nmsfree_benchmarks.table.rows import BASELINE, EAGER, ENGINES, Row


@dataclass(frozen=True)
class Report:
    """One run of the benchmark.

    Attributes:
        stamp: UTC time of the start, YYYYMMDDTHHMMSSZ.
        environment: see `environment.describe`.
        quick: fewer rounds, rows and images.
        rows: in the order of the tables; rows of one size were timed together.
        skipped: model → why it is not there.
        seconds: the whole run took this long.
        command: that repeats it.
        other_load: cores that others kept busy while rounds were timed; None = unknown.
        bursts: timed calls of a turn, by their rows' `size_key`.
        settings: how it was timed, where not in the usual way.
    """

    stamp: str
    environment: Mapping[str, Any]
    quick: bool
    rows: tuple[Row, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    command: str = "nmsfree bench"
    other_load: float | None = None
    bursts: Mapping[str, int] = field(default_factory=dict)
    settings: Mapping[str, float] = field(default_factory=dict)

    def groups(self) -> list[list[Row]]:
        """Rows by input size and number of classes, in order."""
        grouped: dict[tuple[int, int, int], list[Row]] = {}
        for row in self.rows:
            grouped.setdefault(size_of(row), []).append(row)
        return list(grouped.values())

    def results(self) -> Results:
        """What is written to the result file."""
        return self._results

    @property
    def verdict(self) -> Verdict:
        """Whether rows may be ranked."""
        return judge(self._results)

    @cached_property
    def _results(self) -> Results:
        return Results(
            kind="table",
            stamp=self.stamp,
            command=self.command,
            quick=self.quick,
            environment=self.environment,
            records=tuple(record for row in self.rows for record in row.records()),
            other_load=self.other_load,
            settings={"bursts": dict(self.bursts), **self.settings},
            ratios=tuple(self._ratios()),
            facts={
                "onnxruntime_speedup": speedups(self.rows),
                "detector_overhead": overheads(self.rows),
                "onnxruntime_postprocess_ms": postprocess_ms(self.rows),
                "ap_gap": ap_gaps(self.rows),
                "share_of_limit": limit_shares(self.rows),
                "speed_beside_fp32": beside_fp32(self.rows),
            },
            skipped=self.skipped,
            seconds=self.seconds,
        )

    def _ratios(self) -> Iterator[Ratio]:
        """Eager by ONNX Runtime, Detector by bare call, and with NMS by without, of one engine."""
        for rows in self.groups():
            burst = self.bursts.get(rows[0].size_key, 1)
            found = {record.name: record for row in rows for record in row.records()}
            for row in rows:
                own = found[row.name]
                eager = found.get(f"{row.spec.name} {BASELINE}")
                bare = found.get(f"{row.name} bare")
                if row.engine not in EAGER and eager is not None:
                    meaning = f"{EAGER_BY} {ENGINES[row.engine]}"
                    yield Ratio.between(eager, own, meaning, burst)
                plain = next(
                    (found[key] for e in REFERENCES if (key := f"{row.spec.name} {e}") in found),
                    None,
                )
                if row.engine not in EAGER and plain is not None and plain is not own:
                    yield Ratio.between(plain, own, f"{FP32_BY} by {ENGINES[row.engine]}", burst)
                if bare is not None:
                    yield Ratio.between(own, bare, "Detector by bare call", burst)
                for other in rows:
                    if other.engine == row.engine and other.spec.nms and not row.spec.nms:
                        with_nms = found[other.name]
                        yield Ratio.between(with_nms, own, "with NMS by without", burst)
