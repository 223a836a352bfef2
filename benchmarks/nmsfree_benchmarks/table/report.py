"""Writing a report: JSON with raw times, Markdown, picture."""

from pathlib import Path

from nmsfree.files import write_atomic
from nmsfree_benchmarks.record import file as results_file
from nmsfree_benchmarks.table.picture import draw
from nmsfree_benchmarks.table.results import Report
from nmsfree_benchmarks.table.tables import markdown


def write(report: Report, folder: Path) -> list[Path]:
    """Write FOLDER/STAMP.json, .md and .png; returns them.

    Raises:
        InputError: the folder cannot be written to.
    """
    data, table, picture = (folder / f"{report.stamp}.{kind}" for kind in ("json", "md", "png"))
    results_file.write(report.results(), data)
    draw(report, picture)
    write_atomic(table, markdown(report, picture.name).encode())
    return [data, table, picture]
