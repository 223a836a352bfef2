"""What was measured: rows, and the facts read from them; as JSON without paths or host names."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from nmsfree.evaluate import Metrics
from nmsfree.spec import ModelSpec
from nmsfree_benchmarks.measure import STAGES, Summary, Times, ratio, shares, summarize

FORMAT_VERSION = "1.0"
HASH_DIGITS = 12
BASELINE, DEPLOYED = "eager_timing", "onnxruntime"
ENGINES = {
    "eager_timing": "PyTorch eager, published timing",
    "eager_evaluation": "PyTorch eager, published evaluation",
    "eager_two_stage": "PyTorch eager, two-stage top-k",
    "onnxruntime": "ONNX Runtime",
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
        bare: [timed calls, 1] ns of `session.run` alone (ONNX Runtime).
        nms_candidates: pairs above the floor that enter NMS, mean of a few images; None = no NMS.
        metrics: None where there is nothing to compare with.
        ap_images: images behind `metrics`.
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

    def to_json(self) -> dict[str, Any]:
        """Every column, then the raw times in microseconds."""
        spec, summary = self.spec, self.summary
        return {
            "model": spec.name,
            "size": [spec.height, spec.width],
            "classes": len(spec.class_names),
            "head": spec.head,
            "engine": self.engine,
            "engine_label": ENGINES[self.engine],
            "precision": spec.precision,
            "training": self.training,
            "score_floor": spec.score_floor,
            "nms": None if spec.nms is None else asdict(spec.nms),
            "nms_candidates": self.nms_candidates,
            "fps": round(summary.fps, 3),
            "p50_ms": round(summary.p50, 3),
            "p90_ms": round(summary.p90, 3),
            "p99_ms": round(summary.p99, 3),
            "spread": round(summary.spread, 4),
            "trusted": summary.trusted,
            "share": {stage: round(self.shares[stage], 4) for stage in STAGES},
            "AP": None if self.metrics is None else round(self.metrics.ap, 5),
            "AP50": None if self.metrics is None else round(self.metrics.ap50, 5),
            "ap_images": self.ap_images,
            "file_hash": self.file_hash,
            "timed_calls": len(self.times),
            "raw_us": self._raw(),
        }

    def _raw(self) -> dict[str, list[int]]:
        names = ("preprocess", "graph", "to_source") if self.engine == DEPLOYED else STAGES
        raw = dict(zip(names, self.times.T, strict=True))
        for name, times in (("graph_after_raw_maps", self.in_graph), ("bare_run", self.bare)):
            if times is not None:
                raw[name] = times[:, 0]
        return {name: ((values + 500) // 1000).tolist() for name, values in raw.items()}


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
    """

    stamp: str
    environment: Mapping[str, Any]
    quick: bool
    rows: tuple[Row, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def groups(self) -> list[list[Row]]:
        """Rows by input size and number of classes, in order."""
        grouped: dict[tuple[int, int, int], list[Row]] = {}
        for row in self.rows:
            grouped.setdefault(_size(row), []).append(row)
        return list(grouped.values())

    def to_json(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "stamp": self.stamp,
            "quick": self.quick,
            "seconds": round(self.seconds, 1),
            "environment": dict(self.environment),
            "skipped": dict(self.skipped),
            "facts": {
                "onnxruntime_speedup": speedups(self.rows),
                "detector_overhead": overheads(self.rows),
                "onnxruntime_postprocess_ms": postprocess_ms(self.rows),
                "ap_gap": ap_gaps(self.rows),
            },
            "rows": [row.to_json() for row in self.rows],
        }


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
    """Model → median of `Detector(image)` by that of `session.run` alone."""
    return {
        row.spec.name: round(ratio(row.times, row.bare), 3) for row in rows if row.bare is not None
    }


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
