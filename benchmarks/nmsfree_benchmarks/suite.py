"""The suite: which models run in which engines on which pictures."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from nmsfree.backends import OnnxRuntimeBackend
from nmsfree.data.coco import DetectionDataset
from nmsfree.detector import Detector
from nmsfree.evaluate import Metrics, evaluate
from nmsfree.spec import ModelSpec
from nmsfree_benchmarks import inputs
from nmsfree_benchmarks.eager import (
    Source,
    eager_backends,
    nms_load,
    use_threads,
)
from nmsfree_benchmarks.environment import describe
from nmsfree_benchmarks.exporting import exporter
from nmsfree_benchmarks.load import LoadMeter
from nmsfree_benchmarks.measure import Call, Image, Plan, Stopwatch, take_turns
from nmsfree_benchmarks.onnx_engine import TimedBackend, bare_call, postprocess_call
from nmsfree_benchmarks.results import BASELINE, DEPLOYED, ENGINES, Report, Row
from nmsfree_benchmarks.sources import NANO, published_sources, trained_sources

QUICK_AP_IMAGES = 40
NANO_PICTURES, HD_PICTURES, LOAD_PICTURES = 32, 4, 4
SIZES = ("nano", "large")
PLANS = {  # by size, quick; seconds are aimed at, min_rounds are kept
    ("nano", False): Plan(seconds=60, min_rounds=10, lead_in=3, burst=5),
    ("nano", True): Plan(seconds=6, min_rounds=5, lead_in=2, burst=4),
    ("large", False): Plan(seconds=180, min_rounds=10, lead_in=1, burst=2),
    ("large", True): Plan(seconds=8, min_rounds=3, warmup_rounds=1, lead_in=0, burst=2),
}

Progress = Callable[[str, int, int], None]  # what, done, in all


@dataclass(frozen=True)
class Options:
    """What to run.

    Attributes:
        weights: folder of trained checkpoints, published ones in its `published/`.
        data: folder of a digits set that is used if its `val` split is there.
        work: folder for what is made on the way: ONNX files, stand-in weights, digits.
        threads: processor threads of every engine.
        quick: fewer rounds and images, and of the large models only the rows that the ratios need.
        seconds: time for the rounds of each size; None takes that of `PLANS`.
        min_rounds: rounds of each size however long they take; None takes that of `PLANS`.
        sizes: which of `SIZES` to measure.
        command: that repeats the run, for the report.
    """

    weights: Path
    data: Path
    work: Path
    threads: int
    quick: bool = False
    seconds: float | None = None
    min_rounds: int | None = None
    sizes: tuple[str, ...] = SIZES
    command: str = "nmsfree bench"

    def onnx(self, source: Source) -> Path:
        """Return where a model's exported file is."""
        return self.work / f"{source.name}.onnx"

    def plan(self, size: str) -> Plan:
        """Return how long the models of a size are timed."""
        plan = PLANS[size, self.quick]
        if self.seconds is not None:
            plan = replace(plan, seconds=self.seconds)
        return plan if self.min_rounds is None else replace(plan, min_rounds=self.min_rounds)


@dataclass(frozen=True, eq=False)
class Group:
    """Models of one size, whose rows take turns.

    Attributes:
        size: one of `SIZES`.
        pictures: BGR uint8, what the times are measured on.
        judged: images for AP; None where the weights mean nothing on them.
        engines: keys of `ENGINES` to time.
    """

    size: str
    sources: Sequence[Source]
    pictures: list[Image]
    judged: DetectionDataset | None
    engines: Sequence[str]


@dataclass(frozen=True, eq=False)
class Entry:
    """A model in an engine, ready to run."""

    engine: str
    source: Source
    detector: Detector
    file: Path
    sha256: str
    provider: str
    nms_candidates: float | None
    in_graph: Call | None = None
    bare: Call | None = None

    @property
    def name(self) -> str:
        return f"{self.source.name} {self.engine}"


def size_of(spec: ModelSpec) -> str:
    """Which of `SIZES` a model was timed in."""
    return "nano" if spec.name in NANO else "large"


def run_suite(options: Options, progress: Progress = lambda what, done, total: None) -> Report:
    """Measure everything.

    Raises:
        CheckpointError, DataError: weights or pictures cannot be read, or do not fit each other.
        GateError: an exported file differs from its checkpoint.
    """
    started = time.monotonic()
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    use_threads(options.threads)
    environment = describe(options.threads)
    groups, skipped = make_groups(options, progress)
    rows: list[Row] = []
    loads: list[float] = []
    for group in groups:
        with LoadMeter() as meter:
            rows += run_group(group, options, progress)
        if meter.others is not None:
            loads.append(meter.others)
    return Report(
        stamp,
        environment,
        options.quick,
        tuple(rows),
        skipped,
        time.monotonic() - started,
        options.command,
        max(loads, default=None),
        {row.size_key: options.plan(size_of(row.spec)).burst for row in rows},
    )


def make_groups(options: Options, progress: Progress) -> tuple[list[Group], dict[str, str]]:
    """Find models and pictures; also returns which models are not there, and why."""
    dataset = inputs.digits_val(
        options.data, options.work, lambda done, total: progress("digits scenes", done, total)
    )
    pictures = inputs.pictures(dataset, NANO_PICTURES)
    judged = inputs.first(dataset, QUICK_AP_IMAGES if options.quick else None)
    groups: list[Group] = []
    skipped: dict[str, str] = {}
    if "nano" in options.sizes:
        sources, skipped = trained_sources(options.weights)
        groups.append(Group("nano", sources, pictures, judged, tuple(ENGINES)))
    if "large" in options.sizes:
        sources = published_sources(
            options.weights, options.work, lambda done, total: progress("weights", done, total)
        )
        engines = (BASELINE, DEPLOYED) if options.quick else tuple(ENGINES)
        full_hd = inputs.full_hd(pictures, HD_PICTURES)
        groups.append(Group("large", sources, full_hd, None, engines))
    return groups, skipped


def run_group(group: Group, options: Options, progress: Progress) -> list[Row]:
    """Export, evaluate and time the models of one size."""
    watch = Stopwatch()
    entries: list[Entry] = []
    progress(f"export {group.size}", 0, len(group.sources))
    digests: list[str] = []
    with exporter() as other:
        for done, source in enumerate(group.sources, start=1):
            digests.append(other.export(source.file, source.name, options.onnx(source)))
            progress(f"export {group.size}", done, len(group.sources))
    for source, digest in zip(group.sources, digests, strict=True):
        made = make_entries(source, digest, group.pictures, watch, options)
        entries += [entry for entry in made if entry.engine in group.engines]
    if not entries:
        return []
    metrics = evaluate_all(entries, group, progress)
    progress(f"rounds {group.size}", 0, options.plan(group.size).min_rounds)
    times = take_turns(
        all_calls(entries, watch),
        group.pictures,
        options.plan(group.size),
        lambda done, total: progress(f"rounds {group.size}", done, total),
    )
    for entry in entries:
        entry.detector.close()
    return [
        Row(
            engine=entry.engine,
            training=entry.source.training,
            spec=entry.detector.spec,
            sha256=entry.sha256,
            times=times[entry.name],
            in_graph=times.get(f"{entry.name} in graph"),
            bare=times.get(f"{entry.name} bare"),
            nms_candidates=entry.nms_candidates,
            metrics=metrics.get(entry.name),
            ap_images=len(group.judged) if group.judged is not None else 0,
            provider=entry.provider,
            file_bytes=entry.file.stat().st_size,
            threads=options.threads,
        )
        for entry in entries
    ]


def evaluate_all(entries: list[Entry], group: Group, progress: Progress) -> dict[str, Metrics]:
    """Measure AP with the very detectors that are timed."""
    if group.judged is None:
        return {}
    metrics = {}
    progress(f"AP {group.size}", 0, len(entries))
    for done, entry in enumerate(entries, start=1):
        metrics[entry.name] = evaluate(entry.detector, group.judged)
        progress(f"AP {group.size}", done, len(entries))
    return metrics


def make_entries(
    source: Source, digest: str, pictures: list[Image], watch: Stopwatch, options: Options
) -> list[Entry]:
    """Build a model in every engine: eagerly, and its exported file, whose SHA-256 is `digest`."""
    backends = eager_backends(source, watch)
    path = options.onnx(source)
    runtime = OnnxRuntimeBackend(path, threads=options.threads)
    onnx = Detector(TimedBackend(runtime, watch))

    def prepare(image: Image) -> Image:
        return onnx.preprocess([image])[0]

    load = {}
    if onnx.spec.nms is not None:
        load = nms_load(backends, [prepare(image) for image in pictures[:LOAD_PICTURES]])
        load[DEPLOYED] = load["eager_evaluation"]  # the same floor and selection
    eager = [
        Entry(
            key,
            source,
            Detector(backend),
            source.file,
            source.sha256,
            backend.description,
            load.get(key),
        )
        for key, backend in backends.items()
    ]
    deployed = Entry(
        DEPLOYED,
        source,
        onnx,
        path,
        digest,
        runtime.description,
        load.get(DEPLOYED),
        postprocess_call(path, options.threads, prepare, pictures),
        bare_call(path, options.threads, prepare),
    )
    return [*eager, deployed]


def all_calls(entries: Sequence[Entry], watch: Stopwatch) -> dict[str, Call]:
    """Name what takes turns: every entry, and of ONNX Runtime also the graph bare and in part."""
    calls: dict[str, Call] = {}
    for entry in entries:
        calls[entry.name] = timed_call(entry.detector, watch)
        parts = (("in graph", entry.in_graph), ("bare", entry.bare))
        calls |= {f"{entry.name} {part}": call for part, call in parts if call is not None}
    return calls


def timed_call(detector: Detector, watch: Stopwatch) -> Call:
    """Return a call that runs a detector as its users do; its backend marks the stages."""

    def call(image: Image) -> Sequence[int]:
        watch.start()
        detector(image, threshold=detector.spec.score_floor)
        watch.mark()
        return watch.laps()

    return call
