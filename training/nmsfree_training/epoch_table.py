"""The table of a run on the console: one line for each epoch, as many columns as fit."""

from collections.abc import Callable
from dataclasses import dataclass

from nmsfree_training.events import EpochEvent, is_loss
from nmsfree_training.units import duration_text, loss_text, number_text

NOTHING = "-"  # in a column without a value
BEST = "best"  # at the end of a line whose weights are the best so far
LOST = {"skipped": "steps skipped", "left_out": "images left out"}  # after a line
REPEAT = 20  # lines after which the header comes again

Text = Callable[[float], str]


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        key: of the record shown.
        head: its title.
        width: characters, title and values.
        keep: columns of a smaller number are dropped first where not all fit; those of one
            number go together.
        text: how a value is written.
    """

    key: str
    head: str
    width: int
    keep: int
    text: Text


def columns_of(names: list[str]) -> list[Column]:
    """All columns for the losses of this network, from left to right."""
    columns = [Column("loss", "loss", 7, 100, loss_text)]
    parts = [name for name in names if is_loss(name) and name != "loss"]
    # With two heads the one that is not deployed (o2m) matters less.
    lesser = "o2m" if any(name.startswith("o2o") for name in parts) else ""
    for name in parts:
        keep = 10 if lesser and name.startswith(lesser) else 30
        head = name.replace("_", " ")
        columns.append(Column(name, head, max(7, len(head)), keep, loss_text))
    return [
        *columns,
        Column("AP", "AP", 5, 90, _percent),
        Column("AP50", "AP50", 5, 60, _percent),
        Column("seconds", "time", 8, 50, duration_text),
        Column("images_per_second", "img/s", 6, 20, number_text),
    ]


def fit(columns: list[Column], width: int | None) -> list[Column]:
    """Leave out the least important columns until the rest takes `width`; None: keep all."""
    while width is not None and len(columns) > 1 and _width(columns) > width:
        least = min(column.keep for column in columns)
        columns = [column for column in columns if column.keep > least]
    return columns


def _width(columns: list[Column]) -> int:
    return sum(1 + column.width for column in columns)


def _percent(value: float) -> str:
    return f"{value * 100:.1f}"


class EpochTable:
    """Makes the lines; a header comes first, again after some lines, and when columns change."""

    def __init__(self) -> None:
        self._shown: list[Column] = []
        self._lines = 0  # since the header

    def lines(self, event: EpochEvent, epochs: int, width: int | None) -> list[str]:
        """Return the lines to print for an epoch: mostly one, two with the header.

        Args:
            event: the epoch.
            epochs: of the whole run.
            width: characters of the screen; None: unlimited.
        """
        count = f"{int(event.record['epoch'])}/{epochs}"
        first = max(len("epoch"), 2 * len(str(epochs)) + 1)
        room = None if width is None else width - first - 1 - len(BEST)
        columns = fit(columns_of(list(event.record)), room)
        made = []
        if columns != self._shown or self._lines == REPEAT:
            self._shown, self._lines = columns, 0
            made.append(
                "".join([f"{'epoch':>{first}}", *(f" {c.head:>{c.width}}" for c in columns)])
            )
        cells = [_cell(column, event.record) for column in columns]
        # Without an evaluation the last weights pass for the best: not worth a word.
        mark = f" {BEST}" if event.best and "AP" in event.record else ""
        for key, words in LOST.items():
            if key in event.record:
                mark += f"; {int(event.record[key])} {words}"
        self._lines += 1
        return [*made, "".join([f"{count:>{first}}", *cells, mark])]


def _cell(column: Column, record: dict[str, float]) -> str:
    value = record.get(column.key)
    text = NOTHING if value is None else column.text(value)
    return f" {text:>{column.width}}"
