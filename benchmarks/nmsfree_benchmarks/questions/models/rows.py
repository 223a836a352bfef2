"""Models in engines, ready to be timed: what `nmsfree bench` puts into its table."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nmsfree.backends.contract import one_line
from nmsfree.datasets.formats.coco import DetectionDataset
from nmsfree.detector import Detector
from nmsfree.errors import DataError, GateError, ModelError, NmsfreeError
from nmsfree_benchmarks.harness.engines import DEPLOYED, ENGINES, Engine
from nmsfree_benchmarks.harness.memory import MemoryMeter
from nmsfree_benchmarks.harness.options import CPU, RunOptions
from nmsfree_benchmarks.harness.records import Record
from nmsfree_benchmarks.harness.run import Run
from nmsfree_benchmarks.harness.statistics import STAGES, shares
from nmsfree_benchmarks.harness.subject import Subject, subjects_of
from nmsfree_benchmarks.harness.timer import Call, Image, Plan, Rounds, Stopwatch, timed
from nmsfree_benchmarks.harness.weights import Weights
from nmsfree_benchmarks.questions.models.summary import COMPILED, EAGER, OTHERS, in_precision
from nmsfree_export.options import Precision

LOAD_PICTURES = 4


@dataclass(frozen=True, eq=False)
class Group:
    """Models of one size, whose rows take turns."""

    size: str  # one of `SIZES`, or "files"
    weights: Sequence[Weights]
    images: list[Image]  # what the times are measured on
    judged: DetectionDataset | None  # images for AP; None where the weights mean nothing on them
    engines: Sequence[str]  # of `CPU_ENGINES`, to time where the device is the processor
    files: Sequence[Path] = ()  # of the user's own, in place of weights


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
    """Further engines, each with the precision of its file."""
    if options.quick and options.device == CPU:
        return []
    return [(in_precision(ENGINES[key], kind), kind) for key, kind in OTHERS[options.device]]


def open_rows(group: Group, run: Run) -> list[Row]:
    """Export every model in every precision, and put it into every engine of the device.

    GateError: an FP32 file, which all else is held against, could not be made.
    """
    if group.files:
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
        for subject in subjects_of(group.files, engine, run.options.cores, run.options.work):
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
    """The row, and what was timed of it besides."""
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
