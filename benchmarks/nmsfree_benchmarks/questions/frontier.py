"""AP against latency: which precision, engine and size to take.

FP32, FP16 and INT8 in every engine that works here, and FP32 in ONNX Runtime at other input
sizes: latency of Detector(image) and of the engine alone, AP of the very file in that very
engine, its size, and the memory it takes. INT8 is calibrated with the train split of digits.
Ends with advice for each model, as far as the intervals allow.

Example: nmsfree bench frontier --model fcos_e2e_nano

Your files, ours or adopted, beside the first: nmsfree bench frontier a.onnx b.onnx --data DIR

A first look: nmsfree bench frontier --quick
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nmsfree.datasets.formats.coco import DetectionDataset
from nmsfree.doctor.model import write_model
from nmsfree.errors import NmsfreeError
from nmsfree_benchmarks.harness import pictures, plots
from nmsfree_benchmarks.harness.engines import DEPLOYED, ENGINES, without_tf32
from nmsfree_benchmarks.harness.gpu import GpuWatch
from nmsfree_benchmarks.harness.memory import MemoryMeter
from nmsfree_benchmarks.harness.options import Files, Models, RunOptions
from nmsfree_benchmarks.harness.records import (
    FP32_BY,
    Ratio,
    Record,
    Results,
    grouped,
)
from nmsfree_benchmarks.harness.run import Case, Run
from nmsfree_benchmarks.harness.statistics import FEWEST_ROUNDS, Interval, milliseconds
from nmsfree_benchmarks.harness.subject import Subject
from nmsfree_benchmarks.harness.table import Table, number
from nmsfree_benchmarks.harness.timer import Plan
from nmsfree_benchmarks.harness.weights import Weights, choose

KIND, TITLE, SHORT = "frontier", "AP against latency", "Accuracy against latency"
ASKS = "Which precision, engine and input size are worth their time?"
PICTURES = 32
PLAN = Plan(seconds=90, min_rounds=25, lead_in=2, burst=4)
QUICK_PLAN = Plan(seconds=6, min_rounds=10, lead_in=1, burst=3)
QUICK_MODELS = ("fcos_e2e_nano",)
SCALES = (0.75, 1.0, 1.25, 1.5)  # of the deployed side: 192, 256, 320 and 384 of 256 pixels
STEP = 32  # pixels, of an input's sides
WORTH = 1.10  # times the speed from which another file or engine is worth the change
TOLERATED = 0.005  # AP, 0-1, whose loss does not speak against one
SPEED = f"{FP32_BY} at the deployed size by it"  # of a ratio: how many times the speed
BARE = "Detector by bare call"
PARTS = ("preprocess", "engine", "to_source")
MARKERS = dict(zip(ENGINES, "osD^<v", strict=True))
LEAST_RANGE = 2.0  # AP points that the picture shows at least: a hundredth is no difference


@dataclass(frozen=True, kw_only=True)
class Options(RunOptions):
    """A quick run has the NMS-free model alone, at its own size; of files the first engine."""

    files: Files = ()
    model: Models = None


def variants(
    found: Sequence[Weights],
    engines: Sequence[str],
    threads: int,
    scales: Sequence[float] = SCALES,
) -> list[Subject]:
    """Every precision in every engine at the deployed size, and FP32 in ONNX Runtime in all sizes.

    Engines are keys of `ENGINES` that work here, scales factors of the deployed size.
    """
    from nmsfree_export.options import PRECISIONS

    made: dict[str, Subject] = {}
    for weights in found:
        for precision in PRECISIONS:
            for key in engines:
                subject = Subject(weights, ENGINES[key], threads, precision)
                made[name_of(subject)] = subject
        for size in scaled(weights.checkpoint.input_size, scales) if DEPLOYED in engines else ():
            subject = Subject(weights, ENGINES[DEPLOYED], threads, size=size)
            made.setdefault(name_of(subject), subject)
    return list(made.values())


def scaled(size: tuple[int, int], factors: Sequence[float]) -> list[tuple[int, int]]:
    """Sizes near the factors of `size`, in whole steps of 32 pixels, none twice."""
    height, width = size
    sides = [(max(1, round(height * f / STEP)), max(1, round(width * f / STEP))) for f in factors]
    return list(dict.fromkeys((h * STEP, w * STEP) for h, w in sides))


def name_of(subject: Subject) -> str:
    height, width = subject.input_size
    return f"{subject.model} {subject.engine.key} {subject.precision} {height}x{width}"


def measure(options: Options, run: Run) -> list[Record]:
    """Export, weigh, evaluate and time everything."""
    without_tf32()
    wanted = files_in_engines(options, run) if options.files else exported(options, run)
    dataset = run.val()
    meter, step, judged = MemoryMeter(), run.step("memory and AP"), run.judged(dataset)
    subjects: list[Subject] = []
    for done, subject in enumerate(wanted):
        step(done, len(wanted))
        if subjects and run.hurries("other files and engines"):
            break
        try:
            subjects.append(weighed(subject.open(run.stack), meter, judged))
        except NmsfreeError as error:
            run.skip(name_of(subject), error, subject.file)
    step(len(wanted), len(wanted))
    if not subjects:
        raise run.nothing()
    run.gpu = GpuWatch(any(subject.engine.gpu is not None for subject in subjects))
    plan = options.timed(QUICK_PLAN if options.quick else PLAN)
    cases = [case for subject in subjects for case in cases_of(subject)]
    images = pictures.read_first(dataset, PICTURES)
    records, run.settings["burst"] = run.records(cases, images, plan)
    return records


def cases_of(subject: Subject) -> Iterator[Case]:
    own, name, state = subject.weights, name_of(subject), subject.state()
    deployed = own is None or subject.input_size == own.checkpoint.input_size
    about = {"file": subject.precision, "deployed_size": deployed}
    whole = about | {"call": "detector"}
    yield Case(name, subject.call(), whole, subject.figures, PARTS, state)
    yield Case(f"{name} bare", subject.bare(), about | {"call": "bare"}, state=state)


def exported(options: Options, run: Run) -> list[Subject]:
    """The bundled models in every precision, engine and size, exported."""
    models = options.model or (QUICK_MODELS if options.quick else None)
    found, missing = choose(options.weights, models)
    run.skipped |= {} if models else missing
    ready = run.export([Subject(weights, ENGINES[DEPLOYED], options.cores) for weights in found])
    if not ready:
        raise run.nothing()
    engines = working_engines(ready[0].file, run)
    wanted = variants(found, engines, options.cores, (1.0,) if options.quick else SCALES)
    wanted = [one for one in wanted if one.file_name not in run.skipped]
    return run.export(wanted, "export precisions and sizes")


def files_in_engines(options: Options, run: Run) -> list[Subject]:
    """Files of the user's own in every engine that works here."""
    options.work.mkdir(parents=True, exist_ok=True)
    engines = working_engines(write_model(options.work), run)
    engines = engines[: 1 if options.quick else None]
    subjects = [run.files(ENGINES[key]) for key in engines]
    return [own for of_file in zip(*subjects, strict=True) for own in of_file]


def working_engines(file: Path, run: Run) -> list[str]:
    """Try every engine on a file; why some do not work goes to `skipped`."""
    works = []
    for key, engine in ENGINES.items():
        try:
            engine.open(file, run.options.cores).close()
        except NmsfreeError as error:
            run.skip(engine.label, error, file)
        else:
            works.append(key)
    return works


def weighed(subject: Subject, meter: MemoryMeter, judged: DetectionDataset) -> Subject:
    """Measure memory and AP of an open subject; an engine may still refuse the file."""
    from nmsfree.evaluation.jackknife import FoldScorer

    subject.weigh(meter)
    found = subject.judge(judged)
    tenths = [round(tenth, 5) for tenth in FoldScorer(judged).ap(found)[1]]
    subject.figures["ap_without_tenths"] = tenths  # of the images, left out one after another
    return subject


def gap_interval(
    of: float, to: float, of_without: Sequence[float], to_without: Sequence[float]
) -> Interval:
    """An AP minus another, 0-1, from both and those without tenths; no bounds without those."""
    from nmsfree.evaluation.jackknife import gap_bounds

    return Interval(of - to, *(gap_bounds(of, to, of_without, to_without) or ()))


def ap_of(record: Record) -> float:
    assert record.state.ap is not None
    return record.state.ap


def gap_between(of: Record, to: Record) -> Interval:
    tenths = (record.figures["ap_without_tenths"] for record in (of, to))
    return gap_interval(ap_of(of), ap_of(to), *tenths)


def reference_of(results: Results, record: Record) -> Record | None:
    """What a record is held against: its model's FP32 file as deployed, or the first file."""
    files = results.settings.get("files")
    like = {"call": "detector", "deployed_size": True} | ({} if files else {"file": "fp32"})
    model = files[0] if files else record.state.model
    found = [r for r in results.where(**like) if r.state.engine == DEPLOYED]
    return next((r for r in found if r.state.model == model), None)


def ratios(results: Results) -> Iterator[Ratio]:
    """Of every detector: its model's reference by it, and it by its engine alone."""
    for record in results.where(call="detector"):
        reference, burst = reference_of(results, record), results.burst(record)
        if reference is not None and reference is not record:
            yield Ratio.between(reference, record, SPEED, burst)
        yield Ratio.between(record, results.record(f"{record.name} bare"), BARE, burst)


def pareto(records: Sequence[Record]) -> list[Record]:
    """Those than which no other is both faster (median) and better (AP); fastest first."""
    best, front = -1.0, []
    for record in sorted(records, key=lambda r: (r.summary.p50, -ap_of(r))):
        if ap_of(record) > best:
            best = ap_of(record)
            front.append(record)
    return front


def what(record: Record, reference: Record) -> str:
    """Name a record by what tells it from its reference: "INT8 in OpenVINO"."""
    if record.state.model != reference.state.model:
        return f"{record.state.model} in {ENGINES[record.state.engine].label}"
    engine, (height, width) = record.state.engine, record.state.size
    if not record.parameters["deployed_size"]:
        return f"{height} × {width} input"
    if engine == "openvino_bf16" and record.parameters["file"] == "fp32":
        return "bf16 in OpenVINO"
    return f"{record.parameters['file'].upper()} in {ENGINES[engine].label}"


def advise(name: str, speed: Interval, gap: Interval) -> str:
    """Whether a change is worth it, by how many times the speed and how much AP it gives."""
    figures = f"{speed.value:.2f} × the speed, {points(gap.value)} AP"
    if speed.low > WORTH and gap.low >= -TOLERATED:
        return f"{name}: {figures}: take it"
    if speed.low > WORTH and gap.high < 0:
        return f"{name}: {figures}: take it only if the AP can be spared"
    if speed.low > WORTH:
        bounds = f"{points(gap.low)} … {points(gap.high)}" if gap.known else "–"
        return f"{name}: {figures} ({bounds}): too close to say, measure AP on more images"
    if speed.value < 1 and gap.low > 0:
        return f"{name}: {figures}: take it if the time can be spared"
    if speed.high <= WORTH:
        return f"{name} is not worth it here: {figures}"
    if not speed.known:
        return f"{name}: {figures}: undecided, under {FEWEST_ROUNDS} rounds were timed"
    return f"{name}: {figures}: too close to say, the speed is {speed.low:.2f} … {speed.high:.2f} ×"


def points(ap: float) -> str:
    """A difference of APs in points of 100, with its sign: "−0.3"."""
    shown = f"{100 * ap:+.1f}".replace("-", "−")
    return "±0.0" if shown in ("+0.0", "−0.0") else shown


def compared(results: Results) -> Iterator[tuple[Record, Record, Interval]]:
    """Every record that has a reference, that, and how many times its speed it has."""
    for ratio in results.ratios:
        if ratio.meaning == SPEED:
            yield results.record(ratio.to), results.record(ratio.of), ratio.interval


def advice(results: Results) -> dict[str, list[str]]:
    """Model → what to do, one line for each alternative."""
    lines: dict[str, list[str]] = {}
    for record, reference, speed in compared(results):
        line = advise(what(record, reference), speed, gap_between(record, reference))
        lines.setdefault(reference.state.model, []).append(line)
    return lines


def facts(results: Results) -> dict[str, Any]:
    gaps = {a.name: gap_between(a, b).to_json() for a, b, _ in compared(results)}
    front = [r.name for r in pareto(results.where(call="detector"))]
    return {"advice": advice(results), "pareto": front, "ap_gap": gaps}


def conclusions(results: Results) -> Iterator[str]:
    """Advice, the frontier, and which neighbours on it cannot be told apart."""
    for model, lines in advice(results).items():
        yield from (f"{model}: {line}." for line in lines)
    front = pareto(results.where(call="detector"))
    unsure = [
        f"{a.name} and {b.name}"
        for a, b in itertools.pairwise(front)
        if not results.told_apart(Ratio.between(a, b, SPEED, results.burst(a)))[0]
    ]
    names = ", ".join(r.name for r in front)
    yield f"On the frontier by medians and AP as measured, fastest first: {names}." + (
        f" Of the same speed, as far as the intervals tell: {'; '.join(unsure)}." if unsure else ""
    )


def tables(results: Results) -> list[Table]:
    """A table of precision × engine × input size for each model."""
    beside = {a.name: (speed, gap_between(a, b)) for a, b, speed in compared(results)}

    def speed(r: Record) -> str:
        if r.name in beside:
            return beside[r.name][0].text(dash="–")
        return "1" if reference_of(results, r) is r else "–"

    def gap(r: Record) -> str:
        if r.name in beside:
            return points(beside[r.name][1].value)
        return "" if reference_of(results, r) is r else "–"

    made = []
    found = grouped(results.where(call="detector"), lambda r: r.state.model)
    fronts = [record for records in found.values() for record in pareto(records)]
    for model, records in found.items():
        state = records[0].state
        columns = {
            "file": lambda r: r.parameters["file"] + ("*" if r in fronts else ""),
            "engine": lambda r: ENGINES[r.state.engine].short + r.summary.doubt,
            "input": lambda r: "×".join(map(str, r.state.size)),
            "p50 ms": lambda r: f"{r.summary.p50:.2f}",
            "p99 ms": lambda r: number(r.summary.p99),
            "bare ms": lambda r: f"{results.record(f'{r.name} bare').summary.p50:.2f}",
            "× speed (95 %)": speed,
            "AP": lambda r: f"{100 * ap_of(r):.1f}",
            "ΔAP": gap,
            "MB": lambda r: f"{r.state.file_bytes / 1e6:.1f}",
            "RAM": lambda r: f"{r.figures['engine_rss_mb']:.0f}",
        }
        title = f"{model}, {state.head_text}: AP on {state.ap_images} images; file and its "
        made.append(Table.of(f"{title}engine's RAM in MB", columns, records, words=3))
    return made


def notes(results: Results) -> Iterator[str]:
    reference = "FP32 in ONNX Runtime at the deployed size"
    if "files" in results.settings:
        reference = f"{results.settings['files'][0]} in ONNX Runtime"
    yield (
        "Latency is of Detector(image) with the picture in memory, bare of the engine's call "
        f"alone; × speed and ΔAP are beside {reference}; AP is of the very "
        "file in that very engine; RAM is the peak of a process of its own, minus that of one "
        "which opens no model. * is on its model's frontier."
    )


def draw(results: Results, path: Path) -> None:
    """AP over latency: colour is the model, marker the engine, label precision or size."""
    from matplotlib.lines import Line2D

    records = results.where(call="detector")
    colour = plots.colours(list(dict.fromkeys(r.state.model for r in records)))
    figure = plots.new_figure(10, 7)
    axes = figure.subplots()
    for record in records:  # the median, and a line from the first to the third quarter
        p25, p50, p75 = np.percentile(milliseconds(record.times), (25, 50, 75)).tolist()
        ap, own = 100 * ap_of(record), colour[record.state.model]
        axes.plot([p25, p75], [ap, ap], color=own, linewidth=1, alpha=0.5, zorder=2)
        marker = MARKERS[record.state.engine]
        axes.plot(p50, ap, marker, color=own, markersize=7, zorder=3, markeredgecolor="white")
    axes.set_xlim(0, 1.12 * max(r.summary.p50 for r in records))
    aps = [100 * ap_of(r) for r in records]
    middle = (min(aps) + max(aps)) / 2
    half = max(LEAST_RANGE, 1.24 * (max(aps) - min(aps))) / 2
    axes.set_ylim(middle - half, middle + half)
    front, right = pareto(records), axes.get_xlim()[1]
    x = [*(r.summary.p50 for r in front), right]
    y = [100 * ap_of(r) for r in front]
    axes.step(x, [*y, y[-1]], where="post", color=plots.FAINT, linewidth=1.2, zorder=1)
    axes.text(right, y[-1], "frontier ", ha="right", va="bottom", fontsize=9, color=plots.FAINT)
    plots.bare_axes(axes)
    axes.set_xlabel("latency of Detector(image), median, ms")
    data = "val" if "files" in results.settings else "digits val"
    axes.set_ylabel(f"AP on {data}, {records[0].state.ap_images} images")
    plots.label_points(axes, [_label(r, colour[r.state.model]) for r in records])
    handles = [Line2D([], [], color=c, linewidth=4, label=model) for model, c in colour.items()]
    for key in dict.fromkeys(r.state.engine for r in records):
        style = {"color": plots.INK, "marker": MARKERS[key], "linestyle": ""}
        handles.append(Line2D([], [], label=ENGINES[key].short, **style))  # type: ignore[arg-type]
    axes.legend(handles=handles, loc="lower right", frameon=False, fontsize=9)
    plots.finish(figure, results, "AP against latency", path)


def _label(record: Record, colour: str) -> tuple[float, float, str, str]:
    text, (height, width) = str(record.parameters["file"]), record.state.size
    if not record.parameters["deployed_size"]:
        text = f"{height} px" if height == width else f"{height} × {width} px"
    return record.summary.p50, 100 * ap_of(record), text, colour
