"""`nmsfree bench report`: result files as one page for people who were not there."""

from pathlib import Path
from typing import Annotated

import typer

from nmsfree.text import shown


def report(
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Result files; the newest of each kind in --results if none is given."),
    ] = None,
    results: Annotated[Path, typer.Option(help="Folder of result files.")] = Path(
        "benchmarks/results"
    ),
    out: Annotated[Path, typer.Option(help="The HTML page.")] = Path("runs/bench/report.html"),
    markdown: Annotated[Path | None, typer.Option(help="Write the same as Markdown here.")] = None,
) -> None:
    """One page from result files: question, answer, pictures, tables, device, how to repeat it.

    The page is a single file that loads nothing from elsewhere. A run that was too noisy to rank
    says so in red. Files of an older format are left out and named.

    Example: nmsfree bench report

    Of two runs: nmsfree bench report a.json b.json --out report.html --markdown report.md
    """
    from rich.console import Console
    from rich.markup import escape

    from nmsfree.files import check_outputs, write_atomic
    from nmsfree_benchmarks.page.find import newest_of_each_kind, open_files
    from nmsfree_benchmarks.page.html import to_html
    from nmsfree_benchmarks.page.markdown import to_markdown
    from nmsfree_benchmarks.page.page import make_page

    check_outputs([out, markdown], files or results.glob("*"))
    skipped: dict[str, str] = {}
    if files:
        found = open_files(files)
    else:
        found, skipped = newest_of_each_kind(results)
    page = make_page(found, skipped)
    write_atomic(out, to_html(page).encode())
    written = [out]
    if markdown is not None:
        write_atomic(markdown, to_markdown(page, markdown.parent).encode())
        written.append(markdown)
    console = Console(highlight=False)
    for section in page.sections:
        doubt = " [red](too noisy to rank)[/]" if section.doubts else ""
        console.print(f"• [bold]{escape(shown(section.title))}[/]{doubt}", end=" ")
        console.print(shown(section.answer, 10_000), markup=False)
    for name, reason in skipped.items():
        console.print(f"• left out {shown(name)}: {shown(reason)}", markup=False)
    console.print(f"written: {', '.join(map(shown, written))}", soft_wrap=True, markup=False)
