"""The rows of `nmsfree bench`: one model in one engine."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from nmsfree.evaluation.evaluate import Metrics
from nmsfree.spec import ModelSpec
from nmsfree_benchmarks.common.engines import DEPLOYED
from nmsfree_benchmarks.machine.measure import STAGES, Summary, Times, shares, summarize
from nmsfree_benchmarks.record.records import Record, Subject
from nmsfree_benchmarks.roofline.limits import reached
from nmsfree_benchmarks.roofline.records import share_figures
from nmsfree_benchmarks.table import device_engines

HASH_DIGITS = 12
EAGER = ("eager_timing", "eager_evaluation", "eager_two_stage", "compiled")
BASELINE, COMPILED = "eager_timing", "compiled"
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

SHORT_ENGINES = {
    "eager_timing": "eager, timing",
    "eager_evaluation": "eager, evaluation",
    "eager_two_stage": "eager, two-stage",
    "onnxruntime": "ONNX Runtime",
    "compiled": "torch.compile",
    **{engine.key: engine.short for engine in device_engines.ALL.values()},
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
        limit_ms: what the graph takes at least, see `limits`; None where no peak is known.
        joules: of the GPU's board for one picture; None where it has no counter.
        device_ms: medians of a native engine's own stages: "h2d_ms", "network_ms", "d2h_ms" on the
            GPU's clock, and "nms_ms" on the host; empty for others.
        memory: of a process with this file and engine alone, see `MemoryMeter.measure`.
        graph: the exported file that was run, or that has the same network.
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
    memory: Mapping[str, float] = field(default_factory=dict)
    graph: Path | None = None

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
        figures |= {**self.device_ms, **self.memory}
        if self.nms_candidates is not None:
            figures["nms_candidates"] = self.nms_candidates
        if self.joules is not None:
            figures["joules_per_image"] = round(self.joules, 4)
        figures |= self._limit_figures()
        yield Record(self.name, {"call": "detector"}, self.times, parts, figures, self.subject)
        for call, times in (("in graph", self.in_graph), ("bare", self.bare)):
            if times is not None:
                yield Record(f"{self.name} {call}", {"call": call}, times, subject=self.subject)

    @property
    def share_of_limit(self) -> float | None:
        """The limit by the median of the engine's call, 0-1; None where it is unknown or none.

        In PyTorch, whose network is not called alone, by that of the whole call.
        """
        if self.limit_ms is None:
            return None
        called = self.times if self.bare is None else self.bare
        return reached(self.limit_ms / summarize(called).p50)

    def _limit_figures(self) -> dict[str, Any]:
        if self.limit_ms is None:
            return {}
        return {"limit_ms": round(self.limit_ms, 4), **share_figures(self.share_of_limit)}
