"""One table for three places: the terminal, Markdown, and the page of `nmsfree bench report`."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from nmsfree.text import in_markdown, shown

if TYPE_CHECKING:
    from rich.table import Table as RichTable


def number(value: float | None, form: str = ".1f") -> str:
    """A number in a cell; "–" where it is not known, or too little was measured for it."""
    return "–" if value is None else f"{value:{form}}"


def percent(share: float | None, form: str = ".0f") -> str:
    """A share, 0-1, in percent; "–" where there is none."""
    return number(None if share is None else 100 * share, form)


@dataclass(frozen=True)
class Table:
    """Rows under a header, for the terminal, Markdown and HTML."""

    title: str  # says the units that the header does not
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1  # so many columns at the left are words, the others numbers
    narrow: int | None = None  # so many columns at the left are shown first; None = all

    @classmethod
    def of(
        cls,
        title: str,
        columns: Mapping[str, Callable[[Any], str]],
        items: Iterable[Any],
        **more: int,
    ) -> "Table":
        """A row for each item; columns are by their header."""
        rows = tuple(tuple(cell(item) for cell in columns.values()) for item in items)
        return cls(title, tuple(columns), rows, **more)

    def narrowed(self) -> "Table":
        """The columns at the left alone, which fit on a screen."""
        rows = tuple(row[: self.narrow] for row in self.rows)
        return replace(self, header=self.header[: self.narrow], rows=rows, narrow=None)

    def rich(self) -> "RichTable":
        from rich.box import SIMPLE_HEAD
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(
            title=Text(shown(self.title)), box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
        )
        narrowed = self.narrowed()
        for column, name in enumerate(narrowed.header):
            justify: Literal["left", "right"] = "left" if column < self.words else "right"
            table.add_column(name, justify=justify, no_wrap=True)
        for row in narrowed.rows:
            table.add_row(*(Text(shown(cell)) for cell in row))
        return table

    def markdown(self, level: int = 2) -> list[str]:
        """The lines of a Markdown table, below a heading of this level."""
        columns = len(self.header)
        rule = ("---",) * self.words + ("---:",) * (columns - self.words)
        safe = [tuple(map(in_markdown, row)) for row in (self.header, *self.rows)]
        rows = [safe[0], rule, *safe[1:]]
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        return [f"{'#' * level} {in_markdown(self.title)}", "", *lines, ""]
