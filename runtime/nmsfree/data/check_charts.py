"""One page of charts: how many objects of each class, and how large they are."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nmsfree.data.check_report import Check, SplitCheck
from nmsfree.data.check_stats import EDGES
from nmsfree.evaluation.plot_style import COLOURS, GRID, INK, import_figure, short, to_png
from nmsfree.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_FREQUENT, RAREST = 75, 25  # classes shown when there are more than both together
ROW, COLUMN, SIZES = 0.2, 2.7, 6.5  # inches: a class, a split, the box sizes
MISSING = "#C62828"
BANDS = (("small", 0, 32), ("medium", 32, 96), ("large", 96, np.inf))


def write_charts(check: Check, path: Path) -> None:
    """Write the page as PNG.

    Raises:
        MissingExtraError: matplotlib is not installed.
        InputError: it cannot be written.
    """
    names = _order(check.splits)
    splits = list(check.splits.items())
    width = 1.6 + COLUMN * len(splits) + SIZES
    height = max(3.2 + ROW * len(names), 1.2 + 2.6 * len(splits), 5.0)
    figure = import_figure()(figsize=(width, height), dpi=100, layout="constrained")
    figure.suptitle(
        f"{check.layout.root.resolve().name} · {check.layout.format}",
        x=0.01, ha="left", fontsize=14, weight="bold", color=INK,
    )  # fmt: skip
    halves = figure.subfigures(1, 2, width_ratios=[width - SIZES, SIZES], squeeze=False)
    left, right = halves[0]
    columns = np.atleast_1d(left.subplots(1, len(splits), sharey=True))
    for index, ((name, split), axes) in enumerate(zip(splits, columns, strict=True)):
        _draw_classes(axes, name, split, names, COLOURS[index % len(COLOURS)])
    rows = np.atleast_1d(right.subplots(len(splits), 1, sharex=True))
    last = max(max(np.flatnonzero(s.stats.bins()), default=0) for _, s in splits)
    for index, ((name, split), axes) in enumerate(zip(splits, rows, strict=True)):
        _draw_sizes(axes, name, split, max(int(last) + 1, 8), COLOURS[index % len(COLOURS)])
    rows[-1].set_xlabel("√ area of the box in pixels of the image", color=INK)
    write_atomic(path, to_png(figure))


def _order(splits: Mapping[str, SplitCheck]) -> list[str | None]:
    """Return class names, most objects in the first split first; None stands for those cut."""
    counts: dict[str, list[int]] = {}
    for position, split in enumerate(splits.values()):
        for category in split.rows.categories:
            row = counts.setdefault(category.name, [0] * len(splits))
            row[position] += split.stats.by_class[category.id]
    names = sorted(counts, key=lambda name: [-n for n in counts[name]])
    if len(names) > MOST_FREQUENT + RAREST:
        return [*names[:MOST_FREQUENT], None, *names[-RAREST:]]
    return [*names]


def _draw_classes(
    axes: "Axes", title: str, split: SplitCheck, names: Sequence[str | None], colour: str
) -> None:
    counts: dict[str | None, int] = {}
    for category in split.rows.categories:
        found = split.stats.by_class[category.id]
        counts[category.name] = counts.get(category.name, 0) + found
    values = [counts.get(name, 0) for name in names]
    most = max(values, default=0) or 1
    axes.barh(range(len(names)), values, color=colour, height=0.72)
    for position, (name, value) in enumerate(zip(names, values, strict=True)):
        if name is not None:
            axes.text(
                value + most * 0.015, position, f"{value:,}", va="center", fontsize=7.5,
                color=INK if value else MISSING,
            )  # fmt: skip
    axes.set_yticks(range(len(names)), ["…" if n is None else short(n) for n in names], fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, most * 1.22)
    axes.set_title(f"{title}: {split.stats.objects:,} objects", fontsize=10, color=INK)
    _plain(axes, "x")
    axes.tick_params(axis="y", length=0)


def _draw_sizes(axes: "Axes", title: str, split: SplitCheck, shown: int, colour: str) -> None:
    stats = split.stats
    values = stats.bins()[:shown]
    most = max(values) or 1
    axes.bar(np.arange(shown) + 0.5, values, width=0.86, color=colour)
    for position, value in enumerate(values):
        if value:
            axes.text(position + 0.5, value + most * 0.02, f"{value:,}", ha="center", fontsize=7.5)
    shares = stats.by_area()
    for name, low, high in BANDS:
        start, stop = EDGES.index(low), min(EDGES.index(high), shown)
        if start < stop:
            axes.axvspan(start, stop, color=GRID if name == "medium" else "white", zorder=-2)
            share = f"{name} {shares[name] / max(stats.objects, 1):.0%}"
            axes.text((start + stop) / 2, most * 1.2, share, ha="center", fontsize=8.5, color=INK)
    ticks = [f"{edge:g}" if np.isfinite(edge) else "" for edge in EDGES[: shown + 1]]
    axes.set_xticks(range(shown + 1), ticks, fontsize=8)
    axes.tick_params(axis="x", labelbottom=True)
    axes.set_xlim(0, shown)
    axes.set_ylim(0, most * 1.32)
    axes.set_title(
        f"{title}: {stats.below_8px:,} objects with a side below 8 pixels", fontsize=10, color=INK
    )
    _plain(axes, "y")


def _plain(axes: "Axes", grid: str) -> None:
    """A light grid across the bars, no frame."""
    axes.grid(axis="x" if grid == "x" else "y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "bottom" if grid == "x" else "left"]].set_visible(False)
    axes.tick_params(axis="x" if grid == "x" else "y", length=0, labelsize=8)
