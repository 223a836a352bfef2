"""What the runtime adds to the engine's call, by picture size.

Pictures from 256×256 to 3840×2160: resizing and padding, mapping boxes back, and Python
between, beside the engine's call; and, apart, reading and decoding JPEG and PNG files. The
published network runs with random weights until `nmsfree weights download` has been run.

Example: nmsfree bench overhead

With the large network: nmsfree bench overhead --large --seconds 60

Your files, ours or adopted: nmsfree bench overhead a.onnx b.onnx

On a GPU: nmsfree bench overhead --device cuda
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from nmsfree.backends import Backend, CallableBackend, RawDetections
from nmsfree.detector import Detector
from nmsfree.errors import NmsfreeError
from nmsfree.images import Color, read_image
from nmsfree.preprocess import Geometry, resized_as
from nmsfree.spec import ModelSpec
from nmsfree_benchmarks.harness import pictures, plots
from nmsfree_benchmarks.harness.engines import DEPLOYED, ENGINES, engine_of, ran_in
from nmsfree_benchmarks.harness.options import CPU, Files, Large, OnDevice, RunOptions
from nmsfree_benchmarks.harness.pictures import FORMATS, Scene, label, make_scenes
from nmsfree_benchmarks.harness.records import Ratio, Record, Results, grouped
from nmsfree_benchmarks.harness.run import Case, Run
from nmsfree_benchmarks.harness.statistics import AIM, Interval, median_ms
from nmsfree_benchmarks.harness.subject import Subject, TimedBackend
from nmsfree_benchmarks.harness.table import Table, number
from nmsfree_benchmarks.harness.timer import (
    Call,
    Image,
    Laps,
    Plan,
    Stopwatch,
    on_slots,
    slots,
    timed,
)
from nmsfree_benchmarks.harness.weights import choose, published

KIND, TITLE, SHORT = "overhead", "What is around the network", "Overhead"
ASKS = "What does the library add to the bare call of the engine?"
SIZES = ((256, 256), (480, 640), (720, 1280), (1080, 1920), (2160, 3840))  # height, width
QUICK_SIZES = ((256, 256), (480, 640), (1080, 1920))
SCENES = 4
PLANS = {  # by group, quick
    ("nano", False): Plan(seconds=75, min_rounds=12, lead_in=2, burst=4),
    ("nano", True): Plan(seconds=10, min_rounds=10, lead_in=1, burst=3),
    ("large", False): Plan(seconds=120, min_rounds=10, lead_in=1, burst=2),
    ("large", True): Plan(seconds=15, min_rounds=10),
}
PARTS = ("preprocess", "engine", "map_back", "python")
OVERHEAD, OVER_RESIZE = "Detector by bare call", "Detector by resize and bare call"
PREPROCESS_LIMIT = 1.5  # ms, a 1080p picture → 512 × 736
CALL_LIMIT = 1.15  # × the bare call, 640×480 → nano; of ONNX Runtime on the processor
CALL_SOURCE, PREPROCESS_SOURCE = "640×480", "1920×1080"
LARGE_INPUT = (512, 736)  # height, width
NANO, LARGE = "fcos_e2e_nano", "fcos_e2e_r18_3x"  # the networks
COLOURS = {"engine": "#56B4E9", "preprocess": "#E69F00", "map_back": "#009E73", "python": "#D55E00"}
LABELS = {
    "engine": "engine's call",
    "preprocess": "resize + pad",
    "map_back": "boxes mapped back",
    "python": "Python between",
}
FILE_COLOURS = {"jpg": ("JPEG", "#0072B2"), "png": ("PNG", "#CC79A7")}


@dataclass(frozen=True, kw_only=True)
class Options(RunOptions):
    """OpenCV gets as many threads as the engine."""

    files: Files = ()
    large: Large = False
    device: OnDevice = CPU
    sizes: tuple[tuple[int, int], ...] | None = None  # (height, width) of the pictures


class _TimedGeometry(Geometry):
    """Marks before and after boxes are mapped; it is what it is made of in all else."""

    watch: Stopwatch

    @classmethod
    def around(cls, geometry: Geometry, watch: Stopwatch) -> "_TimedGeometry":
        timed_one = cls(**vars(geometry))
        object.__setattr__(timed_one, "watch", watch)  # frozen, as its parent is
        return timed_one

    def to_source(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        self.watch.mark()
        mapped = super().to_source(boxes)
        self.watch.mark()
        return mapped


class StagedDetector(Detector):
    """The runtime's own code, with marks between its stages."""

    def __init__(self, backend: Backend, watch: Stopwatch) -> None:
        super().__init__(TimedBackend(backend, watch))
        self.watch = watch

    def preprocess(
        self, images: Sequence[Any], color: Color = "bgr"
    ) -> tuple[NDArray[np.uint8], list[Geometry]]:
        self.watch.mark()
        inputs, geometries = super().preprocess(images, color)
        self.watch.mark()
        return inputs, [_TimedGeometry.around(g, self.watch) for g in geometries]


def staged_call(detector: StagedDetector) -> Call:
    """A call of a detector as its users make it; its parts are `PARTS`, the last what is between.

    Marks cost a microsecond in all.
    """
    watch = detector.watch

    def call(image: Image) -> Laps:
        watch.start()
        detector(image)
        watch.mark()
        laps = watch.laps()
        before, preprocess, between, engine, after, map_back, end = laps
        python = before + between + after + end
        return Laps((preprocess, engine, map_back, python), laps.processor)

    return call


def preprocess_detector() -> Detector:
    """What `Detector` does before a network of 512 × 736 pixels, without one."""

    def nothing(images: NDArray[np.uint8]) -> RawDetections:
        raise NotImplementedError

    spec = ModelSpec("preprocessing", "o2o", *LARGE_INPUT, 1, ("none",), (0,))
    return Detector(CallableBackend(nothing, spec))


def resize_and_bare(detector: Detector, bare: Call) -> Call:
    """What nobody can do without: the resize by the library that does it, and the engine alone."""
    resize = timed(lambda image: resized_as(image, detector.spec))

    def call(image: Image) -> Laps:
        before, after = resize(image), bare(image)
        assert isinstance(before, Laps) and isinstance(after, Laps)
        return Laps((before[0] + after[0],), before.processor + after.processor)

    return call


def measure(options: Options, run: Run) -> Iterator[Record]:
    """Time the networks on pictures of every size."""
    options.work.mkdir(parents=True, exist_ok=True)
    bases = pictures.read_first(run.val(), SCENES)
    subjects = {own.name: own for own in run.files()} if options.files else bundled(options, run)
    run.settings |= {"burst": {}, "opencv_threads": cv2.getNumThreads()}
    rows = 0
    with tempfile.TemporaryDirectory(prefix="pictures-", dir=options.work) as folder:
        sizes = options.sizes or (QUICK_SIZES if options.quick else SIZES)
        scenes = {size: make_scenes(bases, size, Path(folder)) for size in sizes}
        for group, subject in subjects.items():
            plan = options.timed(PLANS[group if group == "large" else "nano", options.quick])
            try:
                records = measure_network(subject, run, scenes, plan, group)
            except NmsfreeError as error:
                if not options.files:
                    raise
                run.skip(group, error, subject.file)
            else:
                yield from records
                rows += len(records)
    if not rows:
        raise run.nothing()


def bundled(options: Options, run: Run) -> dict[str, Subject]:
    """The nano network and, if it is asked for, the published one, exported."""
    (nano,), _ = choose(options.weights, None, (NANO,))
    engine = engine_of(options.device)
    subjects = {"nano": Subject(nano, engine, options.cores)}
    if options.large:
        large = published(LARGE, options.weights, options.work)
        subjects["large"] = Subject(large, engine, options.cores)
    run.export_whole(list(subjects.values()))
    return subjects


def measure_network(
    subject: Subject,
    run: Run,
    scenes: Mapping[tuple[int, int], list[Scene]],
    plan: Plan,
    group: str,
) -> list[Record]:
    """Time one network on every size; beside the nano one what needs no network."""
    cases: list[Case] = []

    def add(name: str, call: Call, own: Sequence[Any], about: dict[str, Any], **more: Any) -> None:
        cases.append(Case(name, on_slots(call, own), about, **more))

    with ExitStack() as stack:
        backend = subject.engine.open(subject.file, subject.threads)
        detector = StagedDetector(backend, subject.watch)
        subject.use(backend, detector, stack)
        whole, bare, prepared = staged_call(detector), subject.bare(), preprocess_detector()
        state = subject.state()
        for size, made in scenes.items():
            source, images = label(size), [scene.image for scene in made]
            name, about = f"{subject.model} {source}", {"call": "detector", "source": source}
            add(name, whole, images, about, parts=PARTS, state=state)
            add(f"{name} bare", bare, images, about | {"call": "bare"}, state=state)
            if subject.weights is None:
                both = resize_and_bare(detector, bare)
                add(f"{name} resize", both, images, about | {"call": "resize"}, state=state)
            for suffix in FORMATS if group == "nano" else ():
                files = [scene.files[suffix] for scene in made]
                megabytes = sum(file.stat().st_size for file in files) / len(files) / 1e6
                figures = {"file_mb": round(megabytes, 4)}
                of = about | {"call": "decode", "format": suffix[1:]}
                add(f"decode {source}{suffix}", timed(read_image), files, of, figures=figures)
            if group == "nano" and source == PREPROCESS_SOURCE:
                call = timed(lambda image: prepared.preprocess([image]))
                add(f"preprocess {source}", call, images, about | {"call": "preprocess"})
        records, burst = run.records(cases, slots(SCENES), plan, f"rounds {group}")
    run.settings["burst"][subject.model] = burst
    return records


def ratios(results: Results) -> Iterator[Ratio]:
    """Every Detector by the bare call on the same picture, of files with the resize, too."""
    for record in results.where(call="detector"):
        for call, meaning in (("bare", OVERHEAD), ("resize", OVER_RESIZE)):
            for other in results.where(call=call, source=record.parameters["source"]):
                if other.state.model == record.state.model:
                    yield Ratio.between(record, other, meaning, results.burst(record))


def targets(results: Results) -> Iterator[dict[str, Any]]:
    """Every promise whose record was measured, with the interval of that.

    "met" is None where the interval has the limit in it.
    """
    height, width = LARGE_INPUT
    found = [
        (
            f"preprocessing {PREPROCESS_SOURCE} → {height} × {width}",
            PREPROCESS_LIMIT,
            "ms",
            median_ms(record.times, results.settings["burst"][NANO]),
        )
        for record in results.where(call="preprocess")
    ]
    found += [
        (
            f"{NANO}, {CALL_SOURCE}: Detector(image) by the bare call",
            CALL_LIMIT,
            "×",
            ratio.interval,
        )
        for engine, ratio in _small_calls(results)
        if engine == DEPLOYED
    ]
    for name, limit, unit, interval in found:
        met = {"target": name, "limit": limit, "unit": unit, "met": interval.within(limit)}
        yield met | interval.to_json()


def _small_calls(results: Results) -> Iterator[tuple[str, Ratio]]:
    """The nano network's Detector by the bare call on a usual picture, with the engine's key."""
    for record in results.where(call="detector", source=CALL_SOURCE):
        ratio = results.ratio_of(OVERHEAD, of=record)
        if record.state.model == NANO and ratio is not None:
            yield record.state.engine, ratio


def facts(results: Results) -> dict[str, Any]:
    return {"targets": list(targets(results))}


def conclusions(results: Results) -> Iterator[str]:
    for engine, ratio in _small_calls(results):
        if engine != DEPLOYED:
            yield (
                f"{NANO}, {CALL_SOURCE}, {ENGINES[engine].label}: Detector(image) takes "
                f"{ratio.interval} × the bare call."
            )
    for t in targets(results):
        found = Interval.from_json(t).text(unit=f" {t['unit']}", dash=" … ")
        yield f"Target {AIM[t['met']]}: {t['target']}: {found}, at most {t['limit']:g}."
    yield from ran_in(results)


def models(results: Results) -> dict[str, list[Record]]:
    return grouped(results.where(call="detector"), lambda record: record.state.model)


DECODED = {
    "source": lambda r: r.parameters["source"] + r.summary.doubt,
    "format": lambda r: r.parameters["format"],
    "MB": lambda r: f"{r.figures['file_mb']:.2f}",
    "p50 ms": lambda r: f"{r.summary.p50:.2f}",
    "p99 ms": lambda r: number(r.summary.p99, ".2f"),
    "MB/s": lambda r: f"{r.figures['file_mb'] / r.summary.p50 * 1000:.0f}",
}


def tables(results: Results) -> list[Table]:
    stages = ("resize + pad", "engine", "map back", "Python")
    columns: dict[str, Any] = {"source": lambda r: r.parameters["source"] + r.summary.doubt}
    for name, part in zip(stages, PARTS, strict=True):
        columns[name] = lambda r, part=part: f"{r.part_ms[part]:.3f}"
    columns |= {
        "Detector": lambda r: f"{r.summary.p50:.3f}",
        "bare": lambda r: f"{results.record(results.ratio_of(OVERHEAD, of=r).to).summary.p50:.3f}",
        "Detector / bare (95 %)": lambda r: str(results.ratio_of(OVERHEAD, of=r).interval),
    }
    if results.where(call="resize"):
        columns["Detector / (resize + bare)"] = lambda r: str(
            results.ratio_of(OVER_RESIZE, of=r).interval
        )
    made = []
    for model, records in models(results).items():
        state = records[0].state
        height, width = state.size
        weights = ", random weights" if state.training == "untrained" else ""
        title = f"{model}, {height} × {width}{weights}: medians in ms, from the picture in memory"
        made.append(Table.of(title, columns, records))
    title = "Reading and decoding a file, before all that"
    decoding = Table.of(title, DECODED, results.where(call="decode"), words=2)
    return [*made, *([decoding] if decoding.rows else [])]


def notes(results: Results) -> list[str]:
    on_cpu = results.environment["device"] == CPU
    bare = "the same file's session.run and nothing else" if on_cpu else "the same call by itself"
    return [
        f"Engine is the backend's call, bare {bare}. Python is what is between the stages: "
        "arguments, thresholds, the answer. Files are read from the system's cache.",
        *(["Resize is OpenCV's or Pillow's alone."] if results.where(call="resize") else []),
    ]


def draw(results: Results, path: Path) -> None:
    """Stacked bars for each size, a row for each network; files at the right."""
    found = models(results)
    count = len(next(iter(found.values())))
    figure = plots.new_figure(12.5, 1.6 + len(found) * (0.9 + 0.42 * count))
    panels = figure.subplots(len(found), 3, squeeze=False, width_ratios=(4, 3, 3))
    around = {stage: colour for stage, colour in COLOURS.items() if stage != "engine"}
    for row, (model, records) in zip(panels, found.items(), strict=True):
        for axes, colour in zip(row, (COLOURS, around), strict=False):
            longest = 0.0
            for y, record in enumerate(records):
                ratio = results.ratio_of(OVERHEAD, of=record)
                text = f"{record.summary.p50:.2f} ms = {ratio.interval.value:.2f} × bare"
                if colour is around:
                    text = f"{sum(record.part_ms[stage] for stage in around):.2f} ms"
                longest = max(longest, plots.stacked_bar(axes, y, record.part_ms, colour, text))
            sources = [str(r.parameters["source"]) for r in records]
            plots.name_bars(axes, list(enumerate(sources)), longest * 1.6)
            axes.set_xlabel("median, ms", fontsize=9)
        row[0].set_title(f"{model}: Detector(image)", loc="left", fontsize=10)
        row[1].set_title("the same without the engine", loc="left", fontsize=10)
        row[2].set_visible(False)
    if decoded := results.where(call="decode"):
        panels[0][2].set_visible(True)
        _files(panels[0][2], decoded)
    plots.legend(figure, COLOURS, LABELS)
    plots.finish(figure, results, "What is around the network, by source picture", path)


def _files(axes: "plots.Axes", records: Sequence[Record]) -> None:
    """Two bars for each size: JPEG and PNG."""
    sources = list(dict.fromkeys(str(r.parameters["source"]) for r in records))
    for record in records:
        kind, ms = str(record.parameters["format"]), record.summary.p50
        y = sources.index(str(record.parameters["source"])) + (0.18 if kind == "png" else -0.18)
        name, colour = FILE_COLOURS[kind]
        axes.barh(y, ms, height=0.34, color=colour, linewidth=0)
        plots.end_label(axes, ms, y, f"{name} {ms:.1f} ms", 8)
    axes.set_title("before it: reading and decoding a file", loc="left", fontsize=10)
    longest = max(r.summary.p50 for r in records)
    plots.name_bars(axes, list(enumerate(sources)), longest * 1.6)
    axes.set_xlabel("median, ms", fontsize=9)
