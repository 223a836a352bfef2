"""Measure NMS-free against NMS: latency by stage, AP of the timed files.

All models of a size run in turn: in PyTorch as published, and as files exported here in ONNX
Runtime and OpenVINO, FP32 and INT8; on a GPU in PyTorch, ONNX Runtime and TensorRT-RTX, FP32,
FP16 and INT8. Models at 512 × 736 without published weights get random ones and no AP.

A first look: nmsfree bench --quick

Your files beside the first: nmsfree bench a.onnx b.onnx --data DIR

On a GPU: nmsfree bench --device cuda
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nmsfree.backends.contract import one_line
from nmsfree.datasets.formats.coco import DetectionDataset
from nmsfree.detector import Detector
from nmsfree.errors import DataError, GateError, ModelError, NmsfreeError
from nmsfree_benchmarks.harness import pictures, plots
from nmsfree_benchmarks.harness.engines import DEPLOYED, ENGINES, Engine, without_tf32
from nmsfree_benchmarks.harness.gpu import joules_per_image
from nmsfree_benchmarks.harness.memory import MemoryMeter
from nmsfree_benchmarks.harness.options import CPU, RunOptions
from nmsfree_benchmarks.harness.records import Record, Results
from nmsfree_benchmarks.harness.run import Run
from nmsfree_benchmarks.harness.statistics import STAGES, shares
from nmsfree_benchmarks.harness.subject import Subject
from nmsfree_benchmarks.harness.timer import Call, Image, Plan, Rounds, Stopwatch, timed
from nmsfree_benchmarks.harness.weights import PUBLISHED, Weights, published, trained
from nmsfree_benchmarks.questions.models import Options
from nmsfree_benchmarks.questions.models.summary import (
    BASELINE,
    COMPILED,
    CPU_ENGINES,
    EAGER,
    NAMES,
    OTHERS,
    by_size,
    conclusions,
    facts,
    in_precision,
    label,
    notes,
    ratios,
    stage_ms,
    tables,
)
from nmsfree_benchmarks.report.svg import Picture, bars_picture
from nmsfree_export.options import Precision

__all__ = ["Options", "conclusions", "facts", "notes", "ratios", "tables"]
KIND, TITLE, SHORT = "table", "Benchmark", "Speed and accuracy"
ASKS = (
    "How fast is each detector from a picture in memory to its boxes, with NMS and without, and "
    "how right is the very file that was timed?"
)
# By size, quick; seconds are aimed at, min_rounds are met but for quick runs on slow machines: ten
# for an interval, a hundred calls of the small models for a p99. Calls of the large ones are so
# long that no lead-in is needed.
PLANS = {
    ("nano", False): Plan(seconds=60, min_rounds=20, lead_in=3, burst=5),
    ("nano", True): Plan(seconds=6, min_rounds=10, lead_in=1, burst=3),
    ("large", False): Plan(seconds=180, min_rounds=10, burst=2),
    ("large", True): Plan(seconds=8, min_rounds=10),
    ("files", False): Plan(seconds=120, min_rounds=20, lead_in=2, burst=5),
    ("files", True): Plan(seconds=8, min_rounds=10, lead_in=1, burst=3),
}
NANO_PICTURES, HD_PICTURES = 32, 4
COLOURS = {"preprocess": "#E69F00", "network": "#56B4E9", "postprocess": "#D55E00"}
LABELS = {
    "preprocess": "preprocessing",
    "network": "network",
    "postprocess": "post-processing + NMS",
}
GAP = 0.9  # between models in the picture, in bars
LOAD_PICTURES = 4


@dataclass(frozen=True, eq=False)
class Group:
    """Models of one size, whose rows take turns."""

    size: str  # one of `SIZES`, or "files"
    weights: Sequence[Weights]
    images: list[Image]  # what the times are measured on
    judged: DetectionDataset | None  # images for AP; None where the weights mean nothing on them
    engines: Sequence[str]  # of `CPU_ENGINES`, to time where the device is the processor


@dataclass(eq=False)
class Row:
    """A subject with what is timed of it besides."""

    subject: Subject
    graph: Path  # the exported file that is run, or that has the same network
    in_graph: Call | None = None  # the part of an ONNX graph behind its raw maps
    bare: Call | None = None  # the engine alone
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.subject.model} {self.subject.engine.key}"

    def calls(self) -> dict[str, Call]:
        found = {"": self.subject.call(), " in graph": self.in_graph, " bare": self.bare}
        return {f"{self.name}{end}": call for end, call in found.items() if call is not None}


def measure(options: Options, run: Run) -> Iterator[Record]:
    """Export, evaluate and time the models of each size, the peaks of the device among them."""
    run.settings["bursts"] = {}
    rows = 0
    if options.device != CPU:
        without_tf32()
    for group in make_groups(options, run):
        with ExitStack() as run.stack:
            for record in measure_group(group, options, run):
                rows += 1
                yield record
    if not rows:
        raise run.nothing()


def make_groups(options: Options, run: Run) -> Iterator[Group]:
    dataset = run.val()
    images, judged = pictures.read_first(dataset, NANO_PICTURES), run.judged(dataset)
    if options.files:
        yield Group("files", (), images, judged, ())
        return
    if options.size != "large":
        found, missing = trained(options.weights)
        run.skipped |= missing
        yield Group("nano", found, images, judged, CPU_ENGINES)
    if options.quick and options.size is None:
        run.skipped["512 × 736"] = "not in a quick run: --size large"
    elif options.size != "nano":
        step, large = run.step("weights"), []
        for name in PUBLISHED:
            large.append(published(name, options.weights, options.work))
            step(len(large), len(PUBLISHED))
        engines = (BASELINE, DEPLOYED) if options.quick else CPU_ENGINES
        full_hd = pictures.full_hd(images, HD_PICTURES)
        yield Group("large", large, full_hd, None, engines)


def measure_group(group: Group, options: Options, run: Run) -> Iterator[Record]:
    rows = open_rows(group, run)
    if not rows:
        return
    if group.judged is not None:
        knowing = [row for row in rows if knows(row, group.judged, run)]
        step = run.step(f"AP {group.size}")
        for done, row in enumerate(knowing, start=1):
            if run.hurries("AP of other rows"):
                break
            try:
                row.subject.judge(group.judged)
            except ModelError as error:  # it answers nonsense
                run.skipped[f"AP of {row.name}"] = str(error)
            step(done, len(knowing))
    if not options.quick:
        weigh(rows, run, run.step(f"memory {group.size}"))
    calls = {name: call for row in rows for name, call in row.calls().items()}
    plan = options.timed(PLANS[group.size, options.quick])
    times, limit_of_file = time_with_peaks(calls, group, plan, run)
    stages = {row.name: row.subject.stages() for row in rows}
    if options.device == "cuda":
        # One detector after another: a counter of energy cannot tell turns apart.
        for row in rows:
            joules = joules_per_image(row.subject.call(), group.images)
            if joules is not None:
                row.figures["joules_per_image"] = round(joules, 4)
    for row in rows:
        height, width = row.subject.input_size
        run.settings["bursts"][f"{height}x{width}"] = times.burst
        row.figures |= stages[row.name] | row.subject.figures
        yield from records_of(row, times, limit_of_file)


def time_with_peaks(
    calls: Mapping[str, Call], group: Group, plan: Plan, run: Run
) -> tuple[Rounds, Callable[[Path, str], float | None]]:
    """Time all rows; and what a graph takes at least by the peaks of the same rounds.

    On a GPU, which has no room for the probes beside the engines, the peaks are those of before
    and after.
    """
    from nmsfree_benchmarks.roofline.limits import limit_of
    from nmsfree_benchmarks.roofline.peaks import (
        copy_probes,
        gpu_peaks,
        onnxruntime_probes,
        read_peaks,
    )

    what, threads = f"rounds {group.size}", run.options.cores
    if run.options.device == CPU:
        probes = [*onnxruntime_probes(threads), *copy_probes(threads)]
        beside = {probe.name: probe.call for probe in probes}
        rounds = run.time({**calls, **beside}, group.images, plan, what)
        peaks = read_peaks(probes, rounds)
    else:
        before = gpu_peaks()
        rounds = run.time(calls, group.images, plan, what)
        peaks = before.or_faster(gpu_peaks())

    def limit(graph: Path, precision: str) -> float | None:
        try:
            return limit_of(graph, peaks).ms if precision in peaks.flops else None
        except ModelError:  # of a file of the user's, whose layers cannot be counted
            return None

    return rounds, limit


def others_of(options: RunOptions) -> list[tuple[Engine, Precision]]:
    if options.quick and options.device == CPU:
        return []
    return [(in_precision(ENGINES[key], kind), kind) for key, kind in OTHERS[options.device]]


def open_rows(group: Group, run: Run) -> list[Row]:
    """Export every model in every precision, and put it into every engine of the device.

    GateError: an FP32 file, which all else is held against, could not be made.
    """
    if run.options.files:
        return file_rows(group, run)
    threads, device = run.options.cores, run.options.device
    plain = [Subject(weights, ENGINES[DEPLOYED], threads) for weights in group.weights]
    others = [
        Subject(weights, engine, threads, precision)
        for weights in group.weights
        for engine, precision in others_of(run.options)
    ]
    made = run.export([*plain, *others], f"export {group.size}")
    for subject in plain:
        if subject not in made:
            raise GateError(run.skipped[subject.file_name])
    rows: list[Row] = []
    for subject in plain:
        if device == CPU:
            rows += cpu_rows(subject, group, run)
        else:
            rows += torch_rows(subject, group, run, device)
        for other in others:
            own = other.weights is subject.weights and other in made
            if own and run.open(other, other.engine.key):
                rows.append(Row(other, other.file, bare=timed(other.backend.run, other.prepare)))
    return rows


def file_rows(group: Group, run: Run) -> list[Row]:
    """Files of the user's own in every engine of the device; quick, in the first alone."""
    device = run.options.device
    keys = dict.fromkeys([DEPLOYED] * (device == CPU) + [key for key, _ in OTHERS[device]])
    engines = [ENGINES[key] for key in keys][: 1 if run.options.quick else None]
    rows = []
    for engine in engines:
        for subject in run.files(engine):
            if run.open(subject, f"{subject.model} {engine.key}", group.images):
                rows.append(Row(subject, subject.file, bare=subject.bare()))
    return rows


def cpu_rows(subject: Subject, group: Group, run: Run) -> list[Row]:
    """A model eagerly, with three kinds of post-processing, and its exported file on the CPU."""
    subject.open(run.stack)
    rows = eager_rows(subject, group, run, CPU)
    in_graph = postprocess_call(subject, group.images)
    deployed = Row(subject, subject.file, in_graph, subject.bare())
    for row in rows:  # the same floor and selection as in the exported graph
        if row.subject.engine.key == "eager_evaluation":
            deployed.figures = dict(row.figures)
    return [row for row in (*rows, deployed) if row.subject.engine.key in group.engines]


def eager_rows(subject: Subject, group: Group, run: Run, device: str) -> list[Row]:
    """A checkpoint in eager PyTorch, with each kind of post-processing.

    The `subject` is its exported file, open, which knows how pictures become inputs.
    """
    from nmsfree_benchmarks.questions.models.eager import eager_backends, nms_load

    weights, watch = subject.weights, Stopwatch()
    assert weights is not None
    backends = eager_backends(weights, watch, device)
    load: dict[str, float] = {}
    if subject.detector.spec.nms is not None:
        load = nms_load(backends, [subject.prepare(i) for i in group.images[:LOAD_PICTURES]])
    rows = []
    for key, backend in backends.items():
        own = _in_torch(subject, key, watch, device).use(backend, Detector(backend), run.stack)
        figures = {"nms_candidates": load[key]} if key in load else {}
        rows.append(Row(own, subject.file, figures=figures))
    return rows


def _in_torch(subject: Subject, key: str, watch: Stopwatch, device: str) -> Subject:
    """The checkpoint of a subject in PyTorch, which has switched TF32 off on a GPU."""
    assert subject.weights is not None
    state = None
    if device != CPU:
        state = {"tf32": False, "cuda_graph": False, "transfers": "in and out"}
    engine = Engine(key, *EAGER[key], device, gpu=state)
    return Subject(subject.weights, engine, subject.threads, file=subject.weights.file, watch=watch)


def torch_rows(subject: Subject, group: Group, run: Run, device: str) -> list[Row]:
    """A checkpoint in PyTorch on a GPU, eager and compiled; what does not run there is skipped."""
    from nmsfree_benchmarks.questions.models.eager import CompiledBackend

    assert subject.weights is not None
    with Detector(subject.file) as onnx:
        subject.detector = onnx
        try:
            rows = eager_rows(subject, group, run, device)
        except NmsfreeError as error:  # a build of PyTorch without CUDA
            run.skipped |= {"eager": str(error), COMPILED: str(error)}
            return []
        watch = Stopwatch()
        try:  # compiled before anything is timed
            backend = CompiledBackend(subject.weights, watch, device)
            watch.start()
            backend.run(subject.prepare(group.images[0]))
            own = _in_torch(subject, COMPILED, watch, device)
            own.use(backend, Detector(backend), run.stack)
            rows.append(Row(own, subject.file))
        except Exception as error:  # noqa: BLE001 (compilers and Triton raise whatever they like)
            run.skipped[COMPILED] = f"{type(error).__name__}: {one_line(error)}"
    return rows


def postprocess_call(subject: Subject, images: Sequence[Image]) -> Call:
    """Time what a file's graph does after its raw maps, which are computed beforehand."""
    from nmsfree_benchmarks.harness.graphs import DETECTIONS, open_session, split_at_raw_maps

    parts = split_at_raw_maps(subject.file)
    network, rest = (open_session(part, subject.threads) for part in parts)
    names = [output.name for output in network.get_outputs()]
    maps = {}
    for image in images:
        found = network.run(names, {"images": subject.prepare(image)})
        maps[id(image)] = dict(zip(names, found, strict=True))
    return timed(lambda own: rest.run(DETECTIONS, own), lambda image: maps[id(image)])


def knows(row: Row, judged: DetectionDataset, run: Run) -> bool:
    """Whether the classes of a row are those of the data; that they are not is told."""
    from nmsfree.evaluation.evaluate import category_ids_of

    try:
        category_ids_of(row.subject.detector.spec.class_names, judged)
    except DataError as error:
        run.skip(f"AP of {row.name}", error, run.options.data)
        return False
    return True


def weigh(rows: Sequence[Row], run: Run, step: Callable[[int, int], None]) -> None:
    """What each engine takes with its file; why one could not be weighed goes to `skipped`."""
    meter = MemoryMeter()
    exported = [row for row in rows if row.subject.engine.key not in EAGER]
    for done, row in enumerate(exported, start=1):
        try:
            row.subject.weigh(meter)
        except NmsfreeError as error:
            run.skip(f"memory of {row.name}", error, row.subject.engine.ran(row.subject.file))
        step(done, len(exported))


def records_of(
    row: Row, times: Rounds, limit_of_file: Callable[[Path, str], float | None]
) -> Iterator[Record]:
    from nmsfree_benchmarks.roofline.limits import share_figures

    name, state = row.name, row.subject.state()
    parts = STAGES if state.engine in EAGER else ("preprocess", "graph", "to_source")
    split = shares(times[name], times.get(f"{name} in graph"))
    figures = {f"{stage}_share": round(split[stage], 4) for stage in STAGES} | row.figures
    limit = limit_of_file(row.graph, state.precision)
    if limit is not None:
        # In PyTorch, whose network is not called alone, of the whole call.
        called = Record(name, {}, times.get(f"{name} bare", times[name])).summary.p50
        figures |= {"limit_ms": round(limit, 4), **share_figures(limit / called)}
    figures |= times.figures(name)
    yield Record(name, {"call": "detector"}, times[name], parts, figures, state)
    for call in ("in graph", "bare"):
        if f"{name} {call}" in times:
            own = times[f"{name} {call}"]
            more = times.figures(f"{name} {call}")
            yield Record(f"{name} {call}", {"call": call}, own, figures=more, subject=state)


def draw(results: Results, path: Path) -> None:
    """Latency bars split by stage, one panel for each input size."""
    groups = by_size(results)
    heights = [len(rows) + GAP * len({r.state.model for r in rows}) for rows in groups.values()]
    figure = plots.new_figure(10, 1.7 + 0.3 * sum(heights))
    panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
    for panel, (((height, width), classes), rows) in zip(panels, groups.items(), strict=True):
        _panel(panel, rows)
        title = f"{height} × {width}, {classes} classes; ms, one image after another"
        panel.set_title(title, loc="left", fontsize=10, color=plots.INK)
    plots.legend(figure, COLOURS, LABELS)
    plots.finish(figure, results, "Latency of one image by stage, median", path)


def _panel(panel: "plots.Axes", rows: list[Record]) -> None:
    """Bars from top to bottom, a gap and a heading before each model."""
    longest, y, ticks, model = max(r.summary.p50 for r in rows), 0.0, [], ""
    for row in rows:
        state, summary = row.state, row.summary
        if state.model != model:
            model = state.model
            y += GAP
            untrained = " · untrained" if state.training == "untrained" else ""
            heading = f"{model} · {state.head_text}{untrained}"
            panel.text(
                0, y - 0.62, heading, fontsize=9, weight="bold", color=plots.INK, va="center"
            )
        text = f"{summary.p50:.1f} ms · {summary.fps_text} FPS {summary.doubt}"
        plots.stacked_bar(panel, y, stage_ms(row), COLOURS, text)
        ticks.append((y, NAMES[state.engine][1]))
        y += 1
    plots.name_bars(panel, ticks, longest * 1.22)


def page_pictures(results: Results) -> list[Picture]:
    return [
        bars_picture(records, size, lambda r: f"{r.state.model} · {label(r.state.engine)}")
        for (size, _), records in by_size(results).items()
    ]
