"""The study as a table: on the terminal, as Markdown, as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from nmsfree_training.study.rows import REFERENCE
from nmsfree_training.study.summary import AtIou, RowSummary, Stat

if TYPE_CHECKING:
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
