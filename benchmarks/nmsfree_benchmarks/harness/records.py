"""What every benchmark leaves behind: records with raw times, ratios with intervals, one file.

The format is `results.schema.json`, which a file meets when it is written and when it is read. It
holds no paths and no host names.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from nmsfree.errors import InputError
from nmsfree.files import write_atomic
from nmsfree.parsing import decode_format, read_bytes
from nmsfree.text import shown
from nmsfree_benchmarks.harness.statistics import (
    FEWEST_ROUNDS,
    WIDE_SPREAD,
    Interval,
    Summary,
    paired_ratio,
    processor_ratio,
    ratio_of_fastest,
    summarize,
)
from nmsfree_benchmarks.harness.timer import Times

K = TypeVar("K")
FORMAT_VERSION = "2.3"
AGAIN = "measure again with `nmsfree bench`"
# How meanings of speeds begin.
EAGER_BY, FP32_BY, FIRST_BY = "eager by", "FP32 in ONNX Runtime", "the first file by"
BUSY = 0.3  # cores kept busy by other work from which times are those of a shared machine
WIDE_DRIFT = 0.10  # of the median between the first and the last third of the rounds
DOUBTFUL = 0.5  # share of records that distrust themselves from which the whole run does
# Attributes of `Results` that its file has as they are.
PLAIN = (
    *("kind", "stamp", "command", "quick", "seconds", "environment", "settings", "facts"),
    "skipped",
)
_NUMBERS = re.compile(r"\[\n\s+(-?[\d.]+(?:,\s+-?[\d.]+)*)\s+\]")


@dataclass(frozen=True)
class State:
    """The model that was timed, as results describe it."""

    model: str
    head: str  # "o2m", "o2o" or "queries"
    size: tuple[int, int]  # (height, width) in pixels
    classes: int
    training: str  # what the weights were trained on; "untrained" for random ones
    sha256: str  # of the file that was timed and evaluated
    file_bytes: int
    engine: str  # short key, the same in every file
    provider: str  # what really ran it, as the backend describes itself
    precision: str  # of the network's arithmetic
    batch: int
    threads: int  # of the processor, for the engine
    top_k: int
    score_floor: float
    nms: Mapping[str, Any] | None  # None without NMS
    tf32: bool | None = None  # tf32, cuda_graph: None where there is no such thing
    cuda_graph: bool | None = None
    # "none" where everything is in the processor's memory; else what of the copies to and from the
    # device is inside the timer: "in and out", "in", "out", "outside".
    transfers: str = "none"
    ap: float | None = None  # COCO AP 0-1 of that very file in that engine; None = not measured
    ap50: float | None = None
    ap_images: int = 0

    @property
    def head_text(self) -> str:
        return f"{self.head}, no NMS" if self.nms is None else f"{self.head} + NMS"

    @property
    def on_gpu(self) -> bool:
        return self.transfers != "none"

    def graph_beside(self, other: "State") -> str:
        """Say that only one of both replays a CUDA graph, which is part of their difference."""
        if self.cuda_graph == other.cuda_graph:
            return ""
        return f" (only {(self if self.cuda_graph else other).model} replays a CUDA graph)"

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"size": list(self.size)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "State":
        return cls(**{**values, "size": tuple(values["size"])})


@dataclass(frozen=True, eq=False)
class Record:
    name: str  # the only one of this name in its file
    # What tells it from its neighbours beside the subject: objects, floor, streams … JSON values;
    # two records with equal subject and parameters are comparable.
    parameters: Mapping[str, Any]
    times: Times  # [timed calls, parts] ns; a call's time is the sum of its parts
    parts: tuple[str, ...] = ("total",)
    figures: Mapping[str, Any] = field(default_factory=dict)  # with their unit: "peak_rss_mb"
    subject: State | None = None  # None where no model was timed (an NMS alone, a copy)

    @cached_property
    def summary(self) -> Summary:
        return summarize(self.times)

    @property
    def state(self) -> State:
        """The subject of a record that has one."""
        assert self.subject is not None
        return self.subject

    @property
    def part_ms(self) -> dict[str, float]:
        return dict(zip(self.parts, (np.median(self.times, axis=0) / 1e6).tolist(), strict=True))

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
        raw, subject = values["raw_ns"], values["subject"]
        return cls(
            values["name"],
            values["parameters"],
            np.array(list(raw.values()), np.int64).T,
            tuple(raw),
            values["figures"],
            None if subject is None else State.from_json(subject),
        )


def grouped(records: Iterable[Record], key: Callable[[Record], K]) -> dict[K, list[Record]]:
    """Records by what the key says of them, in order."""
    found: dict[K, list[Record]] = {}
    for record in records:
        found.setdefault(key(record), []).append(record)
    return found


@dataclass(frozen=True)
class Ratio:
    """Time of one record by that of another, call by call of the same rounds."""

    of: str  # of, to: names of records
    to: str
    meaning: str  # "ONNX Runtime by eager PyTorch"; records of two runs are compared by it
    interval: Interval

    @property
    def is_speed(self) -> bool:
        """Whether it says how fast `to` is beside a reference: then more is better."""
        return self.meaning.startswith((EAGER_BY, FP32_BY, FIRST_BY))

    @classmethod
    def between(cls, of: Record, to: Record, meaning: str, burst: int = 1) -> "Ratio":
        return cls(of.name, to.name, meaning, paired_ratio(of.times, to.times, burst))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Ratio":
        return cls(values["of"], values["to"], values["meaning"], Interval.from_json(values))

    def to_json(self) -> dict[str, Any]:
        names = {"of": self.of, "to": self.to, "meaning": self.meaning}
        return names | self.interval.to_json() | {"decided": self.interval.decides}


@dataclass(frozen=True)
class Results:
    kind: str  # of the question, its `KIND`
    stamp: str  # UTC time of the start, YYYYMMDDTHHMMSSZ
    command: str  # that repeats it, without paths
    quick: bool  # fewer rounds, rows and images: for a first look, not for a report
    environment: Mapping[str, Any]  # see `machine.describe`
    records: tuple[Record, ...]
    other_load: float | None = None  # cores that others kept busy meanwhile; None = unknown
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the run: burst, seconds …
    ratios: tuple[Ratio, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)  # read from the times, by name
    skipped: Mapping[str, str] = field(default_factory=dict)  # what is not there → why
    seconds: float = 0.0  # the whole run took this long

    def record(self, name: str) -> Record:
        """The record of this name; KeyError if there is none."""
        return {record.name: record for record in self.records}[name]

    def where(self, **parameters: Any) -> list[Record]:
        wanted = parameters.items()
        return [r for r in self.records if all(r.parameters.get(k) == v for k, v in wanted)]

    def ratio_of(self, meaning: str, *, of: Record | None = None, to: Record | None = None) -> Any:
        """The ratio of this meaning of, or to, a record; None if there is none."""
        for ratio in self.ratios:
            ends = (of is None or ratio.of == of.name) and (to is None or ratio.to == to.name)
            if ratio.meaning == meaning and ends:
                return ratio
        return None

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
        return max(1, len(record.times) // self.burst(record))

    def doubts(self) -> tuple[str, ...]:
        """Why times of this run are wider than they need be; empty = nothing disturbed it."""
        said = []
        if self.contended:
            said.append(
                f"other work kept {self.other_load:.1f} cores busy (at most {BUSY}): "
                "stop it and measure again"
            )
        summaries = [record.summary for record in self.records]
        few = sum(self.rounds(record) < FEWEST_ROUNDS for record in self.records)
        scattered = sum(not s.trusted for s in summaries)
        drifting = sum(abs(s.drift) > WIDE_DRIFT for s in summaries)
        half = DOUBTFUL * len(summaries)
        for count, most, what in (
            (few, 0, f"have under {FEWEST_ROUNDS} rounds: measure longer"),
            (
                scattered,
                half,
                f"have an interquartile range above {WIDE_SPREAD:.0%} of their median: close other "
                "programs, or measure longer",
            ),
            (
                drifting,
                half,
                f"became faster or slower by more than {WIDE_DRIFT:.0%} during the run: let the "
                "machine reach a steady temperature",
            ),
        ):
            if count > most:
                said.append(f"{count} of {len(summaries)} rows {what}")
        for reason in self.environment.get("gpu_throttled", ()):
            said.append(f"the GPU throttled itself ({reason}): cool it, or lower its power limit")
        return tuple(said)

    @property
    def contended(self) -> bool:
        """Whether other work took the processor from what was timed."""
        return self.other_load is not None and self.other_load > BUSY

    def told_apart(self, ratio: Ratio) -> tuple[int, str]:
        """Which side of 1 a ratio is surely on, and what says so.

        The medians say it alone, whatever the machine did besides. Where they do not, and other
        work took the processor away, the fastest calls and the processor time together may.

        Returns:
            1, -1, or 0 where the pair cannot be told apart; a clause for a sentence.
        """
        if ratio.interval.decides:
            return ratio.interval.side, ""
        of, to = self.record(ratio.of), self.record(ratio.to)
        spent = [r.figures.get("processor_ns") for r in (of, to)]
        if self.contended and all(spent) and self.rounds(of) >= FEWEST_ROUNDS:
            fastest = ratio_of_fastest(of.times, to.times, self.burst(of))
            own, other = (np.array(each, np.int64) for each in spent)
            processor = processor_ratio(own, other, self.burst(of))
            if processor is not None and fastest.side == processor.side != 0:
                return fastest.side, (
                    f", by its fastest calls ({fastest.text(unit=' ×')}) and its processor time "
                    f"({processor.text(unit=' ×')})"
                )
        return 0, ", not told apart"

    def verdict_text(self) -> str:
        if not (doubts := self.doubts()):
            return "idle enough to compare"
        return "a busy machine, what its intervals do not tell is open: " + "; ".join(doubts)

    def to_json(self) -> dict[str, Any]:
        doubts = self.doubts()
        return {
            "format": "nmsfree-benchmark",
            "format_version": FORMAT_VERSION,
            **{name: getattr(self, name) for name in PLAIN},
            "seconds": round(self.seconds, 1),
            "other_load_cores": self.other_load,
            "verdict": {"ranks": not doubts, "reasons": list(doubts)},
            "ratios": [ratio.to_json() for ratio in self.ratios],
            "records": [record.to_json() for record in self.records],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Results":
        """Read what `to_json` gave; `read` checks it first."""
        return cls(
            **{name: values[name] for name in PLAIN},
            records=tuple(map(Record.from_json, values["records"])),
            other_load=values["other_load_cores"],
            ratios=tuple(map(Ratio.from_json, values["ratios"])),
        )

    def to_text(self) -> str:
        """The results as JSON, indented, with lists of numbers on one line."""
        content = self.to_json()
        _validator().validate(content)  # a file that cannot be read again is our mistake
        text = json.dumps(content, indent=1, ensure_ascii=False)
        return _NUMBERS.sub(lambda m: "[" + re.sub(r"\s+", " ", m[1]) + "]", text) + "\n"

    def write(self, path: Path) -> None:
        """Write a result file, whole or not at all.

        InputError: the folder cannot be written to.
        """
        write_atomic(path, self.to_text().encode())


def read(path: Path, data: bytes | None = None) -> Results:
    """Read a result file, or its bytes.

    InputError: it cannot be read, is no result file, or is of another format.
    """
    data = read_bytes(path) if data is None else data
    content = decode_format(data, dict[str, Any], FORMAT_VERSION, path, InputError, AGAIN)
    error = next(_validator().iter_errors(content), None)
    if error is not None:
        place = shown("/".join(map(str, error.absolute_path))) or "the file"
        raise InputError(
            f"{shown(path)}: {place}: {shown(error.message, 200)}, expected a file of "
            "`nmsfree bench`"
        )
    for index, record in enumerate(content["records"]):
        lengths = {len(times) for times in record["raw_ns"].values()}
        if lengths != {record["timed_calls"]} or lengths == {0}:
            raise InputError(
                f"{path}: records/{index}/raw_ns: {sorted(lengths)} times, expected "
                f"{record['timed_calls']} (timed_calls, at least 1) of each part"
            )
    return Results.from_json(content)


@cache
def _validator() -> Any:
    from jsonschema import Draft202012Validator

    schema = files("nmsfree_benchmarks.harness").joinpath("results.schema.json")
    return Draft202012Validator(json.loads(schema.read_text(encoding="utf-8")))
