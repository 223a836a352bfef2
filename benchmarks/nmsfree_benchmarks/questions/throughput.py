"""Images a second over batch and parallel streams.

Batches of 1 to 16 and 1 to 8 threads that share one Detector, with one engine thread and with
--threads of them, with NMS and without; and where more stops to give more. On another device
than the processor every batch has a file of its own.

Example: nmsfree bench throughput

One model: nmsfree bench throughput --model fcos_e2e_nano --seconds 60

Your files, ours or adopted: nmsfree bench throughput a.onnx b.onnx

On a GPU: nmsfree bench throughput --device tensorrt-rtx
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from nmsfree.detector import Detector
from nmsfree_benchmarks.harness import pictures, plots
from nmsfree_benchmarks.harness.engines import ENGINES, engine_of, on_gpu, ran_in
from nmsfree_benchmarks.harness.options import CPU, Files, Models, OnDevice, RunOptions
from nmsfree_benchmarks.harness.records import Ratio, Record, Results, grouped
from nmsfree_benchmarks.harness.run import Run
from nmsfree_benchmarks.harness.statistics import paired_ratio, percentile
from nmsfree_benchmarks.harness.subject import Subject
from nmsfree_benchmarks.harness.table import Table, number
from nmsfree_benchmarks.harness.timer import Image, Laps, Plan, Rounds
from nmsfree_benchmarks.harness.weights import choose

KIND, TITLE, SHORT = "throughput", "Throughput", "Throughput"
ASKS = "How many images a second, when several are under way at once?"
MODELS = ("fcos_rt_nano", "fcos_e2e_nano")  # with NMS and without
BATCHES, STREAMS = (1, 2, 4, 8, 16), (1, 2, 4, 8)
QUICK_BATCHES, QUICK_STREAMS = (1, 4, 16), (1, 2, 4)
PICTURES = 32
# The pause lets the threads of one engine stop spinning before the next one begins.
PLAN = Plan(seconds=200, min_rounds=10, pause=0.03)
QUICK_PLAN = Plan(seconds=15, min_rounds=10, pause=0.02)
WINDOW, QUICK_WINDOW = 0.5, 0.12  # seconds
NEAR = 1.05  # times the time of the best one up to which a configuration is as good
AXES = ("streams", "batch")  # what grows along a curve; the other one is 1
WITH_NMS, PER_IMAGE = "with NMS by without", "time of an image by that of one at a time"
LABELS = {"streams": "parallel streams, one image a call", "batch": "images of a call, one stream"}


@dataclass(frozen=True, kw_only=True)
class Options(RunOptions):
    """Each model has one engine thread and `cores` of them; a GPU has no such threads."""

    files: Files = ()
    model: Models = None
    device: OnDevice = CPU

    @property
    def engine_threads(self) -> list[int]:
        return [self.cores] if on_gpu(self.device) else sorted({1, self.cores})

    def loads(self) -> list[tuple[int, int]]:
        """(batch, streams); while one of them grows the other is 1."""
        batches = QUICK_BATCHES if self.quick else BATCHES
        streams = QUICK_STREAMS if self.quick else STREAMS
        return [(batch, 1) for batch in batches] + [(1, n) for n in streams if n > 1]


@dataclass(frozen=True)
class Window:
    """What one fixed time gave: from the common start to the end of the last call.

    `processor_ns` is that of the whole process, spinning threads included.
    """

    elapsed_ns: int
    images: int
    processor_ns: int
    calls_ns: tuple[int, ...]


def run_window(
    detector: Detector, images: Sequence[Image], batch: int, streams: int, seconds: float
) -> Window:
    """Let threads call `detector.batch` until the time is over; a call that has begun is finished.

    Every stream begins with another image, BGR uint8 [h, w, 3].
    """
    began: dict[str, int] = {}

    def begin() -> None:
        began["processor"], began["start"] = time.process_time_ns(), time.perf_counter_ns()

    gate = threading.Barrier(streams, action=begin)  # one start, once the last of them is there

    def stream(first: int) -> tuple[list[int], int]:
        """Nanoseconds of each call, and when the last one ended."""
        count, calls = len(images), list[int]()
        gate.wait()
        before, end = began["start"], began["start"] + int(seconds * 1e9)
        while before < end:
            lead = first + len(calls)  # every picture leads in its turn
            detector.batch([images[(lead + i) % count] for i in range(batch)])
            after = time.perf_counter_ns()
            calls.append(after - before)
            before = after
        return calls, before

    with ThreadPoolExecutor(streams, thread_name_prefix="nmsfree-stream") as pool:
        found = [one.result() for one in [pool.submit(stream, n) for n in range(streams)]]
    calls = tuple(nanoseconds for one, _ in found for nanoseconds in one)
    elapsed = max(end for _, end in found) - began["start"]
    return Window(elapsed, batch * len(calls), time.process_time_ns() - began["processor"], calls)


@dataclass(eq=False)
class Load:
    """A subject under one load; called as a `Call` it runs one window of all pictures."""

    subject: Subject
    batch: int
    streams: int
    images: Sequence[Image]
    seconds: float
    windows: list[Window] = field(default_factory=list)

    @property
    def name(self) -> str:
        load = f"batch {self.batch} streams {self.streams}"
        return f"{self.subject.model} threads {self.subject.threads} {load}"

    def __call__(self, _: Image) -> Laps:
        """Nanoseconds per image."""
        detector = self.subject.detector
        window = run_window(detector, self.images, self.batch, self.streams, self.seconds)
        self.windows.append(window)
        return Laps((window.elapsed_ns // window.images,), window.processor_ns // window.images)

    def record(self, rounds: Rounds) -> Record:
        """Times [windows, 1] ns an image; latency and processor time of the same windows."""
        times = rounds[self.name]
        timed = self.windows[-len(times) :]  # without the warm-up
        calls = np.concatenate([window.calls_ns for window in timed]) / 1e6
        p99 = percentile(calls, 99)
        images = sum(window.images for window in timed)
        processor = sum(window.processor_ns for window in timed) / images / 1e6
        figures = {
            "images": images,
            "call_p50_ms": round(float(np.median(calls)), 3),
            "call_p99_ms": None if p99 is None else round(p99, 3),
            "processor_ms_per_image": round(processor, 4),
            **rounds.figures(self.name),
        }
        state = self.subject.state(batch=self.batch)
        load = {"batch": self.batch, "streams": self.streams, "threads": self.subject.threads}
        return Record(self.name, load, times, ("image",), figures, state)


def measure(options: Options, run: Run) -> list[Record]:
    """Time every model, with one and with all engine threads, under every load."""
    images = pictures.read_first(run.val(), PICTURES)
    subjects = files_of(options, run, images) if options.files else bundled(options, run)
    window = QUICK_WINDOW if options.quick else WINDOW
    loads = [
        Load(subject, batch, streams, images, window)
        for subject, only in subjects
        for batch, streams in options.loads()
        if only in (None, batch)
    ]
    plan = options.timed(QUICK_PLAN if options.quick else PLAN)
    rounds = run.time({load.name: load for load in loads}, images, plan)
    run.settings |= {"burst": 1, "window_s": window}
    return [load.record(rounds) for load in loads]


Subjects = list[tuple[Subject, int | None]]  # open ones, each for one batch or for all of them


def bundled(options: Options, run: Run) -> Subjects:
    """The trained models, exported and opened.

    On the processor a model has one file for all batches. Elsewhere each batch has its own, as it
    is deployed: compilers and CUDA graphs want shapes that are fixed.
    """
    found, run.skipped = choose(options.weights, options.model, MODELS)
    engine = engine_of(options.device)
    batches: list[int | None] = [None]
    if options.device != CPU:
        batches = [*sorted({batch for batch, _ in options.loads()})]
    subjects = [
        Subject(weights, engine, threads, batch=batch)
        for weights in found
        for threads in options.engine_threads
        for batch in batches
    ]
    run.export_whole(subjects)
    return [(subject.open(run.stack), subject.batch) for subject in subjects]


def files_of(options: Options, run: Run, images: Sequence[Image]) -> Subjects:
    """Files of the user's own, opened; what is no detector is skipped."""
    subjects = [
        subject
        for threads in options.engine_threads
        for subject in run.files(threads=threads)
        if run.open(subject, f"{subject.name} threads {threads}", images)
    ]
    if not subjects:
        raise run.nothing()
    return [(subject, None) for subject in subjects]


def ratios(results: Results) -> Iterator[Ratio]:
    """Every load by one image at a time, and with NMS by without under the same load."""
    for record in results.records:
        threads = record.parameters["threads"]
        single = results.where(batch=1, streams=1, threads=threads)
        own = next(r for r in single if r.state.model == record.state.model)
        if record is not own:
            yield Ratio.between(record, own, PER_IMAGE)
        for other in results.where(**record.parameters):
            if record.state.nms is None and other.state.nms:
                yield Ratio.between(other, record, WITH_NMS)


@dataclass(frozen=True)
class Curve:
    """Records of one model and number of engine threads along one axis, smallest first."""

    model: str
    threads: int
    axis: str
    records: tuple[Record, ...]

    @property
    def name(self) -> str:
        state = self.records[0].state
        if state.on_gpu:
            return f"{self.model}, {ENGINES[state.engine].label}"
        return f"{self.model}, {self.threads} engine thread" + ("s" if self.threads > 1 else "")

    @cached_property
    def best(self) -> Record:
        return min(self.records, key=lambda r: r.summary.p50)

    @cached_property
    def at(self) -> Record:
        """Where it saturates: the smallest whose time of an image is surely near the best one's."""
        return next(r for r in self.records if r is self.best or _near(r, self.best))

    @cached_property
    def open_end(self) -> bool:
        """More may give more: nothing before the last is surely as good as the last."""
        last = self.records[-1]
        return len(self.records) > 1 and (self.at is last or not _near(self.at, last))

    @property
    def said(self) -> str:
        at, best = (_amount(self.axis, r.parameters[self.axis]) for r in (self.at, self.best))
        several = self.axis == "streams" and self.at.parameters["streams"] > 1
        text = (
            f"{self.name}: {at} reach{'' if several else 'es'} {self.at.summary.fps:.0f} images/s"
        )
        if self.at is not self.best:
            text += f", the best ({best}) {self.best.summary.fps:.0f}"
        if not self.open_end:
            return f"{text}: saturated."
        if self.at is self.records[-1]:
            return f"{text}: not saturated within what was tried."
        return f"{text}: undecided whether more gives more."


def _amount(axis: str, count: int) -> str:
    if axis == "batch":
        return f"batch {count}"
    return f"{count} stream" + ("s" if count > 1 else "")


def _near(record: Record, best: Record) -> bool:
    return paired_ratio(record.times, best.times).high <= NEAR


def curves(records: Sequence[Record]) -> list[Curve]:
    """Sort records into curves; that of one stream and batch 1 begins both of its engine's."""
    found = []
    for axis, other in (AXES, AXES[::-1]):
        along = sorted(
            (r for r in records if r.parameters[other] == 1), key=lambda r: int(r.parameters[axis])
        )
        models = grouped(along, lambda r: (r.state.model, r.parameters["threads"]))
        found += [Curve(*key, axis, tuple(own)) for key, own in models.items()]
    return found


def facts(results: Results) -> dict[str, Any]:
    return {
        "saturation": [
            {
                "model": curve.model,
                "threads": curve.threads,
                "axis": curve.axis,
                "at": curve.at.parameters[curve.axis],
                "best": curve.best.parameters[curve.axis],
                "open_end": curve.open_end,
                "images_per_second": round(curve.at.summary.fps, 1),
            }
            for curve in curves(results.records)
        ]
    }


def conclusions(results: Results) -> Iterator[str]:
    """Where it saturates, and the most images a second of each model."""
    yield from (curve.said for curve in curves(results.records))
    for model, own in grouped(results.records, lambda r: r.state.model).items():
        r = min(own, key=lambda r: r.summary.p50)
        threads = "" if r.state.on_gpu else f", engine threads {r.parameters['threads']}"
        yield (
            f"{model} at most: {r.summary.fps:.0f} images/s, batch {r.parameters['batch']}, "
            f"streams {r.parameters['streams']}{threads}."
        )
    yield from ran_in(results)


def tables(results: Results) -> list[Table]:
    """A table for each model and number of engine threads: batches, then streams."""

    def load(of: tuple[str, Record]) -> str:
        axis, size = of[0], of[1].parameters[of[0]]
        name = f"batch {size}" if axis == "batch" else f"{size} streams"
        return ("single" if size == 1 else name) + of[1].summary.doubt

    def by_single(of: tuple[str, Record]) -> str:
        ratio = results.ratio_of(PER_IMAGE, of=of[1])
        return "1" if ratio is None else str(ratio.interval)

    columns = {
        "load": load,
        "images/s": lambda of: of[1].summary.fps_text,
        "ms/image": lambda of: f"{of[1].summary.p50:.2f}",
        "by that of single (95 %)": by_single,
        "call p50 ms": lambda of: f"{of[1].figures['call_p50_ms']:.2f}",
        "call p99 ms": lambda of: number(of[1].figures["call_p99_ms"], ".2f"),
        "CPU ms/image": lambda of: f"{of[1].figures['processor_ms_per_image']:.2f}",
    }
    found: dict[str, list[tuple[str, Record]]] = {}
    for curve in sorted(curves(results.records), key=lambda curve: AXES.index(curve.axis) == 0):
        rows = found.setdefault(curve.name, [])
        # One image at a time is the first of both curves.
        rows += [(curve.axis, record) for record in curve.records[bool(rows) :]]
    return [Table.of(name, columns, rows) for name, rows in found.items()]


def notes(results: Results) -> list[str]:
    return [
        f"Every load runs for windows of {results.settings['window_s']:g} s, in turn with all "
        "others, from pictures in memory to boxes; images/s is the median of its windows, single "
        "is one image a call and one stream. Streams are threads that share one Detector, each "
        "with one image a call. CPU ms is the processor time of an image, with what the engine's "
        "threads spend waiting.",
        *(
            []
            if results.environment["device"] == CPU or "files" in results.settings
            else ["Every batch has a file of its own."]
        ),
    ]


def draw(results: Results, path: Path) -> None:
    """Above images a second, below processor time of an image; over streams and over batch."""
    figure = plots.new_figure(11, 7.2)
    panels = figure.subplots(2, 2, sharey="row")
    found = curves(results.records)
    colour = plots.colours(list(dict.fromkeys(curve.model for curve in found)))
    fewest, most = (f(curve.threads for curve in found) for f in (min, max))
    values = (lambda r: r.summary.fps, lambda r: float(r.figures["processor_ms_per_image"]))
    for column, axis in zip(panels.T, AXES, strict=True):
        own = [curve for curve in found if curve.axis == axis]
        for axes, value in zip(column, values, strict=True):
            for curve in own:
                style = "--" if curve.threads == fewest < most else "-"
                x = [int(r.parameters[axis]) for r in curve.records]
                look = {"color": colour[curve.model], "marker": "o", "markersize": 4}
                axes.plot(x, list(map(value, curve.records)), style, label=curve.name, **look)
        for curve in own:  # a ring around the smallest load as good as the best
            if not curve.open_end:
                ring = {"ms": 11, "mfc": "none", "mec": colour[curve.model]}
                column[0].plot(curve.at.parameters[axis], curve.at.summary.fps, "o", **ring)
        numbers = sorted({int(r.parameters[axis]) for curve in own for r in curve.records})
        for axes in column:
            axes.set_xscale("log", base=2)
            axes.set_xticks(numbers, [str(n) for n in numbers], minor=False)
            axes.minorticks_off()
            axes.set_xlim(numbers[0] / 1.15, numbers[-1] * 1.5)
            axes.set_ylim(0, 1.05 * axes.dataLim.y1)  # room for the ring of the highest point
            plots.bare_axes(axes)
        column[1].set_xlabel(LABELS[axis], color=plots.INK)
    panels[0, 0].set_ylabel("images/s")
    panels[1, 0].set_ylabel("processor time of an image, ms")
    for column, axis in zip(panels.T, AXES, strict=True):
        for axes, value in zip(column, values, strict=True):
            own = [curve for curve in found if curve.axis == axis]
            ends = [_end(c, value, colour[c.model]) for c in own]
            plots.label_points(axes, ends, right=True)
    handles, names = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper right", ncols=2, frameon=False, fontsize=9)
    title = "Throughput, median of windows; ring: more gives no more"
    plots.finish(figure, results, title, path)


def _end(
    curve: Curve, value: Callable[[Record], float], colour: str
) -> tuple[float, float, str, str]:
    last = curve.records[-1]
    y, digits = value(last), 0 if value(last) >= 100 else 1
    threads = f" {curve.threads} thread" + ("s" if curve.threads > 1 else "")
    text = f"{y:.{digits}f}" + ("" if last.state.on_gpu else threads)
    return float(last.parameters[curve.axis]), y, text, colour
