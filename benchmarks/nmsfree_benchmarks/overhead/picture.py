"""The picture of the overhead: stacked bars for each size, whole, around the engine, and files."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.patches import Patch

from nmsfree_benchmarks.common.on_device import titled
from nmsfree_benchmarks.common.plot_style import INK, bare_axes, finish, new_figure
from nmsfree_benchmarks.overhead.rules import OVERHEAD
from nmsfree_benchmarks.overhead.tables import by_call, models, of_model, stage_ms
from nmsfree_benchmarks.record.records import Record, Results

COLOURS = {
    "engine": "#56B4E9",
    "preprocess": "#E69F00",
    "map_back": "#009E73",
    "python": "#D55E00",
}
LABELS = {
    "engine": "engine's call",
    "preprocess": "resize + pad",
    "map_back": "boxes mapped back",
    "python": "Python between",
}
FORMATS = {"jpg": ("JPEG", "#0072B2"), "png": ("PNG", "#CC79A7")}


def draw(results: Results, path: Path) -> None:
    """Write the picture as PNG: a row of panels for each network, files at the right."""
    names = models(results)
    count = len(of_model(results, names[0]))
    figure = new_figure(12.5, 1.6 + len(names) * (0.9 + 0.42 * count))
    panels = figure.subplots(len(names), 3, squeeze=False, width_ratios=(4, 3, 3))
    for row, model in zip(panels, names, strict=True):
        records = of_model(results, model)
        _bars(row[0], records, list(COLOURS), _ratio_labels(results, records))
        around = [stage for stage in COLOURS if stage != "engine"]
        sums = [sum(stage_ms(r)[stage] for stage in around) for r in records]
        _bars(row[1], records, around, [f"{ms:.2f} ms" for ms in sums])
        row[0].set_title(f"{model}: Detector(image)", loc="left", fontsize=10)
        row[1].set_title("the same without the engine", loc="left", fontsize=10)
    _files(panels[0][2], by_call(results, "decode"))
    for panel in panels[1:, 2]:
        panel.set_visible(False)
    handles = [Patch(color=COLOURS[stage], label=LABELS[stage]) for stage in COLOURS]
    figure.legend(handles=handles, loc="outside upper right", ncols=4, frameon=False, fontsize=9)
    title = titled("What is around the network, by source picture", results)
    finish(figure, results, title, path)


def _ratio_labels(results: Results, records: Sequence[Record]) -> list[str]:
    ratios = {r.of: r.interval for r in results.ratios if r.meaning == OVERHEAD}
    return [f"{r.summary.p50:.2f} ms = {ratios[r.name].value:.2f} × bare" for r in records]


def _bars(
    axes: Axes, records: Sequence[Record], stages: Sequence[str], labels: Sequence[str]
) -> None:
    """One bar for each record from top to bottom, its label at the end."""
    longest = 0.0
    for y, (record, label) in enumerate(zip(records, labels, strict=True)):
        start, parts = 0.0, stage_ms(record)
        for stage in stages:
            axes.barh(y, parts[stage], left=start, height=0.68, color=COLOURS[stage], linewidth=0)
            start += parts[stage]
        longest = max(longest, start)
        _end_label(axes, start, y, label)
    _rows(axes, [str(r.parameters["source"]) for r in records], longest)


def _files(axes: Axes, records: Sequence[Record]) -> None:
    """Two bars for each size: JPEG and PNG."""
    sources = list(dict.fromkeys(str(r.parameters["source"]) for r in records))
    for record in records:
        kind, ms = str(record.parameters["format"]), record.summary.p50
        y = sources.index(str(record.parameters["source"])) + (0.18 if kind == "png" else -0.18)
        name, colour = FORMATS[kind]
        axes.barh(y, ms, height=0.34, color=colour, linewidth=0)
        _end_label(axes, ms, y, f"{name} {ms:.1f} ms", 8)
    axes.set_title("before it: reading and decoding a file", loc="left", fontsize=10)
    _rows(axes, sources, max((r.summary.p50 for r in records), default=1))


def _end_label(axes: Axes, x: float, y: float, text: str, size: float = 9) -> None:
    axes.annotate(text, (x, y), (4, 0), textcoords="offset points", fontsize=size,
                  color=INK, va="center")  # fmt: skip


def _rows(axes: Axes, names: Sequence[str], longest: float) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, longest * 1.6)
    axes.set_xlabel("median, ms", fontsize=9)
    bare_axes(axes, "x")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
