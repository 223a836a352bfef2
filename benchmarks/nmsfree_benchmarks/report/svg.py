"""Pictures of a report as SVG, drawn in percent of the width so that a phone can read them.

Colours are those of the page's style sheet, which knows light and dark.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from nmsfree_benchmarks.harness.records import Record
from nmsfree_benchmarks.harness.statistics import STAGES

MOST_BARS = 36
BAR, STEP = 13, 42  # px: height of a bar, and of a bar with its label
WIDEST = 72  # percent of the width; the rest is for the number beside it
LEFT, RIGHT = 13.0, 97.0  # percent: the plot of the roofline
TOP, BOTTOM = 24, 340  # px
SERIES = 6
STAGE_LEGEND = (
    ("preprocess", "preprocessing"),
    ("network", "network"),
    ("postprocess", "post-processing, NMS"),
)
Point = tuple[float, float]


@dataclass(frozen=True)
class Picture:
    """One picture of the page, drawn from the results, or a PNG."""

    caption: str
    svg: Markup | None = None
    data: str = ""  # a PNG as data URI
    file: Path | None = None  # where that is
    legend: tuple[tuple[str, str], ...] = ()  # (class of the style sheet, what it stands for)


def bars_picture(records: Sequence[Record], size: tuple[int, int] | None = None) -> Picture:
    """Median of each record as a bar, split by stage where that is known; a tick marks its p99."""
    caption = "Median time of each row; the line reaches to the p99, of 100 calls or more."
    if size is not None:
        caption = f"Input of {size[0]} × {size[1]} pixels. {caption}"
    if len(records) > MOST_BARS:
        caption += f" The first {MOST_BARS} of {len(records)} rows."
    shown = list(records)[:MOST_BARS]
    longest = max(_reach(record) for record in shown)
    parts = [_bar(record, i * STEP, longest) for i, record in enumerate(shown)]
    svg = _svg(STEP * len(shown) + 6, "Median time of each row, milliseconds", parts)
    staged = any("network_share" in record.figures for record in records)
    return Picture(caption, svg, legend=STAGE_LEGEND if staged else ())


def _bar(record: Record, y: int, longest: float) -> Markup:
    s = record.summary
    width, worst = WIDEST * s.p50 / longest, WIDEST * _reach(record) / longest
    parts = [Markup('<text x="0" y="{}">{}</text>').format(y + 14, record.name)]
    shares = [record.figures.get(f"{stage}_share") for stage in STAGES]
    stages = {"network": 1.0}
    if all(isinstance(share, float | int) for share in shares):
        stages = dict(zip(STAGES, map(float, shares), strict=True))  # type: ignore[arg-type]
    rect = Markup('<rect x="{:.2f}%" y="{}" width="{:.2f}%" height="{}" class="{}"/>')
    x = 0.0
    for name, share in stages.items():
        parts.append(rect.format(x, y + 20, width * share, BAR, name))
        x += width * share
    middle = y + 20 + BAR / 2
    if s.p99 is not None:
        parts.append(_line(width, middle, worst, middle, "tick"))
        parts.append(_line(worst, y + 20, worst, y + 20 + BAR, "tick"))
    text = Markup('<text x="{:.2f}%" dx="6" y="{}" class="number">{}{}</text>')
    ms = f"{s.p50:.0f} ms" if s.p50 >= 100 else f"{s.p50:.3g} ms"
    parts.append(text.format(worst, y + 31, ms, "" if s.trusted else " !"))
    return Markup("").join(parts)


def _reach(record: Record) -> float:
    """Milliseconds at which the drawing of a record ends: the p99, or the median without one."""
    return record.summary.p99 or record.summary.p50


def roofline_picture(
    names: Sequence[str],
    models: Sequence[Point],
    layers: Sequence[Sequence[Point]],
    products: Mapping[str, float],
    copies: Mapping[str, float],
) -> Picture:
    """Speed over FLOP for each byte, both logarithmic.

    Args:
        models, layers: (FLOP for each byte, GFLOP/s) of each model, and of its layers.
        products, copies: the roofs: GFLOP/s by precision, GB/s by name.
    """
    every = [*models, *(point for each in layers for point in each)]
    scale = _Scale(every, max(products.values()))
    parts = [*_grid(scale), *_roofs(scale, products, copies)]
    for i, each in enumerate(layers):
        parts += [_dot(scale, point, 4, i, "layer") for point in each]
    parts += [_dot(scale, point, 8, i, "model") for i, point in enumerate(models)]
    alt = "GFLOP/s over FLOP for each byte: models and their heaviest layers under the roofs"
    return Picture(
        "Large dots are models, small ones their heaviest layers. The flat lines are matrix "
        "products (GFLOP/s), the slanting ones memory copies: the limits of this device.",
        _svg(BOTTOM + 40, alt, parts),
        legend=tuple((f"s{i % SERIES}", name) for i, name in enumerate(names)),
    )


class _Scale:
    """Logarithmic axes: x in percent, y in px."""

    def __init__(self, points: Sequence[Point], top: float) -> None:
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


def _roofs(
    scale: _Scale, products: Mapping[str, float], copies: Mapping[str, float]
) -> Iterator[Markup]:
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


def _dot(scale: _Scale, point: Point, radius: int, series: int, kind: str) -> Markup:
    dot = Markup('<circle cx="{:.2f}%" cy="{:.1f}" r="{}" class="{} s{}"/>')
    return dot.format(scale.x(point[0]), scale.y(point[1]), radius, kind, series % SERIES)


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    line = Markup('<line x1="{:.2f}%" y1="{:.1f}" x2="{:.2f}%" y2="{:.1f}" class="{}"/>')
    return line.format(x1, y1, x2, y2, kind)


def _svg(height: int, alt: str, parts: Sequence[Markup]) -> Markup:
    head = Markup('<svg class="chart" width="100%" height="{}" role="img" aria-label="{}">')
    return head.format(height, alt) + Markup("").join(parts) + Markup("</svg>")
