"""The confusion matrix of an `Analysis`: what objects are taken for."""

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nmsfree.evaluation.plot_style import INK, heading, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from nmsfree.evaluation.analysis import Analysis

MOST_NUMBERS = 21  # rows up to which every cell is written out
TICKS = (0, 0.01, 0.05, 0.2, 0.5, 1)


def draw_confusion(analysis: "Analysis", figure: "Figure") -> None:
    """Draw the matrix, each row divided by its sum; the picture grows with the classes."""
    from matplotlib.colors import PowerNorm

    counts, names, left_out = _involved(analysis)
    rows, few = len(counts), len(counts) <= MOST_NUMBERS
    side = min(24, max(3.6, (0.55 if few else 0.16) * rows))
    figure.set_size_inches(side + 3.2, side + 1.6)
    axes = figure.subplots()
    title = f"Confusion at scores above {analysis.best.threshold:.3f}"
    heading(figure, axes, analysis, title, left_out)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    # The root lets the small shares off the diagonal be seen.
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), aspect="auto")
    _label(axes, names, counts, side / rows)
    bar = figure.colorbar(
        image, ax=axes, ticks=TICKS, format=lambda v, _: f"{v:.0%}", shrink=0.7, aspect=25
    )
    bar.set_label("share of the row", color=INK)
    bar.outline.set_visible(False)
    if few:
        _write_shares(axes, shares, counts)


def _involved(analysis: "Analysis") -> tuple[NDArray[np.int64], list[str], str]:
    """Return the matrix and the names without classes that are neither there nor predicted, and
    how many those are, in words.
    """
    counts, names = analysis.confusion, analysis.spec.class_names
    kept = np.flatnonzero((counts.sum(axis=0) + counts.sum(axis=1))[:-1])
    left_out = len(names) - len(kept)
    classes = "1 class" if left_out == 1 else f"{left_out} classes"
    words = f"left out: {classes} without objects and predictions" if left_out else ""
    cells = np.append(kept, len(names))
    return counts[np.ix_(cells, cells)], [short(names[label]) for label in kept], words


def _label(axes: "Axes", names: list[str], counts: NDArray[np.int64], cell: float) -> None:
    """Name rows and columns; names wider than a cell (inches) stand upright."""
    rows, step = len(counts), math.ceil(0.11 / cell)  # inches that a small name needs
    size = 9.0 if rows <= MOST_NUMBERS else 6.5
    longest = max(map(len, [*names, "missed"]))
    turned = 90 if longest * 0.6 * size / 72 > cell else 0  # a letter is about 0.6 of its height
    axes.set_xticks(
        range(0, rows, step), [*names, "missed"][::step], fontsize=size, rotation=turned
    )
    totals = counts.sum(axis=1)
    named = [f"{name}  ({n})" for name, n in zip([*names, "no object"], totals, strict=True)]
    axes.set_yticks(range(0, rows, step), named[::step], fontsize=size)
    axes.set_xlabel("predicted", color=INK)
    axes.set_ylabel("truth (count)", color=INK)
    axes.set_xticks(np.arange(rows + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#EEEEEE", linewidth=0.4)
    axes.tick_params(which="both", length=0)
    axes.axhline(rows - 1.5, color=INK, linewidth=0.8)
    axes.axvline(rows - 1.5, color=INK, linewidth=0.8)


def _write_shares(axes: "Axes", shares: NDArray[np.float64], counts: NDArray[np.int64]) -> None:
    """Write percentages into the cells; few classes leave room for the counts too."""
    large = len(counts) <= 5
    for row, column in zip(*np.nonzero(counts), strict=True):
        share, count = shares[row, column], counts[row, column]
        text = f"{100 * share:.0f}" if share >= 0.005 else "·"
        if large:
            text = f"{100 * share:.1f} %\n{count}"
        axes.text(
            column,
            row,
            text,
            ha="center",
            va="center",
            fontsize=11 if large else 8,
            color="white" if share > 0.35 else INK,
        )
