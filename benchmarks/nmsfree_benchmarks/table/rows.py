"""The table of `nmsfree bench`: rows, and the facts and ratios read from them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from nmsfree.evaluate import Metrics
from nmsfree.spec import ModelSpec
from nmsfree_benchmarks.machine.measure import STAGES, Summary, Times, ratio, shares, summarize
from nmsfree_benchmarks.record.records import Ratio, Record, Results, Subject
from nmsfree_benchmarks.record.verdict import Verdict, judge
from nmsfree_benchmarks.table import device_engines

HASH_DIGITS = 12
EAGER = ("eager_timing", "eager_evaluation", "eager_two_stage", "compiled")
BASELINE, COMPILED, DEPLOYED = "eager_timing", "compiled", "onnxruntime"
CPU_ENGINES = {
    "eager_timing": "PyTorch eager, published timing",
    "eager_evaluation": "PyTorch eager, published evaluation",
    "eager_two_stage": "PyTorch eager, two-stage top-k",
    DEPLOYED: "ONNX Runtime",
}
ENGINES = {
    **CPU_ENGINES,
    COMPILED: "PyTorch, torch.compile",
    **{engine.key: engine.label for engine in device_engines.ALL.values()},
}


@dataclass(frozen=True, eq=False)
class Row:
    """One model in one engine.

    Attributes:
        engine: a key of `ENGINES`.
        training: what the weights were trained on; "untrained" for stand-ins.
        spec: what was run, with the floor and NMS of this row.
        sha256: of the file that was timed and evaluated: checkpoint or ONNX.
        times: [timed calls, 3] ns: preprocess, network, post-processing; of ONNX Runtime
            preprocess, the whole graph, mapping to source pixels.
        in_graph: [timed calls, 1] ns of the graph's part behind the raw maps (ONNX Runtime).
        bare: [timed calls, 1] ns of the engine alone.
        nms_candidates: pairs above the floor that enter NMS, mean of a few images; None = no NMS.
        metrics: None where there is nothing to compare with.
        ap_images: images behind `metrics`.
        provider: how the backend describes itself.
        file_bytes: size of the file.
        threads: of the engine.
        state: further attributes of its `Subject`: TF32, CUDA graph, transfers, arithmetic.
        limit_ms: what the graph takes at least, see `limits` (ONNX Runtime).
        joules: of the GPU's board for one picture; None where it has no counter.
        device_ms: medians of a native engine's own stages: "h2d_ms", "network_ms", "d2h_ms" on the
            GPU's clock, and "nms_ms" on the host; empty for others.
    """

    engine: str
    training: str
    spec: ModelSpec
    sha256: str
    times: Times
    in_graph: Times | None = None
    bare: Times | None = None
    nms_candidates: float | None = None
    metrics: Metrics | None = None
    ap_images: int = 0
    provider: str = ""
    file_bytes: int = 0
    threads: int = 1
    state: Mapping[str, Any] = field(default_factory=dict)
    limit_ms: float | None = None
    joules: float | None = None
    device_ms: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def summary(self) -> Summary:
        return summarize(self.times)

    @cached_property
    def shares(self) -> dict[str, float]:
        return shares(self.times, self.in_graph)

    def stage_ms(self, stage: str) -> float:
        """Milliseconds of one stage; the stages sum to the median."""
        return self.shares[stage] * self.summary.p50

    @property
    def file_hash(self) -> str:
        return self.sha256[:HASH_DIGITS]

    @property
    def name(self) -> str:
        return f"{self.spec.name} {self.engine}"

    @property
    def size_key(self) -> str:
        """Names the rows that were timed together: "256x256"."""
        return f"{self.spec.height}x{self.spec.width}"

    @property
    def subject(self) -> Subject:
        metrics = self.metrics
        return Subject.of(
            self.spec,
            training=self.training,
            sha256=self.sha256,
            file_bytes=self.file_bytes,
            engine=self.engine,
            provider=self.provider,
            threads=self.threads,
            ap=None if metrics is None else round(metrics.ap, 5),
            ap50=None if metrics is None else round(metrics.ap50, 5),
            **{"ap_images": self.ap_images} | dict(self.state),
        )

    def records(self) -> Iterator[Record]:
        """The row, and what was timed of it besides."""
        eager = self.engine in EAGER
        parts = STAGES if eager else ("preprocess", "graph", "to_source")
        figures = {f"{stage}_share": round(self.shares[stage], 4) for stage in STAGES}
        figures |= self.device_ms
        if self.nms_candidates is not None:
            figures["nms_candidates"] = self.nms_candidates
        if self.joules is not None:
            figures["joules_per_image"] = round(self.joules, 4)
        yield Record(self.name, {"call": "detector"}, self.times, parts, figures, self.subject)
        for call, times in (("in graph", self.in_graph), ("bare", self.bare)):
            if times is not None:
                extra = self._limit_figures() if call == "bare" else {}
                name = f"{self.name} {call}"
                yield Record(name, {"call": call}, times, figures=extra, subject=self.subject)

    @property
    def share_of_limit(self) -> float | None:
        """The limit by the median of the bare call, 0-1; None where either is unknown."""
        if self.limit_ms is None or self.bare is None:
            return None
        return self.limit_ms / summarize(self.bare).p50

    def _limit_figures(self) -> dict[str, float]:
        if self.limit_ms is None or self.share_of_limit is None:
            return {}
        limit, share = round(self.limit_ms, 4), round(self.share_of_limit, 4)
        return {"limit_ms": limit, "share_of_limit": share}


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
            grouped.setdefault(_size(row), []).append(row)
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
                    meaning = f"eager by {ENGINES[row.engine]}"
                    yield Ratio.between(eager, own, meaning, burst)
                if bare is not None:
                    yield Ratio.between(own, bare, "Detector by bare call", burst)
                for other in rows:
                    if other.engine == row.engine and other.spec.nms and not row.spec.nms:
                        with_nms = found[other.name]
                        yield Ratio.between(with_nms, own, "with NMS by without", burst)


def _size(row: Row) -> tuple[int, int, int]:
    return row.spec.height, row.spec.width, len(row.spec.class_names)


def speedups(rows: Iterable[Row]) -> dict[str, float]:
    """Model → median of the eager baseline (published timing settings) by that of ONNX Runtime."""
    by_key = {(row.spec.name, row.engine): row for row in rows}
    return {
        name: round(ratio(by_key[name, BASELINE].times, row.times), 3)
        for (name, engine), row in by_key.items()
        if engine == DEPLOYED and (name, BASELINE) in by_key
    }


def overheads(rows: Iterable[Row]) -> dict[str, float]:
    """Model → median of `Detector(image)` by that of `session.run` alone, in ONNX Runtime."""
    return {
        row.spec.name: round(ratio(row.times, row.bare), 3)
        for row in rows
        if row.engine == DEPLOYED and row.bare is not None
    }


def limit_shares(rows: Iterable[Row]) -> dict[str, float]:
    """Model → what part of the bare call's time is the limit of this processor, 0-1."""
    shares = ((row.spec.name, row.share_of_limit) for row in rows)
    return {name: round(share, 3) for name, share in shares if share is not None}


def postprocess_ms(rows: Iterable[Row]) -> dict[str, float]:
    """Model → milliseconds of post-processing, with NMS where there is one, in ONNX Runtime."""
    return {
        row.spec.name: round(row.stage_ms("postprocess"), 3)
        for row in rows
        if row.engine == DEPLOYED
    }


def ap_gaps(rows: Iterable[Row]) -> dict[str, float]:
    """NMS-free model → its AP minus that of the NMS model of its size, both in ONNX Runtime."""
    deployed = [r for r in rows if r.engine == DEPLOYED and r.metrics is not None]
    with_nms = {_size(r): r.metrics.ap for r in deployed if r.spec.nms and r.metrics}
    return {
        r.spec.name: round(r.metrics.ap - with_nms[_size(r)], 5)
        for r in deployed
        if r.metrics is not None and r.spec.nms is None and _size(r) in with_nms
    }
