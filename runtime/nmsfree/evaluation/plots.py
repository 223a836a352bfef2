"""Pictures of an `Analysis`: confusion matrix, precision over recall, F1, calibration."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nmsfree.evaluation.analysis import Analysis
from nmsfree.evaluation.curves import BINS, RECALLS
from nmsfree.plotting import (
    COLOURS,
    DASHES,
    FAINT,
    INK,
    Entry,
    legend,
    new_figure,
    short,
    unit_axes,
    write_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

THRESHOLDS = np.linspace(0, 1, 401)
BELOW = "#E8E8E8"  # where no detection can be
WORST = 5  # classes that keep a colour where there are more than colours


def draw_precision_recall(analysis: Analysis, figure: "Figure") -> None:
    """Precision over recall at IoU 0.5: every class, and their mean."""
    axes = figure.subplots()
    heading(figure, axes, analysis, "Precision over recall")
    unit_axes(axes, "recall", "precision")
    curves = {
        label: curve.precision_at_recalls()
        for label, curve in enumerate(analysis.curves)
        if curve.objects
    }
    ap50 = {label: float(curve.mean()) for label, curve in curves.items()}
    worst_first = sorted(curves, key=lambda label: ap50[label])
    named = worst_first if len(curves) <= len(COLOURS) else worst_first[:WORST]
    colours = dict(zip(named, COLOURS, strict=False))
    for label in reversed(worst_first):
        width = 1.3 if label in colours else 0.6
        axes.plot(RECALLS, curves[label], color=colours.get(label, FAINT), linewidth=width)
    names, entries = analysis.spec.class_names, []
    if len(curves) > 1:
        axes.plot(RECALLS, np.mean(list(curves.values()), axis=0), color=INK, linewidth=2.8)
        mean = 100 * np.mean(list(ap50.values()))
        entries = [Entry(INK, 2.8, f"{mean:.1f}  mean of the classes")]
    entries += [Entry(colours[i], 1.3, f"{100 * ap50[i]:.1f}  {short(names[i])}") for i in named]
    if len(named) < len(curves):
        entries.append(Entry(FAINT, 0.8, f"{len(curves) - len(named)} better ones"))
    legend(axes, entries, "AP50, worst class first" if len(curves) > 1 else "AP50")


def draw_f1(analysis: Analysis, figure: "Figure") -> None:
    """F1, precision and recall of all classes together over the threshold."""
    axes = figure.subplots()
    heading(figure, axes, analysis, "What a threshold gives")
    unit_axes(axes, "score threshold", "")
    classes = [curve for curve in analysis.curves if curve.objects]
    several = len(classes) > 1
    for curve in classes if several else ():
        axes.plot(THRESHOLDS, _f1(*curve.at(THRESHOLDS)), color=FAINT, linewidth=0.6)
    precision, recall = analysis.overall.at(THRESHOLDS)
    best = analysis.best
    found = best.recall > 0
    figures = [f" {v:.3f}" if found else "" for v in (best.precision, best.recall, best.f1)]
    entries = [
        Entry(COLOURS[0], 1.8, f"precision{figures[0]}"),
        Entry(COLOURS[1], 1.8, f"recall{figures[1]}"),
        Entry(INK, 2.8, f"F1{figures[2]}"),
    ]
    for entry, values in zip(entries, (precision, recall, _f1(precision, recall)), strict=True):
        axes.plot(THRESHOLDS, values, color=entry.colour, linewidth=entry.width)
    floor = analysis.spec.score_floor
    axes.axvspan(0, floor, color=BELOW, linewidth=0, zorder=3)
    entries += [Entry(FAINT, 0.8, "F1 of one class")] if several else []
    entries.append(Entry(BELOW, 8.0, f"below {floor:g}: not in the output"))
    if found:
        axes.axvline(best.threshold, color=INK, linewidth=0.9, linestyle=DASHES)
        legend(axes, entries, f"at {best.threshold:.3f}, the best F1")
    else:
        legend(axes, entries, "no object was found at IoU 0.5")


def draw_calibration(analysis: Analysis, figure: "Figure") -> None:
    """Precision of the detections of each score; on the diagonal a score is a probability."""
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    heading(figure, upper, analysis, "Calibration")
    unit_axes(upper, "", "precision at IoU 0.5")
    upper.plot([0, 1], [0, 1], color=INK, linewidth=0.9, linestyle=DASHES)
    filled = [(i, b) for i, b in enumerate(analysis.calibration.bins) if b.count]
    left = [i / BINS for i, _ in filled]
    style: dict[str, Any] = {"width": 1 / BINS, "align": "edge", "edgecolor": "white"}
    upper.bar(left, [b.precision or 0 for _, b in filled], color=COLOURS[5], **style)
    scores, precisions = [b.score for _, b in filled], [b.precision for _, b in filled]
    upper.plot(scores, precisions, color=COLOURS[0], marker="o", markersize=4, linewidth=1.5)
    error = analysis.calibration.error
    diagonal = Entry(INK, 0.9, "score = precision", dashed=True)
    entries = [Entry(COLOURS[0], 1.5, "precision of a bin"), diagonal]
    title = "no detections" if error is None else f"calibration error {error:.3f}"
    legend(upper, entries, title)
    lower.bar(left, [b.count for _, b in filled], color=FAINT, **style)
    lower.set_yscale("log")
    lower.minorticks_off()
    lower.set_ylabel("detections", color=INK)
    lower.set_xlabel("score", color=INK)
    lower.spines[["top", "right"]].set_visible(False)


def _f1(precision: NDArray[np.float64], recall: NDArray[np.float64]) -> NDArray[np.float64]:
    """Harmonic mean; NaN where nothing is left to be precise about."""
    both = precision + recall
    out = np.where(np.isnan(precision), np.nan, 0.0)
    f1: NDArray[np.float64] = np.divide(2 * precision * recall, both, out=out, where=both > 0)
    return f1


def heading(figure: "Figure", axes: "Axes", analysis: Analysis, title: str, more: str = "") -> None:
    """Write what is shown, and above the axes of which model and data, and a line of remarks."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, weight="bold", color=INK)
    text = f"{analysis.spec.name} · {analysis.thresholds.measured_on}"
    text += f"\n{more}" if more else ""
    axes.set_title(text, loc="left", fontsize=9, color=INK)


MOST_NUMBERS = 21  # rows up to which every cell is written out
TICKS = (0, 0.01, 0.05, 0.2, 0.5, 1)


def draw_confusion(analysis: Analysis, figure: "Figure") -> None:
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
    if rows == 2:  # of one class: all that is no object was taken for it, which says nothing
        shares[-1] = np.nan
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


def _involved(analysis: Analysis) -> tuple[NDArray[np.int64], list[str], str]:
    """The matrix and the names without classes that are neither there nor predicted, and a word
    on how many those are.
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
            text = str(count) if np.isnan(share) else f"{100 * share:.1f} %\n{count}"
        color, size = "white" if share > 0.35 else INK, 11 if large else 8
        axes.text(column, row, text, ha="center", va="center", fontsize=size, color=color)


DRAWINGS = {
    "confusion_matrix.png": draw_confusion,
    "pr_curve.png": draw_precision_recall,
    "f1_curve.png": draw_f1,
    "calibration.png": draw_calibration,
}


def write_plots(analysis: Analysis, folder: Path) -> list[Path]:
    """Write the pictures as PNG into a folder, made if missing; return their paths."""
    for name, draw in DRAWINGS.items():
        figure = new_figure(9, 5.4)
        draw(analysis, figure)
        write_figure(folder / name, figure)
    return [folder / name for name in DRAWINGS]
