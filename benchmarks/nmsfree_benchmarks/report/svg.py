"""Bars of a report as SVG, drawn in percent of the width so that a phone can read them.

Colours are those of the page's style sheet, which knows light and dark.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from nmsfree_benchmarks.harness.records import Record
from nmsfree_benchmarks.harness.statistics import STAGES

MOST_BARS = 36
BAR, STEP = 13, 42  # px: height of a bar, and of a bar with its label
WIDEST = 72  # percent of the width; the rest is for the number beside it
STAGE_LEGEND = (
    ("preprocess", "preprocessing"),
    ("network", "network"),
    ("postprocess", "post-processing, NMS"),
)


@dataclass(frozen=True)
class Picture:
    """One picture of the page, drawn from the results, or a PNG."""

    caption: str
    svg: Markup | None = None
    data: str = ""  # a PNG as data URI
    file: Path | None = None  # where that is
    legend: tuple[tuple[str, str], ...] = ()  # (class of the style sheet, what it stands for)


def bars_picture(
    records: Sequence[Record],
    size: tuple[int, int] | None = None,
    name: Callable[[Record], str] = lambda record: record.name,
) -> Picture:
    """Median of each record as a bar, split by stage where that is known; a tick marks its p99."""
    caption = "Median time of each row; the line reaches to the p99, of 100 calls or more."
    if size is not None:
        caption = f"Input of {size[0]} × {size[1]} pixels. {caption}"
    if len(records) > MOST_BARS:
        caption += f" The first {MOST_BARS} of {len(records)} rows."
    shown = list(records)[:MOST_BARS]
    longest = max(_reach(record) for record in shown)
    parts = [_bar(record, name(record), i * STEP, longest) for i, record in enumerate(shown)]
    head = Markup('<svg class="chart" width="100%" height="{}" role="img" aria-label="{}">')
    head = head.format(STEP * len(shown) + 6, "Median time of each row, milliseconds")
    svg = head + Markup("").join(parts) + Markup("</svg>")
    staged = any("network_share" in record.figures for record in records)
    return Picture(caption, svg, legend=STAGE_LEGEND if staged else ())


def _bar(record: Record, name: str, y: int, longest: float) -> Markup:
    s = record.summary
    width, worst = WIDEST * s.p50 / longest, WIDEST * _reach(record) / longest
    parts = [Markup('<text x="0" y="{}">{}</text>').format(y + 14, name)]
    shares = [record.figures.get(f"{stage}_share") for stage in STAGES]
    stages = {"network": 1.0}
    if all(isinstance(share, float | int) for share in shares):
        stages = dict(zip(STAGES, map(float, shares), strict=True))  # type: ignore[arg-type]
    rect = Markup('<rect x="{:.2f}%" y="{}" width="{:.2f}%" height="{}" class="{}"/>')
    x = 0.0
    for stage, share in stages.items():
        parts.append(rect.format(x, y + 20, width * share, BAR, stage))
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


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    line = Markup('<line x1="{:.2f}%" y1="{:.1f}" x2="{:.2f}%" y2="{:.1f}" class="{}"/>')
    return line.format(x1, y1, x2, y2, kind)
