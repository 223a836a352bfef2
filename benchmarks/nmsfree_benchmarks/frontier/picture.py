"""The picture of the frontier: AP over latency."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from nmsfree_benchmarks.common.engines import ENGINES
from nmsfree_benchmarks.common.plot_style import FAINT, INK, bare_axes, colours, finish, new_figure
from nmsfree_benchmarks.frontier.rules import ap_of, detectors, pareto
from nmsfree_benchmarks.record.records import Record, Results
from nmsfree_benchmarks.record.verdict import judge

MARKERS = dict(zip(ENGINES, "osD^<v", strict=True))
DOT, SMALL = 4.5, 8.0  # points: half a marker, and the height of a label
LEAST_RANGE = 2.0  # AP points that the picture shows at least: a hundredth is no difference

Box = tuple[float, float, float, float]  # left, low, right, high


def draw(results: Results, path: Path) -> None:
    """Write the picture as PNG: colour is the model, marker the engine, label precision or size."""
    records = detectors(results)
    models = list(dict.fromkeys(_model(r) for r in records))
    colour = colours(models)
    figure = new_figure(10, 7)
    axes = figure.subplots()
    for record in records:
        _point(axes, record, colour[_model(record)])
    axes.set_xlim(0, 1.12 * max(r.summary.p50 for r in records))
    axes.set_ylim(*_range([100 * ap_of(r) for r in records]))
    if judge(results).ranks:
        _frontier(axes, pareto(records))
    bare_axes(axes)
    axes.set_xlabel("latency of Detector(image), median, ms")
    images = records[0].subject.ap_images if records[0].subject else 0
    axes.set_ylabel(f"AP on digits val, {images} images")
    figure.draw_without_rendering()  # the places of the labels are those of the final layout
    _labels(axes, records, colour)
    _legend(axes, colour, records)
    finish(figure, results, "AP against latency", path)


def _model(record: Record) -> str:
    assert record.subject is not None
    return record.subject.model


def _point(axes: Axes, record: Record, colour: str) -> None:
    """The median, and a line from the first to the third quarter of the calls."""
    assert record.subject is not None
    totals = record.times.sum(axis=1) / 1e6
    p25, p50, p75 = np.percentile(totals, (25, 50, 75)).tolist()
    ap = 100 * ap_of(record)
    axes.plot([p25, p75], [ap, ap], color=colour, linewidth=1, alpha=0.5, zorder=2)
    axes.plot(p50, ap, MARKERS[record.subject.engine], color=colour, markersize=7, zorder=3,
              markeredgecolor="white", markeredgewidth=0.7)  # fmt: skip


def _range(aps: list[float]) -> tuple[float, float]:
    """From a little below the lowest to a little above the highest."""
    middle = (min(aps) + max(aps)) / 2
    half = max(LEAST_RANGE, 1.24 * (max(aps) - min(aps))) / 2
    return middle - half, middle + half


def _frontier(axes: Axes, front: list[Record]) -> None:
    """A staircase: what is above or left of it was not measured."""
    x = [r.summary.p50 for r in front]
    y = [100 * ap_of(r) for r in front]
    right = axes.get_xlim()[1]
    axes.step([*x, right], [*y, y[-1]], where="post", color=FAINT, linewidth=1.2, zorder=1)
    axes.annotate("frontier", (right, y[-1]), (-4, 4), textcoords="offset points", ha="right",
                  fontsize=9, color=FAINT)  # fmt: skip


def _labels(axes: Axes, records: list[Record], colour: dict[str, str]) -> None:
    """Beside each point its precision or size, where it covers no other point or label."""
    scale = 72 / axes.figure.dpi  # points of a pixel
    data = [(record.summary.p50, 100 * ap_of(record)) for record in records]
    places = [tuple(float(v) * scale for v in axes.transData.transform(xy)) for xy in data]
    taken = [(x - DOT, y - DOT, x + DOT, y + DOT) for x, y in places]
    for record, xy, (x, y) in sorted(
        zip(records, data, places, strict=True), key=lambda one: -one[1][1]
    ):
        text = _label(record)
        dx, dy = next(
            (d for d in _offsets(text) if not _covers(_box(text, x + d[0], y + d[1]), taken)),
            (DOT + 1, DOT),
        )
        taken.append(_box(text, x + dx, y + dy))
        axes.annotate(
            text,
            xy,
            (dx, dy),
            textcoords="offset points",
            fontsize=SMALL,
            color=colour[_model(record)],
            va="center",
        )


def _offsets(text: str) -> Iterator[tuple[float, float]]:
    """Where to try a label, in points from its point: nearest first, right before left.

    Above or below before beside it, where the lines of the frontier and of the spread are.
    """
    left = -DOT - 1 - 0.58 * SMALL * len(text)
    for dy in (7.0, -7.0, 0.0, *(sign * dy for dy in range(9, 40, 2) for sign in (1.0, -1.0))):
        yield DOT + 1, dy
        yield left, dy


def _box(text: str, x: float, y: float) -> Box:
    """What a label covers that begins at x and is centred on y, in points."""
    return x, y - SMALL / 2, x + 0.58 * SMALL * len(text), y + SMALL / 2


def _covers(box: Box, taken: Sequence[Box]) -> bool:
    left, low, right, high = box
    return any(left < r and x < right and low < h and y < high for x, y, r, h in taken)


def _label(record: Record) -> str:
    assert record.subject is not None
    if record.parameters["deployed_size"]:
        return str(record.parameters["file"])
    height, width = record.subject.size
    return f"{height} px" if height == width else f"{height} × {width} px"


def _legend(axes: Axes, colour: dict[str, str], records: list[Record]) -> None:
    engines = list(dict.fromkeys(r.subject.engine for r in records if r.subject is not None))
    handles = [Line2D([], [], color=c, linewidth=4, label=model) for model, c in colour.items()]
    handles += [
        Line2D([], [], color=INK, marker=MARKERS[e], linestyle="", label=ENGINES[e].short)
        for e in engines
    ]
    axes.legend(handles=handles, loc="lower right", frameon=False, fontsize=9)
