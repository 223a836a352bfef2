"""Pictures of an `Analysis`: confusion matrix, precision over recall, F1, calibration."""

from pathlib import Path
from typing import TYPE_CHECKING

from nmsfree.evaluation.plot_confusion import draw_confusion
from nmsfree.evaluation.plot_curves import draw_calibration, draw_f1, draw_precision_recall
from nmsfree.evaluation.plot_style import import_figure, to_png
from nmsfree.files import write_atomic

if TYPE_CHECKING:
    from nmsfree.evaluation.analysis import Analysis

DRAWINGS = {
    "confusion_matrix.png": draw_confusion,
    "pr_curve.png": draw_precision_recall,
    "f1_curve.png": draw_f1,
    "calibration.png": draw_calibration,
}


def write_plots(analysis: "Analysis", folder: Path) -> list[Path]:
    """Write the pictures as PNG into a folder, made if missing; return their paths.

    Raises:
        MissingExtraError: matplotlib is not installed.
        InputError: a file cannot be written.
    """
    figure_class = import_figure()
    paths = []
    for name, draw in DRAWINGS.items():
        figure = figure_class(figsize=(9, 5.4), dpi=120, layout="constrained")
        draw(analysis, figure)
        write_atomic(folder / name, to_png(figure))
        paths.append(folder / name)
    return paths
