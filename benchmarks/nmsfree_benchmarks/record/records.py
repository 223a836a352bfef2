"""What every benchmark leaves behind: records with raw times, ratios with intervals, one file.

The format is `results.schema.json`. It holds no paths and no host names.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from nmsfree.spec import ModelSpec
from nmsfree_benchmarks.machine.measure import Summary, Times, summarize
from nmsfree_benchmarks.record.intervals import FEWEST_ROUNDS, Interval, ratio_interval

FORMAT_VERSION = "2.1"
EAGER_BY, FP32_BY = "eager by", "FP32 in ONNX Runtime"  # how meanings of speeds begin


@dataclass(frozen=True)
class Subject:
    """The model that was timed, and in which state.

    Attributes:
        model, head, size, classes: name; "o2m" (with NMS) or "o2o"; (height, width) in pixels.
        training: what the weights were trained on; "untrained" for stand-ins.
        sha256, file_bytes: of the file that was timed and evaluated.
        engine: short key, as in `engine_label`'s tables; the same in every file.
        provider: what really ran it, as the backend describes itself.
        precision: of the network's arithmetic.
        tf32, cuda_graph: None where there is no such thing (on a processor).
        transfers: "none" where everything is in the processor's memory; else what of the copies
            to and from the device is inside the timer: "in and out", "in", "out", "outside".
        batch, threads: images of a call; processor threads of the engine.
        top_k, score_floor, nms: of the output; `nms` is None without NMS.
        ap, ap50, ap_images: COCO AP 0-1 of that very file in that engine; None = not measured.
    """

    model: str
    head: str
    size: tuple[int, int]
    classes: int
    training: str
    sha256: str
    file_bytes: int
    engine: str
    provider: str
    precision: str
    batch: int
    threads: int
    top_k: int
    score_floor: float
    nms: Mapping[str, Any] | None
    tf32: bool | None = None
    cuda_graph: bool | None = None
    transfers: str = "none"
    ap: float | None = None
    ap50: float | None = None
    ap_images: int = 0

    @classmethod
    def of(cls, spec: ModelSpec, **rest: Any) -> "Subject":
        """Describe a model by its spec and what the spec does not know (the other attributes)."""
        known: dict[str, Any] = {
            "model": spec.name,
            "head": spec.head,
            "size": (spec.height, spec.width),
            "classes": len(spec.class_names),
            "precision": spec.precision,
            "batch": spec.batch or 1,
            "top_k": spec.top_k,
            "score_floor": spec.score_floor,
            "nms": None if spec.nms is None else asdict(spec.nms),
        }
        return cls(**(known | rest))

    def graph_beside(self, other: "Subject") -> str:
        """Say that only one of both replays a CUDA graph, which is part of their difference."""
        if self.cuda_graph == other.cuda_graph:
            return ""
        return f" (only {(self if self.cuda_graph else other).model} replays a CUDA graph)"

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"size": list(self.size)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Subject":
        return cls(**{**values, "size": tuple(values["size"])})


@dataclass(frozen=True, eq=False)
class Record:
    """One thing that was timed.

    Attributes:
        name: the only one of this name in its file.
        parameters: what tells it from its neighbours beside the subject: objects, floor, streams …
            JSON values; two records with equal subject state and parameters are comparable.
        times: [timed calls, parts] ns; a call's time is the sum of its parts.
        parts: names of the columns.
        figures: further measured numbers, with their unit in the name: "peak_rss_mb".
        subject: None where no model was timed (an NMS alone, a copy).
    """

    name: str
    parameters: Mapping[str, Any]
    times: Times
    parts: tuple[str, ...] = ("total",)
    figures: Mapping[str, Any] = field(default_factory=dict)
    subject: Subject | None = None

    @property
    def summary(self) -> Summary:
        return summarize(self.times)

    def to_json(self) -> dict[str, Any]:
        s = self.summary
        return {
            "name": self.name,
            "subject": None if self.subject is None else self.subject.to_json(),
            "parameters": dict(self.parameters),
            "figures": dict(self.figures),
            "fps": round(s.fps, 3),
            "p50_ms": round(s.p50, 4),
            "p90_ms": None if s.p90 is None else round(s.p90, 4),
            "p99_ms": None if s.p99 is None else round(s.p99, 4),
            "worst_ms": round(float(self.times.sum(axis=1).max()) / 1e6, 4),
            "spread": round(s.spread, 4),
            "drift": round(s.drift, 4),
            "trusted": s.trusted,
            "timed_calls": len(self.times),
            "raw_ns": dict(zip(self.parts, self.times.T.tolist(), strict=True)),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Record":
        raw = values["raw_ns"]
        subject = values["subject"]
        return cls(
            values["name"],
            values["parameters"],
            np.array(list(raw.values()), np.int64).T,
            tuple(raw),
            values["figures"],
            None if subject is None else Subject.from_json(subject),
        )


@dataclass(frozen=True)
class Ratio:
    """Time of one record by that of another, of the same rounds.

    Attributes:
        of, to: names of records.
        meaning: "ONNX Runtime by eager PyTorch"; records of two runs are compared by it.
    """

    of: str
    to: str
    meaning: str
    interval: Interval

    @property
    def is_speed(self) -> bool:
        """Whether it says how fast `to` is beside a reference: then more is better."""
        return self.meaning.startswith((EAGER_BY, FP32_BY))

    @classmethod
    def between(cls, of: Record, to: Record, meaning: str, burst: int = 1) -> "Ratio":
        return cls(of.name, to.name, meaning, ratio_interval(of.times, to.times, burst))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Ratio":
        return cls(values["of"], values["to"], values["meaning"], Interval.from_json(values))

    def to_json(self) -> dict[str, Any]:
        names = {"of": self.of, "to": self.to, "meaning": self.meaning}
        return names | self.interval.to_json() | {"decided": self.interval.decides}


@dataclass(frozen=True)
class Results:
    """One run of one benchmark.

    Attributes:
        kind: "table", "nms", "jitter", "frontier", "throughput", "overhead" or "roofline".
        stamp: UTC time of the start, YYYYMMDDTHHMMSSZ.
        command: that repeats it, without paths.
        quick: fewer rounds, rows and images: for a first look, not for a report.
        environment: see `environment.describe`.
        other_load: cores that others kept busy while it was measured; None = unknown.
        settings: of the run, beside those of each record: burst, seconds, images …
        facts: what the benchmark read from its times, by name; ready to be printed.
        skipped: what is not there → why.
        seconds: the whole run took this long.
    """

    kind: str
    stamp: str
    command: str
    quick: bool
    environment: Mapping[str, Any]
    records: tuple[Record, ...]
    other_load: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    ratios: tuple[Ratio, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def record(self, name: str) -> Record:
        """Return the record of this name.

        Raises:
            KeyError: there is none.
        """
        return next((r for r in self.records if r.name == name), None) or _missing(name)

    def burst(self, record: Record) -> int:
        """Timed calls of a turn: one number for the run, or by a parameter, model or size."""
        burst = self.settings.get("burst", self.settings.get("bursts", 1))
        if not isinstance(burst, Mapping):
            return int(burst)
        s = record.subject
        of_subject = () if s is None else (s.model, "x".join(map(str, s.size)))
        keys = [key for key in (*record.parameters.values(), *of_subject) if isinstance(key, str)]
        return next((int(burst[key]) for key in keys if key in burst), 1)

    def rounds(self, record: Record) -> int:
        """How many turns a record had."""
        return max(1, len(record.times) // self.burst(record))

    def to_json(self) -> dict[str, Any]:
        from nmsfree_benchmarks.record.verdict import judge

        return {
            "format": "nmsfree-benchmark",
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
            "stamp": self.stamp,
            "command": self.command,
            "quick": self.quick,
            "seconds": round(self.seconds, 1),
            "environment": dict(self.environment),
            "other_load_cores": self.other_load,
            "verdict": judge(self).to_json(),
            "settings": dict(self.settings),
            "facts": dict(self.facts),
            "ratios": [ratio.to_json() for ratio in self.ratios],
            "skipped": dict(self.skipped),
            "records": [record.to_json() for record in self.records],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Results":
        """Read what `to_json` gave; `results_file.read` checks it first."""
        same = ("kind", "stamp", "command", "quick", "environment", "settings", "facts", "skipped")
        read = cls(
            **{name: values[name] for name in same},
            records=tuple(map(Record.from_json, values["records"])),
            other_load=values["other_load_cores"],
            seconds=values["seconds"],
        )
        ratios = map(Ratio.from_json, values["ratios"])
        return replace(read, ratios=tuple(read._without_doubtful_bounds(r) for r in ratios))

    def _without_doubtful_bounds(self, ratio: Ratio) -> Ratio:
        """Files of format 2.0 give intervals of fewer rounds than they need."""
        timed = [record for record in self.records if record.name in (ratio.of, ratio.to)]
        if all(self.rounds(record) >= FEWEST_ROUNDS for record in timed):
            return ratio
        return replace(ratio, interval=Interval(ratio.interval.value))


def _missing(name: str) -> Record:
    raise KeyError(name)
