"""The study as tables (on the terminal, as Markdown) and as a plot."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nmsfree.plotting import COLOURS, GRID, INK, bare_axes, new_figure, write_figure
from nmsfree_training.study.results import (
    PUBLISHED_NMS,
    AtIou,
    Result,
    RowSummary,
    SplitSummary,
    Stat,
    summarize,
)
from nmsfree_training.study.rows import REFERENCE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import Console

NOTHING = "–"
EXPLAINED = (
    "Mean ± sample standard deviation over n seeds; AP and F1 × 100. AP: of the deployed output, "
    "the one-to-one head's; of a row without one, after NMS at IoU 0.6. "
    f"− {REFERENCE} best: AP minus that of {REFERENCE} at its best NMS threshold, seed by seed; τ "
    "and that threshold were chosen on these splits: it shows at most that a row is not worse. "
    "o2m: the one-to-many head after NMS, at 0.6 and at the threshold (@) of 0.50 … 0.95 with the "
    "highest mean. minutes: of training, whatever the processor. NMS on top: what it adds to the "
    "one-to-one head's AP. "
    "duplicates: detections per image that overlap a better one of their class by IoU > 0.7, "
    "above the threshold of the best F1; wrong ones hit no object of their own. F1: the best of "
    "all thresholds; with NMS: 0.6, on top."
)


def splits_of(rows: Sequence[RowSummary]) -> list[str]:
    """Return the names of all splits, in the order in which they were measured."""
    return list(dict.fromkeys(split for row in rows for split in row.splits))


def cells(row: RowSummary, split: str) -> dict[str, str]:
    """Return the cells of a row by column."""
    s = row.splits[split]
    return {
        "row": row.row,
        "n": str(len(row.seeds)),
        "AP": percent(s.ap),
        f"− {REFERENCE} best": percent(s.against, signed=True),
        "o2m + NMS 0.6": percent(s.o2m),
        "o2m + best NMS": _at(s.o2m_best),
        "minutes": _number(row.minutes, 1),
        "NMS on top 0.6": percent(s.nms_gain, signed=True),
        "on top, best": _at(s.nms_gain_best, signed=True),
        "duplicates": _number(s.duplicates, 2),
        "wrong ones": f"{s.wrong_duplicates.mean:.2f}",
        "F1": percent(s.f1),
        "with NMS": f"{100 * s.f1_with_nms.mean:.1f}",
    }


SCORES = 7  # columns of the first table on a terminal; the others come below it


def percent(stat: Stat | None, signed: bool = False) -> str:
    """Return × 100 with one decimal: "77.1 ± 0.3", "+0.4 ± 0.2"; "–" for nothing."""
    return NOTHING if stat is None else _number(stat, 1, 100, signed)


def _number(stat: Stat, decimals: int, factor: float = 1, signed: bool = False) -> str:
    mean = round(factor * stat.mean, decimals) + 0.0  # no negative zero
    text = f"{mean:{'+' * signed}.{decimals}f}".replace("-", "−")
    return text if stat.sd is None else f"{text} ± {factor * stat.sd:.{decimals}f}"


def _at(best: AtIou | None, signed: bool = False) -> str:
    return NOTHING if best is None else f"{percent(best.stat, signed)} @{best.iou}"


def print_table(rows: Sequence[RowSummary], console: "Console") -> None:
    """Print two tables for each split, and what their columns mean."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    for split in splits_of(rows):
        console.print(Text(f"{split}, {rows[0].epochs} epochs", style="bold"))
        lines = [cells(row, split) for row in rows if split in row.splits]
        columns = list(lines[0])
        for group in (columns[:SCORES], ["row", *columns[SCORES:]]):
            table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
            for name in group:
                first, narrow = name == "row", "\n".join(name.rsplit(" ", 1))
                table.add_column(narrow, justify="left" if first else "right", no_wrap=first)
            for line in lines:
                table.add_row(*(line[name] for name in group))
            console.print(table)
    console.print(Text(EXPLAINED, style="dim"))


def markdown(rows: Sequence[RowSummary]) -> str:
    """Return the tables as Markdown, with the rows' titles below them."""
    parts = []
    for split in splits_of(rows):
        found = [cells(row, split) for row in rows if split in row.splits]
        ruler = ["---", *["---:"] * (len(found[0]) - 1)]
        lines = [list(found[0]), ruler, *(list(line.values()) for line in found)]
        parts += [f"**{split}, {rows[0].epochs} epochs**"]
        parts += ["\n".join(f"| {' | '.join(line)} |" for line in lines)]
    parts += [EXPLAINED, "\n".join(f"- `{row.row}`: {row.title}" for row in rows)]
    return "\n\n".join(parts) + "\n"


# The plot: a line for each row, a dot for each seed.

FREE, NMS, BEST = COLOURS[:3]  # output without NMS; NMS 0.6; best NMS
WIDTH, ROW, EDGES, DPI = 11.5, 0.42, 1.9, 130  # inches: of all, of a row, around the rows
MEAN = 0.27  # half the height of the bar at a mean, in rows
POINTS = "offset points"


def write_plot(results: Sequence[Result], out: Path) -> None:
    """Draw the AP (× 100) of every row, one panel for each split, as PNG.

    Raises:
        MissingExtraError: matplotlib is not installed.
        InputError: the file cannot be written.
    """
    rows = summarize(results)
    splits = splits_of(rows)
    figure = new_figure(WIDTH, EDGES + ROW * len(rows), DPI)
    panels = figure.subplots(1, len(splits), sharey=True, squeeze=False)[0]
    for panel, split in zip(panels, splits, strict=True):
        for place, row in enumerate(rows):
            own = [r.splits[split] for r in results if r.row == row.row and split in r.splits]
            if own:
                values = [100 * found.deployed.AP for found in own]
                _row(panel, place, values, NMS if own[0].o2o is None else FREE, row.splits[split])
            if own and row.row == REFERENCE:
                _reference(panel, row.splits[split])
        _axes(panel, split, len(rows))
    _row_names(panels[0], rows)
    counts = [len(row.seeds) for row in rows]
    seeds = "–".join(map(str, sorted({min(counts), max(counts)})))
    text = f"AP by recipe · {rows[0].epochs} epochs · {seeds} seed{'s' * (max(counts) > 1)}"
    figure.suptitle(text, x=0.01, ha="left", fontsize=13, weight="bold", color=INK)
    _legend(figure)
    write_figure(out, figure)


def _axes(panel: "Axes", split: str, rows: int) -> None:
    from matplotlib.ticker import MaxNLocator

    panel.set_xlabel(f"AP on {split}", color=INK)
    panel.set_ylim(rows - 0.4, -0.6)
    panel.margins(x=0.09)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    bare_axes(panel, "x")
    panel.spines["left"].set_visible(False)
    panel.tick_params(axis="y", length=0)
    panel.tick_params(axis="x", labelsize=9, colors=INK)


def _row(
    panel: "Axes", place: int, values: list[float], colour: str, summary: SplitSummary
) -> None:
    mean = 100 * summary.ap.mean
    panel.axhline(place, color=GRID, linewidth=0.8, zorder=0)
    panel.plot(values, [place] * len(values), "o", color=colour, markersize=6, alpha=0.45, mew=0)
    panel.plot([mean, mean], [place - MEAN, place + MEAN], color=colour, linewidth=3)
    if summary.o2m_best is not None:
        best = 100 * summary.o2m_best.stat.mean
        panel.plot([best], [place], "D", color=BEST, markersize=5, markerfacecolor="white", mew=1.3)
    panel.annotate(
        f"{mean:.1f}",
        (mean, place - MEAN),
        xytext=(0, 0.5),
        textcoords=POINTS,
        ha="center",
        va="bottom",
        fontsize=7.5,
        color=colour,
        weight="bold",
        bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"},
    )


def _reference(panel: "Axes", summary: SplitSummary) -> None:
    """Lines at what the detector with NMS reaches; the labels stand one above the other."""
    if summary.o2m is None or summary.o2m_best is None:
        return
    for stat, iou, colour, height in (
        (summary.o2m, PUBLISHED_NMS, NMS, 15),
        (summary.o2m_best.stat, summary.o2m_best.iou, BEST, 4),
    ):
        value = 100 * stat.mean
        panel.axvline(value, color=colour, linewidth=1.3, linestyle=(0, (4, 2)), zorder=1)
        panel.annotate(
            f"{REFERENCE}, NMS {iou}: {value:.1f}",
            (value, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, height),
            textcoords=POINTS,
            ha="center",
            fontsize=8.5,
            color=colour,
        )


def _row_names(panel: "Axes", rows: list[RowSummary]) -> None:
    """The title, and below it the name that commands take."""
    panel.set_yticks(range(len(rows)), [""] * len(rows))
    for place, row in enumerate(rows):
        texts = ((row.title, 9.5, INK, 4.5), (row.row, 7.5, "#777777", -5.5))
        for text, size, colour, shift in texts:
            panel.annotate(
                text,
                (0, place),
                xycoords=("axes fraction", "data"),
                xytext=(-8, shift),
                textcoords=POINTS,
                ha="right",
                va="center",
                fontsize=size,
                color=colour,
                parse_math=False,
            )


def _legend(figure: "Figure") -> None:
    from matplotlib.lines import Line2D

    def entry(label: str, marker: str, colour: str, size: float, **more: Any) -> Line2D:
        style: dict[str, Any] = {
            "ls": "",
            "marker": marker,
            "color": colour,
            "ms": size,
            "mew": 0,
            "label": label,
        }
        return Line2D([], [], **(style | more))

    handles = [
        entry("one seed", "o", FREE, 6, alpha=0.45),
        entry("mean, without NMS", "|", FREE, 11, mew=3),
        entry("mean, NMS at IoU 0.6", "|", NMS, 11, mew=3),
        entry("o2m head, best NMS", "D", BEST, 5, mew=1.3, markerfacecolor="white"),
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=len(handles),
        frameon=False,
        fontsize=9,
        labelcolor=INK,
    )
