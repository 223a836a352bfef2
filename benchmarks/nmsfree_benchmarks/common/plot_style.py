"""How the pictures of the sub-commands look; the palette is that of `picture.py`."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nmsfree.files import write_atomic
from nmsfree.plotting import to_png
from nmsfree_benchmarks.machine.environment import hardware
from nmsfree_benchmarks.record.records import Results
from nmsfree_benchmarks.record.verdict import judge
from nmsfree_benchmarks.table.picture import FAINT, INK

# Okabe and Ito's palette, for what is no stage: told apart with any colour vision.
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GRID = "#dddddd"
LABEL_GAP = 9.0  # points between two labels


def colours(names: list[str]) -> dict[str, str]:
    """A colour for each name, in order; the same names get the same ones in every picture."""
    return {name: SERIES[i % len(SERIES)] for i, name in enumerate(names)}


def new_figure(width: float, height: float) -> Figure:
    """A figure of so many inches."""
    return Figure(figsize=(width, height), dpi=130, layout="constrained")


def bare_axes(axes: Axes, grid: str = "both") -> None:
    """Take away what says nothing."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color=GRID, linewidth=0.6)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9)


def label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write beside the ends of lines, apart from each other; call it when the limits are set.

    Args:
        ends: x and y in data, text, colour.
    """
    scale = 72 / axes.figure.dpi  # points of a pixel
    lowest = -float("inf")
    for x, y, text, colour in sorted(ends, key=lambda end: end[1]):
        place = float(axes.transData.transform((x, y))[1]) * scale
        lowest = max(place, lowest + LABEL_GAP)
        axes.annotate(
            text,
            (x, y),
            (7, lowest - place),
            textcoords="offset points",
            fontsize=8,
            color=colour,
            va="center",
        )


def finish(figure: Figure, results: Results, title: str, path: Path) -> None:
    """Title, machine and verdict, and write the picture."""
    e = results.environment
    figure.suptitle(title, x=0.01, ha="left", weight="bold", fontsize=12)
    quick = ", quick" if results.quick else ""
    doubt = "" if judge(results).ranks else " · too noisy to rank: read no winner from it"
    figure.supxlabel(
        f"{hardware(e)}, threads per engine: {e['threads']}{quick}{doubt}",
        fontsize=9,
        color=INK if judge(results).ranks else SERIES[1],
    )
    write_atomic(path, to_png(figure))


__all__ = ["FAINT", "INK", "SERIES", "bare_axes", "colours", "finish", "label_ends", "new_figure"]
