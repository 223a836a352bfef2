"""How the pictures of the questions look."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nmsfree.files import write_atomic
from nmsfree.plotting import to_png
from nmsfree_benchmarks.harness.engines import engine_of, on_gpu
from nmsfree_benchmarks.harness.machine import hardware
from nmsfree_benchmarks.harness.options import CPU
from nmsfree_benchmarks.harness.records import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart with any colour vision, and by lightness in grey.
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK, FAINT, GRID = "#222222", "#888888", "#dddddd"
DOT, SMALL = 4.5, 8.0  # points: half a marker, and the height of a label


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each name, in order; the same names get the same ones in every picture."""
    return {name: SERIES[i % len(SERIES)] for i, name in enumerate(names)}


def new_figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=130, layout="constrained")


def bare_axes(axes: "Axes", grid: str = "both") -> None:
    """Take away what says nothing."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color=GRID, linewidth=0.6)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9)


def label_points(
    axes: "Axes", points: Sequence[tuple[float, float, str, str]], *, right: bool = False
) -> None:
    """Write beside points (x and y in data, text, colour), over no other point or label.

    Limits are set before. `right`: only at their right, as at the ends of lines.
    """
    axes.figure.figure.draw_without_rendering()  # places are final then
    scale = 72 / axes.figure.dpi  # points of a pixel
    places = [[float(v) * scale for v in axes.transData.transform(p[:2])] for p in points]
    taken = [(x - DOT, y - DOT, x + DOT, y + DOT) for x, y in places]

    def box(text: str, x: float, y: float) -> tuple[float, float, float, float]:
        """What a label covers that begins at x and is centred on y, in points."""
        lines = text.split("\n")
        half = (0.8 + 0.6 * (len(lines) - 1)) * SMALL
        return x, y - half, x + 0.58 * SMALL * max(map(len, lines)), y + half

    def free(text: str, x: float, y: float) -> bool:
        left, low, right, high = box(text, x, y)
        return not any(left < r and b < right and low < h and c < high for b, c, r, h in taken)

    # Above or below before beside it, where lines may be; at their ends there are none.
    ups = [0.0] if right else [7.0, -7.0, 0.0]
    # At ends only downwards, so that labels have the order of their lines.
    ups += [-float(dy) for dy in range(1, 90)] if right else []
    ups += [sign * dy for dy in range(9, 60) for sign in (1.0, -1.0)]
    highest_first = sorted(zip(points, places, strict=True), key=lambda one: -one[0][1])
    for (px, py, text, colour), (x, y) in highest_first:
        left = -DOT - 1 - 0.58 * SMALL * len(text)
        offsets = [(dx, dy) for dy in ups for dx in ((DOT + 1,) if right else (DOT + 1, left))]
        dx, dy = next((d for d in offsets if free(text, x + d[0], y + d[1])), (DOT + 1, DOT))
        taken.append(box(text, x + dx, y + dy))
        at = {"textcoords": "offset points", "fontsize": SMALL, "va": "center"}
        axes.annotate(text, (px, py), (dx, dy), color=colour, **at)  # type: ignore[arg-type]


def stacked_bar(
    axes: "Axes", y: float, parts: Mapping[str, float], colour: Mapping[str, str], label: str
) -> float:
    """Draw a bar of parts in the order of `colour`, a label at its end; returns its length."""
    start = 0.0
    for name in colour:
        if name in parts:
            axes.barh(y, parts[name], left=start, height=0.7, color=colour[name], linewidth=0)
            start += parts[name]
    end_label(axes, start, y, label)
    return start


def name_bars(axes: "Axes", names: Sequence[tuple[float, str]], longest: float) -> None:
    """Write names (y, text; from the top down) left of bars, and leave room for their labels."""
    axes.set_yticks([y for y, _ in names], [name for _, name in names], fontsize=9)
    axes.set_ylim(names[-1][0] + 0.6, -0.4)
    axes.set_xlim(0, longest)
    bare_axes(axes, "x")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def end_label(axes: "Axes", x: float, y: float, text: str, size: float = 9) -> None:
    axes.annotate(
        text, (x, y), (4, 0), textcoords="offset points", fontsize=size, color=INK, va="center"
    )


def legend(figure: "Figure", colour: Mapping[str, str], labels: Mapping[str, str]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=colour[name], label=labels[name]) for name in colour]
    place: Any = {"loc": "outside upper right", "ncols": len(handles), "frameon": False}
    figure.legend(handles=handles, fontsize=9, **place)


def titled(title: str, results: Results) -> str:
    """A title that says where it was measured, unless on the processor as usual."""
    device = results.environment["device"]
    if device == CPU:
        return title
    gpu = results.environment.get("gpu") if on_gpu(device) else None
    return f"{title}, {engine_of(device).label}" + (f" on {gpu}" if gpu else "")


def finish(figure: "Figure", results: Results, title: str, path: Path) -> None:
    """Title, machine and doubts, and write the picture."""
    e = results.environment
    figure.suptitle(titled(title, results), x=0.01, ha="left", weight="bold", fontsize=12)
    quick = ", quick" if results.quick else ""
    busy = bool(results.doubts())
    doubt = " · a busy machine: see which intervals tell rows apart" if busy else ""
    figure.supxlabel(
        f"{hardware(e)}, threads per engine: {e['threads']}{quick}{doubt}",
        fontsize=9,
        color=SERIES[1] if busy else INK,
    )
    write_atomic(path, to_png(figure))
