"""The study as a table (on the terminal, as Markdown, as JSON) and as a plot."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nmsfree.plotting import COLOURS, GRID, INK, bare_axes, new_figure, write_figure
from nmsfree_training.study.results import (
    PUBLISHED_NMS,
    AtIou,
    Result,
    RowSummary,
    Stat,
    best_o2m,
    deployed,
    summarize,
)
from nmsfree_training.study.rows import REFERENCE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import Console

SCORES = ("row", "n", "AP", f"− {REFERENCE} best", "o2m + NMS 0.6", "o2m + best NMS", "minutes")
OUTPUT = (
    "NMS on top 0.6", "on top, best", "duplicates", "wrong ones", "F1", "with NMS",
)  # fmt: skip
COLUMNS = (*SCORES, *OUTPUT)
GROUPS = (SCORES, ("row", *OUTPUT))  # one below the other they fit a terminal
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
    """Return the cells of a row by column, in the order of `COLUMNS`."""
    s = row.splits[split]
    texts = (
        row.row,
        str(len(row.seeds)),
        percent(s.ap),
        percent(s.against, signed=True),
        percent(s.o2m),
        _at(s.o2m_best),
        _number(row.minutes, 1),
        percent(s.nms_gain, signed=True),
        _at(s.nms_gain_best, signed=True),
        _number(s.duplicates, 2),
        f"{s.wrong_duplicates.mean:.2f}",
        percent(s.f1),
        f"{100 * s.f1_with_nms.mean:.1f}",
    )
    return dict(zip(COLUMNS, texts, strict=True))


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
        console.print(Text(_title(rows, split), style="bold"))
        for columns in GROUPS:
            table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
            for name in columns:
                first, narrow = name == "row", "\n".join(name.rsplit(" ", 1))
                table.add_column(narrow, justify="left" if first else "right", no_wrap=first)
            for found in [cells(row, split) for row in rows if split in row.splits]:
                table.add_row(*(found[name] for name in columns))
            console.print(table)
    console.print(Text(EXPLAINED, style="dim"))


def markdown(rows: Sequence[RowSummary]) -> str:
    """Return the tables as Markdown, with the rows' titles below them."""
    parts = []
    for split in splits_of(rows):
        lines = [list(COLUMNS), ["---", *["---:"] * (len(COLUMNS) - 1)]]
        lines += [list(cells(row, split).values()) for row in rows if split in row.splits]
        parts += [f"**{_title(rows, split)}**"]
        parts += ["\n".join(f"| {' | '.join(line)} |" for line in lines)]
    parts += [EXPLAINED]
    parts += ["\n".join(f"- `{row.row}`: {row.title}" for row in rows)]
    return "\n\n".join(parts) + "\n"


def to_json(rows: Sequence[RowSummary]) -> list[dict[str, Any]]:
    """Return all figures, AP and F1 0–1, ready for `json.dumps`."""
    return [asdict(row) for row in rows]


def _title(rows: Sequence[RowSummary], split: str) -> str:
    return f"{split}, {rows[0].epochs} epochs"


# The plot: a line for each row, a dot for each seed.

FREE, NMS, BEST = COLOURS[0], COLOURS[1], COLOURS[2]  # output without NMS; NMS 0.6; best NMS
WIDTH, ROW, EDGES, DPI = 11.5, 0.42, 1.9, 130  # inches: of all, of a row, around the rows
MEAN = 0.27  # half the height of the bar at a mean, in rows


def write_plot(results: Sequence[Result], out: Path) -> None:
    """Draw the AP (× 100) of every row, one panel for each split, as PNG.

    Args:
        results: of runs with the same number of epochs; at least one.
        out: the file, replaced as a whole.

    Raises:
        MissingExtraError: matplotlib is not installed.
        InputError: the file cannot be written.
    """
    rows = summarize(results)
    splits = splits_of(rows)
    figure = new_figure(WIDTH, EDGES + ROW * len(rows), DPI)
    panels = figure.subplots(1, len(splits), sharey=True, squeeze=False)[0]
    for panel, split in zip(panels, splits, strict=True):
        _panel(panel, results, rows, split)
    _row_names(panels[0], rows)
    _heading(figure, rows)
    _legend(figure)
    write_figure(out, figure)


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
    bare_axes(panel, "x")
    panel.spines["left"].set_visible(False)
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
