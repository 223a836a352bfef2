"""Curves of an `Analysis`: precision over recall, F1 over the threshold, calibration."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nmsfree.evaluation.calibration import BINS
from nmsfree.evaluation.curves import RECALLS
from nmsfree.evaluation.plot_style import (
    COLOURS,
    DASHES,
    FAINT,
    INK,
    Entry,
    heading,
    legend,
    short,
    unit_axes,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from nmsfree.evaluation.analysis import Analysis

THRESHOLDS = np.linspace(0, 1, 401)
BELOW = "#E8E8E8"  # where no detection can be
WORST = 5  # classes that keep a colour where there are more than colours


def draw_precision_recall(analysis: "Analysis", figure: "Figure") -> None:
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
    axes.plot(RECALLS, np.mean(list(curves.values()), axis=0), color=INK, linewidth=2.8)
    names = analysis.spec.class_names
    entries = [Entry(INK, 2.8, f"{100 * np.mean(list(ap50.values())):.1f}  mean of the classes")]
    entries += [Entry(colours[i], 1.3, f"{100 * ap50[i]:.1f}  {short(names[i])}") for i in named]
    if len(named) < len(curves):
        entries.append(Entry(FAINT, 0.8, f"{len(curves) - len(named)} better ones"))
    legend(axes, entries, "AP50, worst class first")


def draw_f1(analysis: "Analysis", figure: "Figure") -> None:
    """F1, precision and recall of all classes together over the threshold."""
    axes = figure.subplots()
    heading(figure, axes, analysis, "What a threshold gives")
    unit_axes(axes, "score threshold", "")
    for curve in analysis.curves:
        if curve.objects:
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
    entries.append(Entry(FAINT, 0.8, "F1 of one class"))
    entries.append(Entry(BELOW, 8.0, f"below {floor:g}: not in the output"))
    if found:
        axes.axvline(best.threshold, color=INK, linewidth=0.9, linestyle=DASHES)
        legend(axes, entries, f"at {best.threshold:.3f}, the best F1")
    else:
        legend(axes, entries, "no object was found at IoU 0.5")


def draw_calibration(analysis: "Analysis", figure: "Figure") -> None:
    """Precision of the detections of each score; on the diagonal a score is a probability."""
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    heading(figure, upper, analysis, "Calibration")
    unit_axes(upper, "", "precision at IoU 0.5")
    upper.plot([0, 1], [0, 1], color=INK, linewidth=0.9, linestyle=DASHES)
    filled = [(i, b) for i, b in enumerate(analysis.calibration.bins) if b.count]
    left = [i / BINS for i, _ in filled]
    style: dict[str, Any] = {"width": 1 / BINS, "align": "edge", "edgecolor": "white"}
    upper.bar(left, [b.precision or 0 for _, b in filled], color=COLOURS[5], **style)
    upper.plot(
        [b.score for _, b in filled],
        [b.precision for _, b in filled],
        color=COLOURS[0],
        marker="o",
        markersize=4,
        linewidth=1.5,
    )
    error = analysis.calibration.error
    entries = [
        Entry(COLOURS[0], 1.5, "precision of a bin"),
        Entry(INK, 0.9, "score = precision", dashed=True),
    ]
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
