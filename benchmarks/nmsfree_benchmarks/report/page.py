"""One page from result files.

Question, answer, pictures, tables, device, how to repeat it. The page is a single file that loads
nothing from elsewhere. A run that something disturbed says so in red. Files of an older format
are left out and named.

Example: nmsfree bench report

Of two runs: nmsfree bench report a.json b.json --out report.html --markdown report.md
"""

import base64
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from rich.markup import escape

from nmsfree.errors import InputError
from nmsfree.files import check_outputs, write_atomic
from nmsfree.options import Option
from nmsfree.parsing import read_bytes
from nmsfree.text import in_markdown, shown
from nmsfree_benchmarks.harness.records import FORMAT_VERSION, Results, read
from nmsfree_benchmarks.harness.run import Question
from nmsfree_benchmarks.harness.table import Table
from nmsfree_benchmarks.report.generic import (
    DIGITS,
    listed_table,
    ratios_table,
    rows_table,
    said_of_ratios,
)
from nmsfree_benchmarks.report.svg import Picture, bars_picture

UNIT = re.compile(r"(?<=\d) (%|×|ms|MB|MiB|GB/s|GFLOP/s|TFLOP/s|FPS)(?!\w)")
GLOSSARY = {
    "NMS": "non-maximum suppression: deletes repeated boxes of one object after the network.",
    "NMS-free": "the network answers each object once, so nothing has to be deleted after it.",
    "p50, p99": "half of all calls took at most the p50 (the median), 99 of 100 at most the p99; "
    "a p99 is given of 100 calls or more, a p90 of 20.",
    "FPS": "images a second one after another: 1 / p50.",
    "interval": "where the true ratio lies with 95 % confidence, found by drawing the measured "
    "rounds again and again (bootstrap); an interval that holds 1 does not tell which is faster, "
    "and under 10 rounds there is none.",
    "AP": "average precision on COCO's scale, 0 to 100: how many objects are found, and how "
    "exactly.",
    "limit": "the least time that a device could take, by its measured peaks of arithmetic and "
    "memory.",
    "!": "the calls of this row differ much (interquartile range above 10 % of the median).",
}
ORDER = ("table", "nms", "jitter", "frontier", "throughput", "overhead", "roofline")  # of kinds
TEMPLATES = files("nmsfree_benchmarks.report").joinpath("templates")
FindQuestion = Callable[[str], Question | None]  # of a kind


@dataclass(frozen=True, kw_only=True)
class Options:
    files: Annotated[
        tuple[Path, ...] | None,
        Option(
            "Result files; the newest of each kind in --results if none is given.", argument=True
        ),
    ] = None
    results: Annotated[Path, Option("Folder of result files.")] = Path("runs/bench")
    out: Annotated[Path, Option("The HTML page.")] = Path("runs/bench/report.html")
    markdown: Annotated[Path | None, Option("Write the same as Markdown here.")] = None


@dataclass(frozen=True, eq=False)
class Found:
    """A result file that was read."""

    path: Path
    results: Results
    sha256: str  # of its bytes
    picture: Path | None  # PNG of the same name beside it; None = there is none


@dataclass(frozen=True)
class Section:
    results: Results
    title: str
    question: str
    answer: str  # the first conclusion
    said: tuple[str, ...]  # the others
    pictures: tuple[Picture, ...]
    tables: tuple[Table, ...]  # what to read
    details: tuple[Table, ...]  # what to look up
    about: tuple[tuple[str, str], ...]  # (what, value): device, versions, command, file


@dataclass(frozen=True)
class Page:
    title: str
    made_of: str  # the days of its runs
    sections: tuple[Section, ...]
    skipped: Mapping[str, str]  # files that were left out → why
    glossary: Mapping[str, str]

    @property
    def doubtful(self) -> list[Section]:
        return [section for section in self.sections if section.results.doubts()]


def open_file(path: Path) -> Found:
    """Read a result file.

    InputError: it cannot be read, is no result file, or is of another format.
    """
    data = read_bytes(path)
    picture = path.with_suffix(".png")
    there = picture if picture.is_file() else None
    return Found(path, read(path, data), sha256(data).hexdigest(), there)


def newest_of_each_kind(folder: Path) -> tuple[list[Found], dict[str, str]]:
    """Read the newest result file of each kind in a folder; why others cannot be read, by name.

    InputError: the folder holds no result file of this format.
    """
    newest: dict[str, Found] = {}
    skipped: dict[str, str] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            found = open_file(path)
        except InputError as error:
            skipped[path.name] = str(error).removeprefix(f"{path}: ")
            continue
        kind = found.results.kind
        if kind not in newest or newest[kind].results.stamp < found.results.stamp:
            newest[kind] = found
    if not newest:
        also = "".join(f"; {name}: {reason}" for name, reason in skipped.items())
        raise InputError(
            f"{folder}: no result of format {FORMAT_VERSION} in it, run one first{also}"
        )
    kinds = sorted(newest, key=lambda k: ORDER.index(k) if k in ORDER else len(ORDER))
    return [newest[kind] for kind in kinds], skipped


def make_page(
    found: Sequence[Found], find_question: FindQuestion, skipped: Mapping[str, str] | None = None
) -> Page:
    """Put result files into words and pictures; nothing in it depends on when that is done.

    InputError: figures of a file are none that its kind of benchmark writes.
    """
    days = sorted(
        {f"{datetime.strptime(f.results.stamp, '%Y%m%dT%H%M%SZ'):%Y-%m-%d}" for f in found}
    )
    made_of = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    kinds = [f.results.kind for f in found]
    sections = []
    for one in found:
        kind = one.results.kind
        try:  # the schema leaves figures and facts open; each kind takes from them what it wrote
            section = _section(one, find_question(kind), dated=kinds.count(kind) > 1)
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            raise InputError(
                f"{one.path}: figures that no {kind} run writes "
                f"({type(error).__name__}: {shown(error)}): measure again"
            ) from error
        sections.append(section)
    title = "Detectors without NMS, measured"
    return Page(title, made_of, tuple(sections), skipped or {}, GLOSSARY)


def summary_of(results: Results, question: Question | None) -> tuple[list[str], list[Table]]:
    """Conclusions and tables of a run: of its kind's own, or what every kind has."""
    if question is not None:
        try:
            said, tables = list(question.conclusions(results)), list(question.tables(results))
        except KeyError:  # an older minor version lacks a figure that is put into words today
            return said_of_ratios(results), []
        return said or said_of_ratios(results), tables
    return said_of_ratios(results), []


def _section(found: Found, question: Question | None, dated: bool) -> Section:
    """One run; `dated` where the page has another of its kind."""
    results = found.results
    said, tables = summary_of(results, question)
    answer = said[0] if said else f"{len(results.records)} rows were measured."
    rows = rows_table(results)
    details = [table for table in tables if table.narrow]
    details += [ratios_table(results), listed_table("Facts", results.facts)]
    details += [listed_table("Settings", results.settings)]
    return Section(
        results,
        title=(question.SHORT if question else results.kind)
        + (f", {results.stamp}" if dated else ""),
        question=question.ASKS if question else "",
        answer=answer,
        said=tuple(said[1:]),
        pictures=tuple(_pictures(found, question)),
        tables=tuple(table.narrowed() for table in tables) or (rows,),
        details=tuple(t for t in ([rows, *details] if tables else details) if t.rows),
        about=tuple(_about(found)),
    )


def _about(found: Found) -> Iterator[tuple[str, str]]:
    e, load = found.results.environment, found.results.other_load
    where = f"{e['device']}: {e['processor']}, {e['cores']} cores"
    yield "device", f"{where}; threads of an engine: {e['threads']}"
    if e.get("gpu"):
        yield "GPU", str(e["gpu"])
    yield "system", f"{e['system']}, Python {e['python']}"
    engines = dict.fromkeys(r.subject.provider for r in found.results.records if r.subject)
    if engines:
        yield "engines", "; ".join(engines)
    yield "versions", ", ".join(f"{name} {number}" for name, number in e["versions"].items())
    said = "unknown" if load is None else f"{load:.1f} cores, kept busy by others"
    yield "other load", said
    yield "run", f"{found.results.stamp}, {found.results.seconds:.0f} s"
    yield "raw times", f"{found.path.name}, SHA-256 {found.sha256[:DIGITS]}…"


def _pictures(found: Found, question: Question | None) -> list[Picture]:
    """Drawn here where the kind can, else the PNG that the run left, else plain bars."""
    results = found.results
    drawn: list[Picture] = getattr(question, "page_pictures", lambda _: [])(results)
    if drawn:
        return drawn
    if found.picture is not None:
        data = base64.b64encode(found.picture.read_bytes()).decode()
        url = f"data:image/png;base64,{data}"
        return [Picture("As the run drew it.", data=url, file=found.picture)]
    return [bars_picture(results.records)] if results.records else []


def to_html(page: Page) -> str:
    """Render the page, which loads nothing from elsewhere; every text of a file is escaped."""
    from markupsafe import Markup

    def unbroken(value: object) -> object:
        """Keep a number and its unit on one line; what is HTML already, or a picture, stays."""
        if not isinstance(value, str) or isinstance(value, Markup) or value.startswith("data:"):
            return value
        return UNIT.sub("\u00a0\\1", shown(value, 10_000))

    # The style sheet is ours and holds no text of a result file.
    style = TEMPLATES.joinpath("report.css").read_text("utf-8")
    return _render("report.html.j2", unbroken, page=page, style=style) + "\n"


def to_markdown(page: Page, folder: Path) -> str:
    """Write the page as Markdown; pictures are links from `folder`, where it will lie."""
    from markupsafe import Markup

    made = _render(
        "report.md.j2",
        lambda value: text(value) if type(value) is str else value,
        page=page,
        link=lambda file: Markup(Path(os.path.relpath(file, folder)).as_posix()),
        rows=lambda table: Markup("\n".join(table.markdown(level=3))),
        command=lambda line: Markup(shown(line, 10_000)),
    )
    return made.rstrip() + "\n"


def text(value: str) -> str:
    """Escape what Markdown or HTML would take for more than text."""
    return in_markdown(" ".join(value.split()), 10_000)


def _render(template: str, finalize: Callable[[Any], object], **values: object) -> str:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(  # what is text of Markdown `finalize` escapes
        autoescape=template.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=finalize,
    )
    source = TEMPLATES.joinpath(template).read_text("utf-8")
    return environment.from_string(source).render(**values)


def main(options: Options, find_question: FindQuestion) -> None:
    """Write the page, and print each question with its answer."""
    chosen = options.files or ()
    inputs = [x for x in options.results.glob("*") if x.suffix in (".json", ".png")]
    check_outputs([options.out, options.markdown], chosen or inputs)
    skipped: dict[str, str] = {}
    if chosen:
        found = [open_file(path) for path in chosen]
    else:
        found, skipped = newest_of_each_kind(options.results)
    page = make_page(found, find_question, skipped)
    write_atomic(options.out, to_html(page).encode())
    written = [options.out]
    if options.markdown is not None:
        markdown = to_markdown(page, options.markdown.parent)
        write_atomic(options.markdown, markdown.encode())
        written.append(options.markdown)
    console = Console(highlight=False)
    for section in page.sections:
        doubt = " [red](a busy machine)[/]" if section.results.doubts() else ""
        console.print(f"• [bold]{escape(shown(section.title))}[/]{doubt}", end=" ")
        console.print(shown(section.answer, 10_000), markup=False)
    for name, reason in skipped.items():
        console.print(f"• left out {shown(name)}: {shown(reason)}", markup=False)
    console.print(f"written: {', '.join(map(shown, written))}", soft_wrap=True, markup=False)
