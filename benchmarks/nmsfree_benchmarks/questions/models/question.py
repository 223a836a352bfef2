"""Measure NMS-free against NMS: latency by stage, AP of the timed files.

All models of a size run in turn: in PyTorch as published, and as files exported here in ONNX
Runtime and OpenVINO, FP32 and INT8; on a GPU in PyTorch, ONNX Runtime and TensorRT-RTX, FP32,
FP16 and INT8. Models at 512 × 736 without published weights get random ones and no AP.

A first look: nmsfree bench --quick

Your files beside the first: nmsfree bench a.onnx b.onnx --data DIR

On a GPU: nmsfree bench --device cuda
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from nmsfree.errors import ModelError
from nmsfree_benchmarks.harness import pictures, plots
from nmsfree_benchmarks.harness.engines import DEPLOYED, without_tf32
from nmsfree_benchmarks.harness.gpu import joules_per_image
from nmsfree_benchmarks.harness.options import CPU
from nmsfree_benchmarks.harness.records import Record, Results
from nmsfree_benchmarks.harness.run import Run
from nmsfree_benchmarks.harness.timer import Plan
from nmsfree_benchmarks.harness.weights import PUBLISHED, published, trained
from nmsfree_benchmarks.questions.models import Options
from nmsfree_benchmarks.questions.models.rows import (
    Group,
    knows,
    open_rows,
    records_of,
    time_with_peaks,
    weigh,
)
from nmsfree_benchmarks.questions.models.summary import (
    BASELINE,
    CPU_ENGINES,
    NAMES,
    by_size,
    conclusions,
    facts,
    label,
    notes,
    ratios,
    stage_ms,
    tables,
)
from nmsfree_benchmarks.report.svg import Picture, bars_picture

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
QUICK_AP_IMAGES = 40
NANO_PICTURES, HD_PICTURES = 32, 4
COLOURS = {"preprocess": "#E69F00", "network": "#56B4E9", "postprocess": "#D55E00"}
LABELS = {
    "preprocess": "preprocessing",
    "network": "network",
    "postprocess": "post-processing + NMS",
}
GAP = 0.9  # between models in the picture, in bars


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
    dataset = run.val() if options.files else run.digits_val()
    images = pictures.read_first(dataset, NANO_PICTURES)
    if options.files:
        run.settings["files"] = [file.stem for file in options.files]
        judged = pictures.first(dataset, QUICK_AP_IMAGES if options.quick else None)
        yield Group("files", (), images, judged, (), options.files)
        return
    if options.size != "large":
        found, missing = trained(options.weights)
        run.skipped |= missing
        judged = pictures.first(dataset, QUICK_AP_IMAGES if options.quick else None)
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
            if run.left < options.quick_seconds / 2:
                run.skipped["AP of other rows"] = "a quick run has no time for it here"
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
