"""The table of classes that `nmsfree data check` prints."""

from rich import box
from rich.table import Table
from rich.text import Text

from nmsfree.data.check_report import Check, SplitCheck
from nmsfree.evaluation.plot_style import shorten
from nmsfree.text import shown

COMMONEST, RAREST = 8, 6  # classes shown when there are more than both together, and one more
LONGEST = 24  # characters of a name
Counts = dict[str, tuple[int, int]]  # class name → objects, images


def class_table(check: Check) -> Table:
    """Return objects and images of the classes in every split, the commonest first."""
    counts = {name: _counts(split) for name, split in check.splits.items()}
    rows = [_row(name, counts) for name in dict.fromkeys(n for c in counts.values() for n in c)]
    rows.sort(key=lambda row: -sum(objects for objects, _ in row[1]))
    table = Table(
        title="classes, objects and images with them", title_justify="left", box=box.SIMPLE_HEAD
    )
    table.add_column("class", no_wrap=True)
    for name in counts:
        table.add_column(Text(f"{shown(name)}\nobjects"), justify="right")
        table.add_column("\nimages", justify="right")
    cut = len(rows) > COMMONEST + RAREST + 1
    for title, cells in rows[:COMMONEST] if cut else rows:
        table.add_row(title, *_texts(cells))
    if cut:
        table.add_row(f"… {len(rows) - COMMONEST - RAREST} more", *[""] * 2 * len(counts))
        for title, cells in rows[-RAREST:]:
            table.add_row(title, *_texts(cells))
    return table


def _counts(split: SplitCheck) -> Counts:
    """Count by name: two ids of one name are one class. Its images may then count twice."""
    found: Counts = {}
    for category in split.rows.categories:
        objects, images = found.get(category.name, (0, 0))
        found[category.name] = (
            objects + split.stats.by_class[category.id],
            images + split.stats.images_by_class[category.id],
        )
    return found


def _row(name: str, counts: dict[str, Counts]) -> tuple[Text, list[tuple[int, int]]]:
    cells = [split.get(name, (0, 0)) for split in counts.values()]
    return Text(shorten(name, LONGEST)), cells


def _texts(cells: list[tuple[int, int]]) -> list[Text]:
    return [Text(f"{n:,}", style="" if n else "bold red") for pair in cells for n in pair]
