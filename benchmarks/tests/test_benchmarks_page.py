"""The report: every kind is rendered, nothing is loaded, all is escaped; seen in a browser."""

import base64
import io
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from benchmarks_sample import record_of, results_of, subject_of, times_of
from results import load
from rich.console import Console
from typer.testing import CliRunner

from nmsfree.errors import InputError
from nmsfree_benchmarks.cli import app, find_question
from nmsfree_benchmarks.harness.records import FORMAT_VERSION, Ratio, Results
from nmsfree_benchmarks.harness.table import Table
from nmsfree_benchmarks.report import page as report_page
from nmsfree_benchmarks.report.generic import listed_table, ratios_table, rows_table, said_of_ratios
from nmsfree_benchmarks.report.page import ORDER, Found, Page, open_file, text, to_html, to_markdown


def open_files(paths: list[Path]) -> list[Found]:
    return [open_file(path) for path in paths]


def make_page(found: list[Found], skipped: dict[str, str] | None = None) -> Page:
    return report_page.make_page(found, find_question, skipped)


def summary_of(results: Results) -> tuple[list[str], list[Table]]:
    return report_page.summary_of(results, find_question(results.kind))


OLD = Path(__file__).parent / "format_1.json"
EVIL = "</td><script>alert(1)</script>|`[x](http://evil.example/)"
CHROMIUM = shutil.which("chromium")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--enable-logging=stderr", "--v=0"),
)


def table() -> Results:
    """A table of one model with NMS and one without."""
    shares = {"preprocess_share": 0.1, "network_share": 0.7, "postprocess_share": 0.2}
    nms = {"iou": 0.6, "class_aware": True, "candidates_per_level": 1000}
    with_nms = subject_of("fcos_rt_nano", head="o2m", nms=nms, ap=0.79)
    slow = record_of("rt", 5, subject=with_nms, figures=shares, parameters={"call": "detector"})
    free = record_of("e2e", 4, figures=shares, parameters={"call": "detector"})
    ratio = Ratio.between(slow, free, "with NMS by without")
    return results_of(kind="table", records=(slow, free), ratios=(ratio,))


def write(folder: Path, *runs: Results) -> list[Path]:
    paths = [folder / f"{run.stamp}-{run.kind}.json" for run in runs]
    for path, results in zip(paths, runs, strict=True):
        results.write(path)
    return paths


class Loads(HTMLParser):
    """Collects what a browser would fetch, and checks that tags are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)
        for name, value in attrs:
            if name == "src" or (name == "href" and tag != "a"):
                self.loads.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(html: str) -> Loads:
    found = Loads()
    found.feed(html)
    assert not found.open
    return found


@pytest.mark.parametrize("kind", ORDER)
def test_every_kind_is_rendered(kind: str, tmp_path: Path) -> None:
    results = replace(load(kind), quick=True)
    page = make_page(open_files(write(tmp_path, results)))
    html, markdown = to_html(page).replace("\u00a0", " "), to_markdown(page, tmp_path)
    found = parsed(html)
    assert {"table", "svg", "dl", "h2"} <= set(found.tags)
    assert all(load.startswith("data:") for load in found.loads)
    assert "<script" not in html
    for word in (find_question(kind).SHORT, results.command, "bootstrap", "p99", "NMS-free"):
        assert word in html
        assert word in markdown
    for record in results.records:
        assert record.name in html
    assert "A quick run" in html and "A quick run" in markdown


def test_every_kind_has_its_question() -> None:
    assert [find_question(kind).KIND for kind in ORDER] == list(ORDER)
    assert find_question("other") is find_question("compare") is None


def test_the_page_says_nothing_of_this_machine_and_is_the_same_again(tmp_path: Path) -> None:
    paths = write(tmp_path, table(), load("roofline"))
    one, other = (to_html(make_page(open_files(paths))) for _ in range(2))
    assert one == other
    assert str(tmp_path) not in one
    assert str(tmp_path) not in to_markdown(make_page(open_files(paths)), tmp_path)


def evil() -> Results:
    record = record_of(EVIL, 5, parameters={"what": EVIL}, subject=subject_of(EVIL))
    other = record_of("other", 5, parameters={"what": "else"})
    return results_of(
        kind="jitter",
        records=(record, other),
        command=EVIL,
        ratios=(Ratio.between(record, other, EVIL),),
        facts={EVIL: EVIL},
        settings={"burst": 1, EVIL: [EVIL]},
        skipped={EVIL: EVIL},
        environment={**results_of().environment, "processor": EVIL},
    )


def test_what_is_in_a_file_is_text_and_never_markup(tmp_path: Path) -> None:
    page = make_page(open_files(write(tmp_path, evil())), {EVIL: EVIL})
    html = to_html(page)
    assert "<script" not in html
    assert "script" not in parsed(html).tags
    assert "evil.example" not in "".join(parsed(html).loads)
    lines = to_markdown(page, tmp_path).splitlines()
    outside = [line for line in lines if line != f"    {EVIL}"]  # the command is code
    assert not [line for line in outside if "<" in line.replace("\\<", "").replace("](<", "")]
    tables = "\n".join(outside).split("\n\n")
    for rows in (part.splitlines() for part in tables if part.startswith("| ")):
        assert len({row.replace("\\|", "").count("|") for row in rows}) == 1
    assert text("a|b\n<c> `d` *e*") == "a\\|b \\<c\\> \\`d\\` \\*e\\*"


def test_a_noisy_run_says_so_at_the_top(tmp_path: Path) -> None:
    idle, noisy = table(), replace(load("roofline"), other_load=1.5)
    page = make_page(open_files(write(tmp_path, idle, noisy)))
    html = to_html(page)
    banner = html.index('role="alert"')
    assert banner < html.index("<section")
    assert "How far from the limit" in html[banner : banner + 400]
    assert "other work kept 1.5 cores busy" in html
    assert "**A busy machine:** How far" in to_markdown(page, tmp_path)
    calm = to_html(make_page(open_files(write(tmp_path, idle))))
    assert "busy machine" not in calm


def test_the_table_answers_in_one_sentence() -> None:
    said, tables = summary_of(table())
    assert said[0].startswith("fcos_e2e_nano without NMS takes 3.99 ms, fcos_rt_nano with")
    assert "1.25 × (1.2" in said[0]
    assert said[0].endswith("AP 77.0 without, 79.0 with NMS.")
    assert [table.title for table in tables] == [
        "256 × 256, 10 classes, batch 1, 40 timed calls; ms, MB; pre/net/post and limit in %"
    ]
    assert summary_of(replace(table(), other_load=2.0))[0] == said


def test_figures_that_today_are_missing_leave_the_generic_sentences() -> None:
    said, tables = summary_of(results_of(kind="roofline"))
    assert said == said_of_ratios(results_of())
    assert not tables
    assert said[0].startswith("with NMS by without: nms takes 2.0")


def test_generic_tables_show_where_rows_differ() -> None:
    one = record_of("a", 5, subject=subject_of(precision="int8"), figures={"mb": 1.5, "deep": {}})
    other = record_of("b", 5, times=times_of(5, spread=0.5))
    sheet = rows_table(results_of(records=(one, other), ratios=()))
    assert sheet.header[:2] == ("row", "precision")
    assert "mb" in sheet.header and "deep" not in sheet.header
    assert [row[0] for row in sheet.rows] == ["a", "b !"]
    assert all(len(row) == len(sheet.header) for row in sheet.rows)
    share = {"value": 0.25, "low": 0.2, "high": 0.3}
    found = {"a_b": {"c": [1, 2], "d": [{"e": None}]}, "f": True, "share": share}
    assert listed_table("Facts", found).rows == (
        ("a b · c", "1, 2"),
        ("a b · d · 1 · e", "–"),
        ("f", "yes"),
        ("share", "0.25 (95 %: 0.2 – 0.3)"),
    )
    assert ratios_table(results_of()).rows[0][-1] == "yes"
    many = said_of_ratios(results_of(ratios=results_of().ratios * 3))
    assert many[0].endswith("over 3 pairs; surely above 1 in 3, surely below in 0, undecided in 0.")


def test_the_newest_of_each_kind_is_taken(tmp_path: Path) -> None:
    older, newer = (replace(results_of(), stamp=f"2026010{day}T000000Z") for day in (2, 3))
    write(tmp_path, older, newer, table())
    shutil.copy(OLD, tmp_path)
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    found, skipped = report_page.newest_of_each_kind(tmp_path)
    assert [(f.results.kind, f.results.stamp) for f in found] == [
        ("table", table().stamp),
        ("nms", newer.stamp),
    ]
    assert skipped[OLD.name].startswith("has format 1.0, this version reads 2.x")
    assert skipped["broken.json"].startswith("is not readable JSON (")
    html = to_html(make_page(found, skipped))
    assert "Left out" in html and OLD.name in html


def test_figures_that_no_run_writes_are_refused_with_the_file(tmp_path: Path) -> None:
    first = table().records[0]
    odd = replace(
        table(), records=(replace(first, figures={"preprocess_share": ["x"]}),), ratios=()
    )
    (path,) = write(tmp_path, odd)
    with pytest.raises(InputError, match=re.escape(f"{path}: figures that no table run writes")):
        make_page(open_files([path]))


def test_without_results_the_reason_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=rf"no result of format {FORMAT_VERSION} in it, run one first$"
    ):
        report_page.newest_of_each_kind(tmp_path)
    shutil.copy(OLD, tmp_path)
    with pytest.raises(
        InputError, match=r"run one first; format_1.json: has format 1\.0, this version reads"
    ):
        report_page.newest_of_each_kind(tmp_path)
    with pytest.raises(InputError, match=r"format 1\.0, this version reads 2\.x: update nmsfree"):
        open_files([OLD])


def test_the_picture_beside_a_result_is_taken_in(tmp_path: Path) -> None:
    (path,) = write(tmp_path, results_of())
    picture = path.with_suffix(".png")
    cv2.imwrite(str(picture), np.zeros((4, 4, 3), np.uint8))
    page = make_page(open_files([path]))
    html = to_html(page)
    assert base64.b64encode(picture.read_bytes()).decode() in html
    assert f"(<results/{picture.name}>)" not in to_markdown(page, tmp_path)
    assert f"(<{picture.name}>)" in to_markdown(page, tmp_path)
    assert f"(<../{picture.name}>)" in to_markdown(page, tmp_path / "deeper")


@pytest.mark.parametrize("name", ["a\x1b[31mb", "a\u202eb", "```\n# b"])
def test_no_name_leaves_its_place_in_a_page(name: str, tmp_path: Path) -> None:
    results = results_of(command=name, skipped={name: name})
    page = make_page(open_files(write(tmp_path, results)))
    markdown = to_markdown(page, tmp_path)
    for shown in (to_html(page), markdown):
        assert not {"\x1b", "\u202e"} & set(shown)
    assert not [line for line in markdown.splitlines() if line.startswith(("```", "# b"))]


def test_a_page_replaces_none_of_its_files(tmp_path: Path) -> None:
    (path,) = write(tmp_path, table())
    before = path.read_bytes()
    (tmp_path / "link.md").symlink_to(path)
    for options in ([f"--out={path}"], [f"--markdown={tmp_path / 'link.md'}"]):
        result = CliRunner().invoke(app, ["report", str(path), *options])
        assert "is an input of this command" in str(result.exception)
    assert path.read_bytes() == before


def test_the_command_writes_both_pages(tmp_path: Path) -> None:
    (path,) = write(tmp_path, table())
    html, markdown = tmp_path / "new" / "r.html", tmp_path / "r.md"
    options = ["report", str(path), f"--out={html}", f"--markdown={markdown}"]
    result = CliRunner().invoke(app, options, catch_exceptions=False)
    assert result.exit_code == 0
    assert "fcos_e2e_nano without NMS takes" in " ".join(result.output.split())
    assert html.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert markdown.read_text(encoding="utf-8").startswith("# Detectors without NMS, measured")
    folder = ["report", f"--results={tmp_path}", f"--out={html}"]
    assert CliRunner().invoke(app, folder, catch_exceptions=False).exit_code == 0


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    runs = [load(kind) for kind in ORDER if kind != "jitter"]
    paths = write(folder, *runs, replace(evil(), other_load=1.0))
    picture = folder / f"{load('nms').stamp}-nms.png"
    cv2.imwrite(str(picture), np.full((40, 80, 3), 200, np.uint8))
    path = folder / "report.html"
    path.write_text(to_html(make_page(open_files(paths))), encoding="utf-8")
    return path


def browse(page_file: Path, profile: Path, *more: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", *more, page_file.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)


needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="chromium is not installed: apt-get install chromium"
)


@needs_chromium
def test_a_browser_shows_it_without_a_complaint(page_file: Path, tmp_path: Path) -> None:
    seen = browse(page_file, tmp_path / "profile", "--dump-dom")
    dom = parsed(seen.stdout.strip())
    # Of every kind at least its table, ratios and facts; the browser keeps what the file says.
    assert dom.tags.count("table") == parsed(page_file.read_text("utf-8")).tags.count("table")
    assert dom.tags.count("table") > 3 * len(ORDER) - 3
    assert dom.tags.count("svg") >= 2
    assert all(load.startswith("data:") for load in dom.loads)
    assert "script" not in dom.tags
    complaints = [line for line in seen.stderr.splitlines() if "CONSOLE" in line]
    assert complaints == []


@needs_chromium
@pytest.mark.parametrize("width", [1200, 500])  # headless windows are at least 500 wide
def test_a_browser_draws_it(page_file: Path, tmp_path: Path, width: int) -> None:
    shot = tmp_path / "shot.png"
    size = f"--window-size={width},1600"
    browse(page_file, tmp_path / "profile", f"--screenshot={shot}", size)
    pixels: Any = cv2.imread(str(shot))
    assert pixels.shape[:2] == (1600, width)
    red = (pixels[..., 2] > 150) & (pixels[..., 1] < 80) & (pixels[..., 0] < 80)
    assert red[:600].sum() > 200  # the banner of the noisy run
    assert pixels.std() > 10


def test_names_in_tables_are_text_on_terminals_and_in_markdown() -> None:
    name = "[bold]a[/b]|\x1b[31m"
    sheet = Table("of [/] all", ("model", "ms"), ((name, "1.0"),))
    title, _, _, _, row, _ = sheet.markdown()
    assert title == r"## of \[/\] all"
    assert row == r"| \[bold\]a\[/b\]\|\\x1b\[31m | 1.0 |"
    console = Console(file=io.StringIO(), width=80)
    console.print(sheet.rich())
    assert isinstance(console.file, io.StringIO)
    assert r"[bold]a[/b]|\x1b[31m" in console.file.getvalue()
    assert "of [/] all" in console.file.getvalue()
