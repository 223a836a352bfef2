"""Pictures of a report as SVG, drawn in percent of the width so that a phone can read them.

Colours are those of the page's style sheet, which knows light and dark.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from markupsafe import Markup

from nmsfree_benchmarks.machine.measure import STAGES
from nmsfree_benchmarks.record.records import Record, Results
from nmsfree_benchmarks.roofline.picture import layer_points, roofs
from nmsfree_benchmarks.roofline.records import models

MOST_BARS = 36
BAR, STEP = 13, 42  # px: height of a bar, and of a bar with its label
WIDEST = 72  # percent of the width; the rest is for the number beside it
LEFT, RIGHT = 13.0, 97.0  # percent: the plot of the roofline
TOP, BOTTOM = 24, 340  # px
SERIES = 6


def bars(records: Sequence[Record]) -> Markup:
    """Median of each record as a bar, split by stage where that is known; a tick marks its p99."""
    shown = list(records)[:MOST_BARS]
    longest = max(_reach(record) for record in shown)
    height = STEP * len(shown) + 6
    parts = [_bar(record, i * STEP, longest) for i, record in enumerate(shown)]
    return _svg(height, "Median time of each row, milliseconds", Markup("").join(parts))


def _bar(record: Record, y: int, longest: float) -> Markup:
    s = record.summary
    width, worst = WIDEST * s.p50 / longest, WIDEST * _reach(record) / longest
    label = Markup('<text x="0" y="{}">{}</text>').format(y + 14, record.name)
    parts, x = [label], 0.0
    for name, share in _stages(record):
        parts.append(
            Markup('<rect x="{:.2f}%" y="{}" width="{:.2f}%" height="{}" class="{}"/>').format(
                x, y + 20, width * share, BAR, name
            )
        )
        x += width * share
    middle = y + 20 + BAR / 2
    if s.p99 is not None:
        parts.append(_line(width, middle, worst, middle, "tick"))
        parts.append(_line(worst, y + 20, worst, y + 20 + BAR, "tick"))
    doubt = "" if s.trusted else " !"
    number = Markup('<text x="{:.2f}%" dx="6" y="{}" class="number">{}{}</text>')
    parts.append(
        number.format(
            worst, y + 31, f"{s.p50:.0f} ms" if s.p50 >= 100 else f"{s.p50:.3g} ms", doubt
        )
    )
    return Markup("").join(parts)


def _reach(record: Record) -> float:
    """Milliseconds at which the drawing of a record ends: the p99, or the median without one."""
    return record.summary.p99 or record.summary.p50


def _stages(record: Record) -> list[tuple[str, float]]:
    found = [(stage, record.figures.get(f"{stage}_share")) for stage in STAGES]
    shares = [(stage, float(share)) for stage, share in found if isinstance(share, float | int)]
    return shares if len(shares) == len(STAGES) else [("network", 1.0)]


def roofline(results: Results) -> Markup:
    """Speed over FLOP for each byte, both logarithmic: roofs, models, and their layers."""
    found = models(results.records)
    points = [_point(record) for record in found]
    small = [list(layer_points(record)) for record in found]
    every = [*points, *(point for each in small for point in each)]
    products, copies = roofs(results)
    scale = _Scale(every, max(products.values()))
    parts = [*_grid(scale), *_roofs(scale, products, copies)]
    for i, each in enumerate(small):
        parts += [_dot(scale, point, 4, i, "layer") for point in each]
    parts += [_dot(scale, point, 8, i, "model") for i, point in enumerate(points)]
    alt = "GFLOP/s over FLOP for each byte: models and their heaviest layers under the roofs"
    return _svg(BOTTOM + 40, alt, Markup("").join(parts))


def _point(record: Record) -> tuple[float, float]:
    f: Any = record.figures
    return f["flop_per_byte"], f["gflop_per_s"]


class _Scale:
    """Logarithmic axes: x in percent, y in px."""

    def __init__(self, points: Sequence[tuple[float, float]], top: float) -> None:
        xs, ys = [x for x, _ in points if x > 0], [y for _, y in points if y > 0]
        self.xs = min(xs) / 3, max(xs) * 3
        self.ys = min([*ys, top]) / 1.5, max([*ys, top]) * 1.5

    def x(self, value: float) -> float:
        return LEFT + _share(value, *self.xs) * (RIGHT - LEFT)

    def y(self, value: float) -> float:
        return BOTTOM - _share(value, *self.ys) * (BOTTOM - TOP)


def _share(value: float, low: float, high: float) -> float:
    return math.log(value / low) / math.log(high / low)


def _ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, 20 … within the limits."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
    every = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    return [tick for tick in every if low <= tick <= high]


def _grid(scale: _Scale) -> Iterator[Markup]:
    across = Markup('<text x="{:.2f}%" y="{}" class="axis middle">{:g}</text>')
    for tick in _ticks(*scale.xs):
        yield _line(scale.x(tick), TOP, scale.x(tick), BOTTOM, "grid")
        yield across.format(scale.x(tick), BOTTOM + 16, tick)
    up = Markup('<text x="{:.2f}%" dx="-6" y="{:.1f}" class="axis end">{:g}</text>')
    for tick in _ticks(*scale.ys):
        yield _line(LEFT, scale.y(tick), RIGHT, scale.y(tick), "grid")
        yield up.format(LEFT, scale.y(tick) + 4, tick)
    text = Markup('<text x="{:.2f}%" y="{}" class="axis middle">{}</text>')
    yield text.format((LEFT + RIGHT) / 2, BOTTOM + 34, "FLOP for each byte read or written")
    yield Markup('<text x="0" y="11" class="axis">GFLOP/s</text>')


def _roofs(scale: _Scale, products: dict[str, float], copies: dict[str, float]) -> Iterator[Markup]:
    top = max(products.values())
    for rate in copies.values():
        left = max(scale.xs[0], scale.ys[0] / rate)
        right = min(top / rate, scale.xs[1])
        if left < right:
            ends = scale.x(left), scale.y(left * rate), scale.x(right), scale.y(right * rate)
            yield _line(*ends, "roof slanted")
    text = Markup('<text x="{:.2f}%" y="{:.1f}" class="axis end">{} {:.0f}</text>')
    for precision, rate in products.items():
        if scale.ys[0] <= rate:
            yield _line(LEFT, scale.y(rate), RIGHT, scale.y(rate), "roof")
            yield text.format(RIGHT, scale.y(rate) - 4, precision, rate)


def _dot(scale: _Scale, point: tuple[float, float], radius: int, series: int, kind: str) -> Markup:
    dot = Markup('<circle cx="{:.2f}%" cy="{:.1f}" r="{}" class="{} s{}"/>')
    return dot.format(scale.x(point[0]), scale.y(point[1]), radius, kind, series % SERIES)


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    line = Markup('<line x1="{:.2f}%" y1="{:.1f}" x2="{:.2f}%" y2="{:.1f}" class="{}"/>')
    return line.format(x1, y1, x2, y2, kind)


def _svg(height: int, alt: str, content: Markup) -> Markup:
    head = Markup('<svg class="chart" width="100%" height="{}" role="img" aria-label="{}">')
    return head.format(height, alt) + content + Markup("</svg>")
