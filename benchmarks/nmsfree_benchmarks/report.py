"""Writing a report: JSON with raw times, Markdown, picture."""

import json
import re
from pathlib import Path

from nmsfree.errors import InputError
from nmsfree_benchmarks.picture import draw
from nmsfree_benchmarks.results import Report
from nmsfree_benchmarks.tables import markdown

_NUMBERS = re.compile(r"\[\s+(-?[\d.]+(?:,\s+-?[\d.]+)*)\s+\]")


def to_text(report: Report) -> str:
    """Return the report as JSON, indented, with lists of numbers on one line."""
    text = json.dumps(report.to_json(), indent=1, ensure_ascii=False)
    return _NUMBERS.sub(lambda m: "[" + re.sub(r"\s+", " ", m[1]) + "]", text) + "\n"


def write(report: Report, folder: Path) -> list[Path]:
    """Write FOLDER/STAMP.json, .md and .png; returns them.

    Raises:
        InputError: the folder cannot be written to.
    """
    data, table, picture = (folder / f"{report.stamp}.{kind}" for kind in ("json", "md", "png"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        data.write_text(to_text(report), encoding="utf-8", newline="\n")
        draw(report, picture)
        table.write_text(markdown(report, picture.name), encoding="utf-8", newline="\n")
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror or error})") from None
    return [data, table, picture]
