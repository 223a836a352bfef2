"""A report for people who were not there: sections of words, tables and pictures."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from markupsafe import Markup

from nmsfree.errors import InputError
from nmsfree.text import shown
from nmsfree_benchmarks.common.sheets import Sheet
from nmsfree_benchmarks.page import svg as page_svg
from nmsfree_benchmarks.page.find import Found
from nmsfree_benchmarks.page.generic import (
    DIGITS,
    facts_sheet,
    ratios_sheet,
    rows_sheet,
    settings_sheet,
)
from nmsfree_benchmarks.page.kinds import KINDS, words_of
from nmsfree_benchmarks.page.table import by_size, detectors
from nmsfree_benchmarks.record.records import Record, Results
from nmsfree_benchmarks.record.verdict import judge
from nmsfree_benchmarks.roofline.records import models

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


@dataclass(frozen=True)
class Picture:
    """Attributes:
    svg: drawn from the results; or else `data`, a PNG as data URI, and `file`, where it is.
    legend: (class of the style sheet, what it stands for).
    """

    caption: str
    svg: Markup | None = None
    data: str = ""
    file: Path | None = None
    legend: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Section:
    """One result file.

    Attributes:
        answer: the first conclusion; said: the others.
        doubts: why the run may not be believed; empty = it may.
        sheets: what to read; details: what to look up.
        about: (what, value): device, versions, command, file.
    """

    kind: str
    title: str
    question: str
    answer: str
    said: tuple[str, ...]
    doubts: tuple[str, ...]
    quick: bool
    pictures: tuple[Picture, ...]
    sheets: tuple[Sheet, ...]
    details: tuple[Sheet, ...]
    about: tuple[tuple[str, str], ...]
    command: str
    skipped: Mapping[str, str]


@dataclass(frozen=True)
class Page:
    """Attributes:
    title: of the whole; made_of: the days of its runs.
    skipped: files that were left out → why.
    """

    title: str
    made_of: str
    sections: tuple[Section, ...]
    skipped: Mapping[str, str]
    glossary: Mapping[str, str]

    @property
    def doubtful(self) -> list[Section]:
        return [section for section in self.sections if section.doubts]


def make_page(files: Sequence[Found], skipped: Mapping[str, str] | None = None) -> Page:
    """Put result files into words and pictures; nothing in it depends on when that is done.

    Raises:
        InputError: figures of a file are none that its kind of benchmark writes.
    """
    days = sorted({_day(found.results.stamp) for found in files})
    made_of = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    kinds = [found.results.kind for found in files]
    sections = tuple(
        _section_of(found, dated=kinds.count(found.results.kind) > 1) for found in files
    )
    return Page("Detectors without NMS, measured", made_of, sections, skipped or {}, GLOSSARY)


def _day(stamp: str) -> str:
    return f"{datetime.strptime(stamp, '%Y%m%dT%H%M%SZ'):%Y-%m-%d}"


def _section_of(found: Found, *, dated: bool) -> Section:
    """The schema leaves figures and facts open; each kind takes from them what it wrote."""
    try:
        return _section(found, dated=dated)
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise InputError(
            f"{found.path}: figures that no {found.results.kind} run writes "
            f"({type(error).__name__}: {shown(error)}): measure again"
        ) from error


def _section(found: Found, dated: bool) -> Section:
    """One run; `dated` where the page has another of its kind."""
    results = found.results
    kind = KINDS.get(results.kind)
    said, sheets = words_of(results)
    answer = said[0] if said else f"{len(results.records)} rows were measured."
    title = results.kind if kind is None else kind.title
    details = (ratios_sheet, facts_sheet, settings_sheet)
    rows = rows_sheet(results)
    return Section(
        kind=results.kind,
        title=title + (f", {results.stamp}" if dated else ""),
        question="" if kind is None else kind.question,
        answer=answer,
        said=tuple(said[1:]),
        doubts=judge(results).reasons,
        quick=results.quick,
        pictures=tuple(_pictures(found)),
        sheets=tuple(sheets) or (rows,),
        details=tuple(
            sheet
            for sheet in (*([rows] if sheets else []), *(make(results) for make in details))
            if sheet.rows
        ),
        about=tuple(_about(found)),
        command=results.command,
        skipped=results.skipped,
    )


def _about(found: Found) -> list[tuple[str, str]]:
    e = found.results.environment
    versions = ", ".join(f"{name} {number}" for name, number in e["versions"].items())
    load = found.results.other_load
    gpu = e.get("gpu")
    engines = dict.fromkeys(r.subject.provider for r in found.results.records if r.subject)
    return [
        (
            "device",
            f"{e['device']}: {e['processor']}, {e['cores']} cores; threads of an engine: "
            f"{e['threads']}",
        ),
        *([("GPU", str(gpu))] if gpu else []),
        ("system", f"{e['system']}, Python {e['python']}"),
        *([("engines", "; ".join(engines))] if engines else []),
        ("versions", versions),
        ("other load", "unknown" if load is None else f"{load:.1f} cores, kept busy by others"),
        ("run", f"{found.results.stamp}, {found.results.seconds:.0f} s"),
        ("raw times", f"{found.path.name}, SHA-256 {found.sha256[:DIGITS]}…"),
    ]


def _pictures(found: Found) -> list[Picture]:
    """Drawn here where the kind is known, else the PNG that the run left, else plain bars."""
    results = found.results
    if results.kind == "roofline" and models(results.records):
        return [_roofline(results)]
    if results.kind == "table" and detectors(results):
        return [_bars(records, size) for size, records in by_size(results).items()]
    if found.picture is not None:
        data = base64.b64encode(found.picture.read_bytes()).decode()
        caption = "As the run drew it."
        return [Picture(caption, data=f"data:image/png;base64,{data}", file=found.picture)]
    return [_bars(results.records)] if results.records else []


def _bars(records: Sequence[Record], size: tuple[int, int] | None = None) -> Picture:
    caption = "Median time of each row; the line reaches to the p99, of 100 calls or more."
    if size is not None:
        caption = f"Input of {size[0]} × {size[1]} pixels. {caption}"
    if len(records) > page_svg.MOST_BARS:
        caption += f" The first {page_svg.MOST_BARS} of {len(records)} rows."
    legend: tuple[tuple[str, str], ...] = ()
    if any("network_share" in record.figures for record in records):
        legend = (
            ("preprocess", "preprocessing"),
            ("network", "network"),
            ("postprocess", "post-processing, NMS"),
        )
    return Picture(caption, page_svg.bars(records), legend=legend)


def _roofline(results: Results) -> Picture:
    found = models(results.records)
    legend = tuple(
        (f"s{i % page_svg.SERIES}", record.name.removesuffix(" bare"))
        for i, record in enumerate(found)
    )
    caption = (
        "Large dots are models, small ones their heaviest layers. The flat lines are matrix "
        "products (GFLOP/s), the slanting ones memory copies: the limits of this device."
    )
    return Picture(caption, page_svg.roofline(results), legend=legend)
