"""The study as a picture: a line for each row, a dot for each seed."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nmsfree.files import write_atomic
from nmsfree.plotting import COLOURS, GRID, INK, import_figure, to_png
from nmsfree_training.study.results import PUBLISHED_NMS, Result, deployed
from nmsfree_training.study.rows import REFERENCE
from nmsfree_training.study.summary import RowSummary, best_o2m, summarise
from nmsfree_training.study.table import splits_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FREE, NMS, BEST = COLOURS[0], COLOURS[1], COLOURS[2]  # output without NMS; NMS 0.6; best NMS
WIDTH, ROW, EDGES, DPI = 11.5, 0.42, 1.9, 130  # inches: of all, of a row, around the rows
MEAN = 0.27  # half the height of the bar at a mean, in rows


def write_picture(results: Sequence[Result], out: Path) -> None:
    """Draw the AP (× 100) of every row, one panel for each split, as PNG.

    Args:
        results: of runs with the same number of epochs; at least one.
        out: the file, replaced as a whole.

    Raises:
        MissingExtraError: matplotlib is not installed.
        InputError: the file cannot be written.
    """
    rows = summarise(results)
    splits = splits_of(rows)
    size = (WIDTH, EDGES + ROW * len(rows))
    figure = import_figure()(figsize=size, dpi=DPI, layout="constrained")
    panels = figure.subplots(1, len(splits), sharey=True, squeeze=False)[0]
    for panel, split in zip(panels, splits, strict=True):
        _panel(panel, results, rows, split)
    _row_names(panels[0], rows)
    _heading(figure, rows)
    _legend(figure)
    write_atomic(out, to_png(figure))


def _panel(panel: "Axes", results: Sequence[Result], rows: list[RowSummary], split: str) -> None:
    from matplotlib.ticker import MaxNLocator

    for place, row in enumerate(rows):
        own = [r for r in results if r["row"] == row.row and split in r["splits"]]
        if own:
            _row(panel, place, own, row, split)
    reference = [r for r in results if r["row"] == REFERENCE]
    _reference(panel, [r for r in reference if "o2m" in r["splits"].get(split, {})], split)
    panel.set_xlabel(f"AP on {split}", color=INK)
    panel.set_ylim(len(rows) - 0.4, -0.6)
    panel.margins(x=0.09)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    panel.grid(axis="x", color=GRID, linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.tick_params(axis="y", length=0)
    panel.tick_params(axis="x", labelsize=9, colors=INK)


def _row(panel: "Axes", place: int, own: list[Result], row: RowSummary, split: str) -> None:
    summary = row.splits[split]
    needs_nms = "o2o" not in own[0]["splits"][split]
    colour = NMS if needs_nms else FREE
    values = [100 * deployed(result, split)["AP"] for result in own]
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
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=7.5,
        color=colour,
        weight="bold",
        bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"},
    )


def _reference(panel: "Axes", reference: list[Result], split: str) -> None:
    """Lines at what the detector with NMS reaches; the labels stand one above the other."""
    if not reference:
        return
    best = best_o2m(reference, split)
    published = [r["splits"][split]["o2m"]["nms"][PUBLISHED_NMS] for r in reference]
    lines = (
        (100 * sum(published) / len(published), PUBLISHED_NMS, NMS, 15),
        (100 * best.stat.mean, best.iou, BEST, 4),
    )
    for value, iou, colour, height in lines:
        panel.axvline(value, color=colour, linewidth=1.3, linestyle=(0, (4, 2)), zorder=1)
        panel.annotate(
            f"{REFERENCE}, NMS {iou}: {value:.1f}",
            (value, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, height),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
            color=colour,
        )


def _row_names(panel: "Axes", rows: list[RowSummary]) -> None:
    """The title, and below it the name that commands take."""
    panel.set_yticks(range(len(rows)), [""] * len(rows))
    for place, row in enumerate(rows):
        for text, size, colour, shift in (
            (row.title, 9.5, INK, 4.5),
            (row.row, 7.5, "#777777", -5.5),
        ):
            panel.annotate(
                text,
                (0, place),
                xycoords=("axes fraction", "data"),
                xytext=(-8, shift),
                textcoords="offset points",
                ha="right",
                va="center",
                fontsize=size,
                color=colour,
                parse_math=False,
            )


def _heading(figure: "Figure", rows: list[RowSummary]) -> None:
    counts = sorted({len(row.seeds) for row in rows})
    seeds = "–".join(str(n) for n in dict.fromkeys((counts[0], counts[-1])))
    text = f"AP by recipe · {rows[0].epochs} epochs · {seeds} seed{'s' * (counts[-1] > 1)}"
    figure.suptitle(text, x=0.01, ha="left", fontsize=13, weight="bold", color=INK)


def _legend(figure: "Figure") -> None:
    from matplotlib.lines import Line2D

    def entry(label: str, marker: str, colour: str, size: float) -> Line2D:
        return Line2D([], [], ls="", marker=marker, color=colour, ms=size, mew=0, label=label)

    handles = [
        entry("one seed", "o", FREE, 6),
        entry("mean, without NMS", "|", FREE, 11),
        entry("mean, NMS at IoU 0.6", "|", NMS, 11),
        entry("o2m head, best NMS", "D", BEST, 5),
    ]
    handles[0].set_alpha(0.45)
    for bar in handles[1:3]:
        bar.set_markeredgewidth(3)
    handles[3].set(markerfacecolor="white", markeredgewidth=1.3)
    box = figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9
    )
    for text in box.get_texts():
        text.set_color(INK)
