"""How far each model is from the peak of this device.

Matrix products and memory copies are timed in turn with the models. Multiply-adds and bytes are
counted in the ONNX files; a layer takes at least as long as its arithmetic at the peak, and as
its bytes at the rate of a copy. Beside it, by its datasheet, a GPU with a published speed.

Example: nmsfree bench roofline --onnx model.onnx

A first look: nmsfree bench roofline --quick
"""

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray

from nmsfree.backends.onnxruntime.session import make_session
from nmsfree.backends.options import parse_device
from nmsfree.errors import InputError
from nmsfree.options import Option
from nmsfree.text import one_of
from nmsfree_benchmarks.harness import pictures, plots
from nmsfree_benchmarks.harness.engines import engine_of
from nmsfree_benchmarks.harness.options import CPU, Models, RunOptions
from nmsfree_benchmarks.harness.records import Ratio, Record, Results
from nmsfree_benchmarks.harness.run import Run
from nmsfree_benchmarks.harness.statistics import Interval
from nmsfree_benchmarks.harness.subject import Subject
from nmsfree_benchmarks.harness.table import Table, number
from nmsfree_benchmarks.harness.timer import Plan
from nmsfree_benchmarks.harness.weights import NANO, published, trained

if TYPE_CHECKING:
    from nmsfree_benchmarks.roofline.graph import Layer

KIND, TITLE, SHORT = "roofline", "How far from the limit", "How far from the limit"
ASKS = "How fast could each model be at most on this device, and how much of that is reached?"
PICTURES = 4
PLAN = Plan(seconds=60, min_rounds=10, lead_in=1, burst=2)
QUICK_PLAN = Plan(seconds=6, min_rounds=10, lead_in=1, burst=2)
LARGE = "fcos_e2e_r18_3x"  # the three published networks do the same arithmetic
LAYERS = 5  # of each model in the table
RUNS, WARM_UP = 10, 3  # of a profile
KERNEL, BLOCKED = "_kernel_time", "_nchwc"  # what the profiler adds to a node's or value's name
ROOFS = ("fp32", "int8", "bf16", "fp16", "tf32")
LEFT, MARGIN = 0.5, 4.0  # FLOP for each byte at the left; room at the right, a factor


@dataclass(frozen=True, kw_only=True)
class Options(RunOptions):
    """The probes get as many threads as the engine."""

    onnx: Annotated[
        tuple[Path, ...] | None,
        Option("This file, not the bundled models; may be given again.", flags=("--onnx",)),
    ] = None
    model: Models = None
    device: Annotated[str, Option("cpu or cuda (with onnxruntime-gpu and PyTorch's CUDA).")] = CPU

    def check(self) -> None:
        if self.onnx and self.model:
            raise InputError("--onnx and --model are given, expected one of them")
        if parse_device(self.device).kind not in (CPU, "cuda"):
            raise InputError(f"device is {self.device!r}, peaks are measured on: cpu, cuda")

    def inputs(self) -> Iterator[Path]:
        yield from self.onnx or ()
        yield from super().inputs()


def measure(options: Options, run: Run) -> Iterator[Record]:
    """Time the peaks of the device and the models in turn, so that both meet the same machine."""
    from nmsfree_benchmarks.roofline.limits import limit_figures, limit_of
    from nmsfree_benchmarks.roofline.peaks import cpu_probes, cuda_probes, read_peaks

    place = parse_device(options.device)
    if place.kind == CPU:
        probes, skipped = cpu_probes(options.cores)
    else:
        probes, skipped = cuda_probes(place.index)
    run.skipped |= skipped
    images = pictures.read_first(run.val(), PICTURES)  # what NMS costs depends on them
    subjects: dict[str, Subject] = {}
    for subject in find_subjects(options, run):
        subject.open(run.stack)
        spec = subject.detector.spec
        name = f"{spec.name} {spec.precision} {spec.height}x{spec.width}"
        if f"{name} bare" in subjects:
            raise InputError(
                f"{subject.file}: another file holds {name} too: measure them in two runs and "
                "compare those"
            )
        subjects[f"{name} bare"] = subject
    calls = {probe.name: probe.call for probe in probes}
    calls |= {name: subject.bare() for name, subject in subjects.items()}
    rounds = run.time(calls, images, options.timed(QUICK_PLAN if options.quick else PLAN))
    run.settings["burst"] = rounds.burst
    yield from (probe.record(rounds[probe.name]) for probe in probes)
    peaks, step = read_peaks(probes, rounds), run.step("layers")
    for done, (name, subject) in enumerate(subjects.items(), start=1):
        limit, state = limit_of(subject.file, peaks), subject.state()
        profiled: dict[str, float] = {}
        if place.kind == CPU:
            pixels = subject.prepare(images[0])
            profiled = layer_times(subject.file, options.cores, pixels, limit.layers)
        figures = limit_figures(state, rounds[name], limit, profiled, rounds.burst)
        figures |= rounds.figures(name)
        yield Record(name, {"call": "bare"}, rounds[name], figures=figures, subject=state)
        step(done, len(subjects))


def find_subjects(options: Options, run: Run) -> list[Subject]:
    """The bundled models, exported, or the files that were named."""
    engine = engine_of(options.device)
    if options.onnx:
        return [Subject(None, engine, options.cores, file=path) for path in options.onnx]
    known = (*NANO, LARGE)
    chosen = options.model or (NANO if options.quick else known)
    for name in chosen:
        if name not in known:
            raise InputError(f"model is {name!r}, expected {one_of(known, name)}")
    found, missing = trained(options.weights) if set(chosen) & set(NANO) else ([], {})
    found = [weights for weights in found if weights.name in chosen]
    run.skipped |= {name: reason for name, reason in missing.items() if name in chosen}
    if LARGE in chosen:
        found.append(published(LARGE, options.weights, options.work))
    made = run.export([Subject(weights, engine, options.cores) for weights in found])
    if not made:
        raise run.nothing()
    return made


def layer_times(
    path: Path, threads: int, images: NDArray[np.uint8], layers: "Sequence[Layer]"
) -> dict[str, float]:
    """Run a file on images uint8 [N, H, W, 3] under ONNX Runtime's profiler, on the processor.

    Layer name → milliseconds, median of `RUNS`; their sum is above the time of a run without the
    profiler. A layer that the engine joined to another, or calls otherwise, is missing.
    """
    with tempfile.TemporaryDirectory() as folder:
        session = make_session(path, threads=threads, profile=Path(folder) / "profile")
        for _ in range(WARM_UP + RUNS):
            session.run(None, {"images": images})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    took: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(KERNEL):
            took[event["name"].removesuffix(KERNEL).removesuffix(BLOCKED)].append(event["dur"])
    found = {}
    for layer in layers:
        names = [name for name in layer.names if len(took.get(name, ())) == RUNS + WARM_UP]
        if names:
            runs = np.sum([took[name] for name in names], axis=0)[WARM_UP:]
            found[layer.name] = float(np.median(runs)) / 1e3
    return found


def models(results: Results) -> list[Record]:
    return [record for record in results.records if record.subject is not None]


def ratios(results: Results) -> Iterator[Ratio]:
    """Each model by the matrix product of FP32: what carries over to another machine."""
    products = [r for r in results.where(precision="fp32") if r.subject is None]
    for record in models(results) if products else ():
        burst = results.burst(record)
        yield Ratio.between(record, products[0], "bare call by matrix product", burst)


def facts(results: Results) -> dict[str, Any]:
    """The peaks by name with their unit, and each model's share of its limit."""
    units = (("gflop_per_s", "GFLOP/s"), ("gb_per_s", "GB/s"))
    return {
        "peaks": {
            f"{r.name}, {unit}": r.figures[key]
            for r in results.records
            for key, unit in units
            if r.subject is None and key in r.figures
        },
        "share_of_limit": {r.state.model: r.figures["share_of_limit"] for r in models(results)},
    }


PEAKS = {
    "what": lambda r: r.name,
    "GFLOP/s": lambda r: number(r.figures.get("gflop_per_s")),
    "GB/s": lambda r: number(r.figures.get("gb_per_s")),
}
MODELS = {
    "model": lambda r: r.name.removesuffix(" bare"),
    "GMAC": lambda r: f"{r.figures['gmac']:.2f}",
    "weights MB": lambda r: f"{r.figures['weights_mb']:.1f}",
    "act. MB": lambda r: f"{r.figures['activations_mb']:.1f}",
    "limit ms": lambda r: f"{r.figures['limit_ms']:.2f}",
    "bare ms": lambda r: f"{r.summary.p50:.2f}{r.summary.doubt}",
    "of the limit": lambda r: share_text(r),
}
HEAVIEST = {  # of (model, layer)
    "model": lambda of: of[0],
    "layer": lambda of: of[1]["name"],
    "kind": lambda of: of[1]["kind"],
    "GMAC": lambda of: f"{of[1]['gmac']:.3f}",
    "MB": lambda of: f"{of[1]['mb']:.2f}",
    "FLOP/byte": lambda of: f"{of[1]['flop_per_byte']:.0f}",
    "limit ms": lambda of: f"{of[1]['limit_ms']:.3f}",
    "ms": lambda of: number(of[1]["profiled_ms"], ".3f"),
    "GFLOP/s": lambda of: number(of[1]["gflop_per_s"] or None, ".0f"),
}
DATASHEET = {  # of (model, figures)
    "model": lambda of: of[0],
    "device": lambda of: of[1]["device"],
    "GFLOP": lambda of: f"{of[1]['gflop']:.0f}",
    "peak TFLOP/s": lambda of: f"{of[1]['peak_tflop_per_s']:.1f}",
    "ms": lambda of: f"{of[1]['arithmetic_ms']:.1f}",
    "FPS at most": lambda of: f"{of[1]['fps_at_most']:.0f}",
    "published": lambda of: f"{of[1]['published_fps']:.0f} FPS",
    "of it": lambda of: f"{100 * of[1]['published_share']:.0f} %",
}


def tables(results: Results) -> list[Table]:
    """Peaks, models, their heaviest layers, and a device by its datasheet."""
    found = models(results)
    layers = [(r.state.model, layer) for r in found for layer in r.figures["layers"][:LAYERS]]
    there = [(r.state.model, r.figures["datasheet"]) for r in found if r.figures["datasheet"]]
    computed = "By the datasheet: computed from the counted multiply-adds, not measured"
    made = [
        Table.of("Peaks, fastest call", PEAKS, (r for r in results.records if r.subject is None)),
        Table.of("Models: limit and bare session.run, median", MODELS, found),
        Table.of("Heaviest layers, as the profiler times them", HEAVIEST, layers, words=3),
        Table.of(computed, DATASHEET, there, words=2),
    ]
    return [table for table in made if table.rows]


def share_text(record: Record) -> str:
    """ "71 % (69 – 73)": share of the limit, with its interval; "–" where that is none."""
    f = record.figures
    if f["share_of_limit"] is None:
        return "–"
    bounds = {"value": f["share_of_limit"], "low": f["share_low"], "high": f["share_high"]}
    return Interval.from_json(bounds).times(100).text(0, " %")


def conclusions(results: Results) -> Iterator[str]:
    for record in sorted(models(results), key=lambda r: -r.figures["limit_ms"]):
        f, name = record.figures, record.name.removesuffix(" bare")
        took, least = f"{record.summary.p50:.2f} ms", f"{f['limit_ms']:.2f} ms"
        if f["share_of_limit"] is None:
            yield f"{name}: {took}, and {least} counted: {f['share_of_limit_is_empty']}."
        else:
            yield (
                f"{name}: {took}, at least {least}: {share_text(record)} of the limit, which is "
                f"arithmetic for {100 * f['limit_by_arithmetic_share']:.0f} %."
            )
        if f["beyond_limit_ms"]:
            lost = ", ".join(f"{kind} {ms:.2f} ms" for kind, ms in f["beyond_limit_ms"].items())
            yield f"{name}, time beyond the limit by kind of layer, profiled: {lost}."


def notes(results: Results) -> Iterator[str]:
    yield (
        "Limit: every layer takes as long as its arithmetic at the peak or its bytes at the "
        "rate of a copy as large, whichever is longer; a copy counts bytes read and written. "
        "Peaks are timed in the same rounds. Empty where an engine was faster: it keeps values in "
        "caches between layers, or multiplies less (Winograd)."
    )
    by_datasheet = [r.figures["datasheet"] for r in models(results)]
    for there in list(filter(None, by_datasheet))[:1]:
        yield (
            f"Computed, not measured: {there['gflop']:.0f} GFLOP at "
            f"{there['peak_tflop_per_s']:.1f} TFLOP/s ({there['device']}, FP32) take "
            f"{there['arithmetic_ms']:.1f} ms, so {there['fps_at_most']:.0f} FPS at most; the "
            f"published {there['published_fps']:.0f} FPS ({there['published_how']}) are "
            f"{100 * there['published_share']:.0f} % of it. With its memory "
            f"({there['memory_gb_per_s']:.0f} GB/s) the limit is {there['limit_ms']:.1f} ms. "
            f"Figures of the device: {there['source']}."
        )


def roofs(results: Results) -> tuple[dict[str, float], dict[str, float]]:
    """Precision → best GFLOP/s, and name of the copy → GB/s."""
    products: dict[str, float] = {}
    copies: dict[str, float] = {}
    for record in results.records:
        if record.subject is None and "gflop_per_s" in record.figures:
            key = str(record.parameters["precision"])
            products[key] = max(record.figures["gflop_per_s"], products.get(key, 0.0))
        elif record.subject is None and "gb_per_s" in record.figures:
            copies[record.name] = record.figures["gb_per_s"]
    return products, copies


def layer_points(record: Record) -> list[tuple[float, float]]:
    """(FLOP for each byte, GFLOP/s) of the heaviest layers that multiply and were profiled."""
    return [
        (layer["flop_per_byte"], layer["gflop_per_s"])
        for layer in record.figures["layers"]
        if layer["gflop_per_s"] and layer["gmac"]
    ]


def point(record: Record) -> tuple[float, float]:
    return record.figures["flop_per_byte"], record.figures["gflop_per_s"]


def draw(results: Results, path: Path) -> None:
    """Speed over FLOP for each byte, under the roofs: large dots are models, small ones layers."""
    from matplotlib.ticker import LogFormatter

    figure = plots.new_figure(10, 6)
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.set_yscale("log")
    found = models(results)
    for i, record in enumerate(found):
        colour, small = plots.SERIES[i % len(plots.SERIES)], layer_points(record)
        if small:
            axes.plot(*zip(*small, strict=True), "o", color=colour, markersize=4, alpha=0.5)
        share = record.figures["share_of_limit"]
        said = "no limit" if share is None else f"{share:.0%} of its limit"
        label = f"{record.name.removesuffix(' bare')}: {said}"
        large = {"markersize": 10, "markeredgecolor": "white", "label": label}
        axes.plot(*point(record), "o", color=colour, **large)  # type: ignore[arg-type]
    xs = [x for record in found for x, _ in (point(record), *layer_points(record))]
    left, right = min(LEFT, *xs), max(xs) * MARGIN
    _roofs(axes, results, left, right)
    axes.set_xlim(left, right)
    plots.bare_axes(axes)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.6)))
    axes.set_xlabel("FLOP for each byte read or written")
    axes.set_ylabel("GFLOP/s")
    axes.legend(fontsize=9, frameon=False, loc="lower right")
    plots.finish(figure, results, TITLE, path)


def _roofs(axes: "plots.Axes", results: Results, left: float, right: float) -> None:
    """Flat: matrix products. Slanting: copies, up to the highest flat one."""
    products, copies = roofs(results)
    xs, top = np.geomspace(left, right, 100), max(products.values())
    small = {"fontsize": 8, "color": plots.INK, "textcoords": "offset points"}
    for i, (name, rate) in enumerate(copies.items(), start=1):
        below = xs[xs * rate <= top]
        if len(below):
            axes.plot(below, below * rate, color=plots.INK, linewidth=0.9, linestyle=":")
            x = below[len(below) * i // (len(copies) + 1)]  # staggered, so that none hides another
            text, box = f"{name}: {rate:.0f} GB/s", {"color": "white", "pad": 1}
            axes.annotate(text, (x, x * rate), (8, 0), va="center", bbox=box, **small)  # type: ignore[arg-type]
    for precision in ROOFS:
        if precision in products:
            rate = products[precision]
            axes.axhline(rate, color=plots.INK, linewidth=0.9)
            text = f"matrix product {precision}: {rate:.0f} GFLOP/s"
            axes.annotate(text, (right, rate), (-4, 3), ha="right", **small)  # type: ignore[arg-type]
