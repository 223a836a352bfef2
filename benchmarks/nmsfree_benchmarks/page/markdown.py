"""A report as one Markdown page; pictures are links to files beside the results."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from nmsfree.text import in_markdown, shown
from nmsfree_benchmarks.common.sheets import Sheet
from nmsfree_benchmarks.page.page import Page, Section


def to_markdown(page: Page, folder: Path) -> str:
    """Write the page; `folder` is where it will lie."""
    lines = [f"# {page.title}", "", f"Measured {page.made_of}.", ""]
    if page.doubtful:
        kinds = ", ".join(section.title for section in page.doubtful)
        lines += [f"> **Too noisy to rank:** {text(kinds)}. Read no winner from these runs.", ""]
    lines += [f"- **{text(s.title)}:** {text(s.answer)}" for s in page.sections]
    lines += [""]
    for section in page.sections:
        lines += _section(section, folder)
    lines += ["## Words", "", *_pairs(page.glossary.items())]
    if page.skipped:
        lines += ["## Left out", "", *_pairs(page.skipped.items())]
    return "\n".join(lines).rstrip() + "\n"


def text(value: str) -> str:
    """Escape what Markdown or HTML would take for more than text."""
    return in_markdown(" ".join(value.split()), 10_000)


def _pairs(items: Iterable[tuple[str, str]]) -> list[str]:
    return [*(f"- **{text(name)}**: {text(value)}" for name, value in items), ""]


def _section(section: Section, folder: Path) -> Iterator[str]:
    yield from (f"## {text(section.title)}", "")
    if section.question:
        yield from (f"*{text(section.question)}*", "")
    for doubt in section.doubts:
        yield from (f"> **Too noisy to rank:** {text(doubt)}.", "")
    yield from (f"**{text(section.answer)}**", "")
    if section.quick:
        yield from ("A quick run, with fewer rounds: for a first look.", "")
    yield from _list(section.said)
    for picture in section.pictures:
        if picture.file is not None:
            link = Path(os.path.relpath(picture.file, folder)).as_posix()
            yield from (f"![{text(section.title)}](<{link}>)", "")
    for sheet in (*section.sheets, *section.details):
        yield from _sheet(sheet)
    # Indented and on one line: nothing in it ends the block, as it could end a fence.
    yield from ("Repeat it with:", "", f"    {shown(section.command, 10_000)}", "")
    yield from _pairs(section.about)
    yield from _pairs((f"skipped {name}", reason) for name, reason in section.skipped.items())


def _list(said: Iterable[str]) -> list[str]:
    lines = [f"- {text(line)}" for line in said]
    return [*lines, ""] if lines else []


def _sheet(sheet: Sheet) -> list[str]:
    """Like `Sheet.markdown`, one heading lower."""
    return [f"#{line}" if line.startswith("## ") else line for line in sheet.markdown()]
