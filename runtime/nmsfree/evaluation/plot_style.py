"""What the pictures of an evaluation share: colours, axes, legends."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from nmsfree.errors import import_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from nmsfree.evaluation.analysis import Analysis

# Okabe and Ito's palette, then four more: told apart with any colour vision.
COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00",
    "#56B4E9", "#7A4FA3", "#8C510A", "#7F7F7F", "#B8A900",
)  # fmt: skip
DASHES = (0, (4, 3))
INK, FAINT, GRID = "#222222", "#BBBBBB", "#E4E4E4"
LONGEST = 18  # characters of a class name that are shown


class Entry(NamedTuple):
    """A line of a legend."""

    colour: str
    width: float
    text: str
    dashed: bool = False


def import_figure() -> "type[Figure]":
    """Return matplotlib's Figure, which draws without a screen.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure: type[Figure] = import_extra(
        "matplotlib.figure", "drawing curves", "nmsfree[eval]"
    ).Figure
    return figure


def short(name: str) -> str:
    """Return a class name, cut where it is too long for a picture."""
    return shorten(name, LONGEST)


def shorten(name: str, longest: int) -> str:
    """Cut a name in its middle: many that begin alike differ at the end."""
    if len(name) <= longest:
        return name
    tail = longest // 2
    return f"{name[: longest - 1 - tail]}…{name[len(name) - tail :]}"


def heading(
    figure: "Figure", axes: "Axes", analysis: "Analysis", title: str, more: str = ""
) -> None:
    """Write what is shown, and above the axes of which model and data, and a line of remarks."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, weight="bold", color=INK)
    text = f"{analysis.spec.name} · {analysis.thresholds.measured_on}"
    text += f"\n{more}" if more else ""
    axes.set_title(text, loc="left", fontsize=9, color=INK, parse_math=False)


def unit_axes(axes: "Axes", x: str, y: str) -> None:
    """Both axes from 0 to 1, a light grid, no frame."""
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    ticks = [i / 10 for i in range(11)]
    axes.set_xticks(ticks)
    axes.set_yticks(ticks)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def legend(axes: "Axes", entries: Sequence[Entry], title: str) -> None:
    """Write a legend right of the axes."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=e.colour, linewidth=e.width, linestyle=DASHES if e.dashed else "-")
        for e in entries
    ]
    box = axes.legend(
        handles,
        [e.text for e in entries],
        title=title,
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        frameon=False,
        fontsize=9,
        title_fontsize=9,
        alignment="left",
    )
    for text in box.get_texts():
        text.set_parse_math(False)
