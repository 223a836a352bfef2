"""The picture of throughput: images a second and their cost, over streams and over batch."""

from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from nmsfree_benchmarks.common.on_device import titled
from nmsfree_benchmarks.common.plot_style import (
    INK,
    bare_axes,
    colours,
    finish,
    label_ends,
    new_figure,
)
from nmsfree_benchmarks.record.records import Record, Results
from nmsfree_benchmarks.record.verdict import judge
from nmsfree_benchmarks.throughput.rules import AXES, Curve, curves, on_a_gpu, saturation

LABELS = {"streams": "parallel streams, one image a call", "batch": "images of a call, one stream"}


def draw(results: Results, path: Path) -> None:
    """Write the picture as PNG: above images a second, below processor time of an image."""
    figure = new_figure(11, 7.2)
    panels = figure.subplots(2, 2, sharey="row")
    found = curves(results.records)
    models = list(dict.fromkeys(curve.model for curve in found))
    colour = colours(models)
    fewest, most = (f(curve.threads for curve in found) for f in (min, max))
    for column, axis in zip(panels.T, AXES, strict=True):
        shown = [curve for curve in found if curve.axis == axis]
        for curve in shown:
            style = "--" if curve.threads == fewest < most else "-"
            _line(column[0], curve, colour[curve.model], style, _speed)
            _line(column[1], curve, colour[curve.model], style, _cost)
        if judge(results).ranks:
            _mark(column[0], shown, colour)
        _axis(column, shown, axis)
    panels[0, 0].set_ylabel("images/s")
    panels[1, 0].set_ylabel("processor time of an image, ms")
    for panel in panels.ravel():
        panel.set_ylim(bottom=0)
    figure.draw_without_rendering()  # the places of the labels are those of the final layout
    for column, axis in zip(panels.T, AXES, strict=True):
        shown = [curve for curve in found if curve.axis == axis]
        for panel, value in zip(column, (_speed, _cost), strict=True):
            label_ends(panel, [_end(curve, value, colour[curve.model]) for curve in shown])
    handles, names = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper right", ncols=2, frameon=False, fontsize=9)
    ring = "; ring: more gives no more" if judge(results).ranks else ""
    finish(figure, results, titled(f"Throughput, median of windows{ring}", results), path)


def _speed(record: Record) -> float:
    return record.summary.fps


def _cost(record: Record) -> float:
    return float(record.figures["processor_ms_per_image"])


def _line(
    axes: Axes, curve: Curve, colour: str, style: str, value: Callable[[Record], float]
) -> None:
    x = [int(r.parameters[curve.axis]) for r in curve.records]
    y = [value(r) for r in curve.records]
    axes.plot(x, y, style, color=colour, marker="o", markersize=4, label=curve.name)


def _end(
    curve: Curve, value: Callable[[Record], float], colour: str
) -> tuple[float, float, str, str]:
    """Where a curve ends, and what is written there."""
    last = curve.records[-1]
    y, digits = value(last), 0 if value(last) >= 100 else 1
    threads = f" {curve.threads} thread" + ("s" if curve.threads > 1 else "")
    text = f"{y:.{digits}f}" + ("" if on_a_gpu(last) else threads)
    return float(last.parameters[curve.axis]), y, text, colour


def _mark(axes: Axes, shown: list[Curve], colour: dict[str, str]) -> None:
    """A ring around the smallest load that is as good as the best."""
    for curve in shown:
        found = saturation(curve)
        if found.open_end:
            continue
        at = found.at
        axes.plot(at.parameters[curve.axis], at.summary.fps, "o", markersize=11,
                  markerfacecolor="none", markeredgecolor=colour[curve.model])  # fmt: skip


def _axis(column: list[Axes], shown: list[Curve], axis: str) -> None:
    numbers = sorted({int(r.parameters[axis]) for curve in shown for r in curve.records})
    for axes in column:
        axes.set_xscale("log", base=2)
        axes.set_xticks(numbers, [str(n) for n in numbers])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(numbers[0] / 1.15, numbers[-1] * 1.5)
        bare_axes(axes)
    column[1].set_xlabel(LABELS[axis], color=INK)
