"""README, docs and reports say what the committed results say."""

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import results
from benchmarks_sample import check_written, shown_in
from results import PAGES, QUESTIONS, RESULTS, ROOT, written

import nmsfree
from nmsfree_benchmarks.cli import MODULES, find_question
from nmsfree_benchmarks.report.page import ORDER

OTHERS = {"compare", "report", "gpu-check", "models"}  # what `nmsfree bench` asks is `table`


@cache
def texts() -> dict[Path, str]:
    return dict(written())


@pytest.mark.parametrize("path", [*PAGES, *RESULTS.glob("*.md")], ids=lambda path: path.name)
def test_pages_and_reports_are_what_the_results_say(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == texts()[path], (
        "run `python benchmarks/tests/results.py`, which writes it"
    )


@pytest.mark.parametrize("kind", ORDER)
def test_a_question_shows_its_committed_result(kind: str, tmp_path: Path) -> None:
    """In tables of 100 columns, a picture, and what the intervals tell: on a busy machine, too."""
    question, found = find_question(kind), results.load(kind)
    assert "…" not in shown_in(100, *(table.rich() for table in question.tables(found)))
    busy, idle = (replace(found, other_load=load) for load in (1.5, 0.0))
    assert list(question.conclusions(busy)) == list(question.conclusions(idle))
    assert question.facts(busy) == question.facts(idle) and busy.doubts() and not idle.contended
    check_written(question, found, tmp_path)


def test_every_question_has_one_result() -> None:
    assert {path.stem for path in RESULTS.iterdir()} == set(QUESTIONS)
    assert set(QUESTIONS) == set(MODULES) - OTHERS | {"table"}


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"], ids=lambda page: page.name
)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        name, _, anchor = link.partition("#")
        if name.startswith("https:") or name in (
            "commands.md",
            "messages.md",
        ):  # the site makes them
            continue
        target = page.parent / name if name else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


def anchors(page: Path) -> set[str]:
    """What a link may name in a page: its headings, as GitHub and MkDocs spell them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_readme_is_short_and_plain() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 120
    prose = re.sub(r"```.*?```|^\|.*?$|\]\([^)]*\)", "", text, flags=re.DOTALL | re.MULTILINE)
    sentences = re.split(r"(?<=[.!?:])\s|\n\n", prose)
    assert max(len(sentence.split()) for sentence in sentences) < 30
    assert max(len(part.strip().splitlines()) for part in prose.split("\n\n")) <= 5


def test_a_question_that_fails_is_named_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(results, "QUESTIONS", {"table": "none.onnx", "nms": "nms none.onnx"})
    before = (RESULTS / "table.json").read_bytes()
    assert list(results.measure(["table", "nms"])) == ["table", "nms"]
    assert (RESULTS / "table.json").read_bytes() == before
    assert capfd.readouterr().err.count("error: ") == 2


def test_reference_lists_all_that_is_public() -> None:
    listed = re.findall(
        r"^::: nmsfree\.(\w+)$", (ROOT / "docs/reference.md").read_text("utf-8"), re.M
    )
    assert sorted(listed) == sorted(nmsfree.__all__)
