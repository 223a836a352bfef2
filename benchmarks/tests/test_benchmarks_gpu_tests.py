"""The claim that the tests for GPUs pass: it must not hold when none of them ran."""

from pathlib import Path

import pytest

from nmsfree.errors import GateError
from nmsfree_benchmarks.gpu_check.claims import CannotTry
from nmsfree_benchmarks.gpu_check.marked_tests import run_marked_tests

HEAD = "import pytest\n"
PASSES = "@pytest.mark.gpu\ndef test_fine(): assert True\n"
SKIPS = "@pytest.mark.gpu\ndef test_left_out(): pytest.skip('no builder for SM 9.0')\n"
FAILS = "@pytest.mark.gpu\ndef test_broken(): assert 1 == 2\n"
BREAKS = "@pytest.fixture\ndef gone(): 1 / 0\n@pytest.mark.gpu\ndef test_gone(gone): pass\n"
OTHER = "def test_not_for_gpus(): assert 1 == 2\n"


def outcome(folder: Path, *tests: str) -> str:
    (folder / "t").mkdir()
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = gpu: x\n")
    (folder / "t" / "test_it.py").write_text(HEAD + OTHER + "".join(tests))
    return run_marked_tests(folder, folder / "record.xml", ("t", "absent"))


def test_what_passed_is_counted(tmp_path: Path) -> None:
    assert outcome(tmp_path, PASSES) == "1 passed"


def test_what_was_skipped_is_told(tmp_path: Path) -> None:
    assert outcome(tmp_path, PASSES, SKIPS) == "1 passed, 1 skipped (no builder for SM 9.0)"


def test_all_skipped_is_no_success(tmp_path: Path) -> None:
    with pytest.raises(CannotTry, match=r"^none of 1 tests ran \(no builder for SM 9.0\)$"):
        outcome(tmp_path, SKIPS)


def test_no_test_is_no_success(tmp_path: Path) -> None:
    with pytest.raises(CannotTry, match=r"^none of 0 tests ran$"):
        outcome(tmp_path)


def test_failures_and_errors_are_named(tmp_path: Path) -> None:
    with pytest.raises(GateError, match=r"^2 of 3 failed: test_broken, test_gone$"):
        outcome(tmp_path, PASSES, FAILS, BREAKS)


def test_tests_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(GateError, match=r"1 of 1 failed: t.test_it|did not get as far"):
        outcome(tmp_path, "this is not Python\n")
