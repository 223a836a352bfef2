"""README, docs and reports say what the committed results say."""

import re

import pytest
import results
from results import PAGES, QUESTIONS, RESULTS, ROOT, written

from nmsfree_benchmarks.cli import MODULES

OTHERS = {"compare", "report", "gpu-check", "models"}  # what `nmsfree bench` asks is `table`
FILES = {path.relative_to(ROOT).as_posix(): (path, text) for path, text in written()}


@pytest.mark.parametrize("name", FILES)
def test_pages_and_reports_are_what_the_results_say(name: str) -> None:
    path, text = FILES[name]
    assert path.read_text(encoding="utf-8") == text, (
        "run `python benchmarks/tests/results.py`, which writes it"
    )


def test_every_question_has_one_result_and_every_link_leads_to_one() -> None:
    assert {path.stem for path in RESULTS.iterdir()} == set(QUESTIONS)
    assert set(QUESTIONS) == set(MODULES) - OTHERS | {"table"}
    for page in PAGES:
        for link in re.findall(r"\(([^)\s]*benchmarks/results[^)\s]*)\)", page.read_text("utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_a_question_that_fails_is_named_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(results, "QUESTIONS", {"table": "none.onnx", "nms": "nms none.onnx"})
    before = (RESULTS / "table.json").read_bytes()
    assert list(results.measure(["table", "nms"])) == ["table", "nms"]
    assert (RESULTS / "table.json").read_bytes() == before
    assert capfd.readouterr().err.count("error: ") == 2
