"""One table for two places: the terminal and Markdown."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from nmsfree.text import in_markdown, shown

if TYPE_CHECKING:
    from rich.table import Table


def number(value: float | None, form: str = ".1f") -> str:
    """A number in a cell; "–" where it is not known, or too little was measured for it."""
    return "–" if value is None else f"{value:{form}}"


@dataclass(frozen=True)
class Sheet:
    """Attributes:
    title: above the table; says the units that the header does not.
    header: names of the columns.
    rows: cells in the order of the header.
    words: so many columns at the left are words, the others numbers.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1

    def rich(self) -> "Table":
        """For a terminal."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        table = Table(
            title=Text(shown(self.title)), box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
        )
        for number, name in enumerate(self.header):
            justify: Literal["left", "right"] = "left" if number < self.words else "right"
            table.add_column(name, justify=justify, no_wrap=True)
        for row in self.rows:
            table.add_row(*(Text(shown(cell)) for cell in row))
        return table

    def markdown(self) -> list[str]:
        """The lines of a Markdown table, heading first."""
        columns = len(self.header)
        rule = ["---"] * self.words + ["---:"] * (columns - self.words)
        safe = [tuple(map(in_markdown, row)) for row in (self.header, *self.rows)]
        rows = [safe[0], tuple(rule), *safe[1:]]
        return [
            f"## {in_markdown(self.title)}",
            "",
            *("| " + " | ".join(row) + " |" for row in rows),
            "",
        ]
