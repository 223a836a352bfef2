"""The tests that need a GPU, run by pytest in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from nmsfree.errors import GateError
from nmsfree_benchmarks.gpu_check.claims import CannotTry

FOLDERS = ("runtime/tests", "training/tests", "export/tests", "benchmarks/tests")
SECONDS = 840  # less than a claim has, so that nothing is left behind that uses the GPU
SHOWN = 3


def run_marked_tests(
    root: Path, record: Path, folders: Sequence[str] = FOLDERS, mark: str = "gpu"
) -> str:
    """Run them and say how many passed.

    Args:
        root: of the project.
        record: JUnit XML that pytest writes.

    Raises:
        GateError: a test failed, or they do not end.
        CannotTry: every one was skipped, or there is none.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-m", mark]
    command += [f"--junit-xml={record}", *(f for f in folders if (root / f).exists())]
    record.unlink(missing_ok=True)
    try:
        run = subprocess.run(
            command, cwd=root, capture_output=True, text=True, timeout=SECONDS, env=os.environ
        )
    except subprocess.TimeoutExpired:
        raise GateError(f"the tests did not end within {SECONDS} s") from None
    if not record.is_file():
        said = (run.stderr.strip() or run.stdout.strip() or "no output").splitlines()[-1]
        raise GateError(f"pytest did not get as far as the tests: {said}")
    return _judge(record)


def _judge(record: Path) -> str:
    cases = list(ElementTree.parse(record).iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None]
    failed += [case for case in cases if case.find("error") is not None]
    skipped = [case.find("skipped") for case in cases if case.find("skipped") is not None]
    passed = len(cases) - len(failed) - len(skipped)
    if failed:
        names = ", ".join(str(case.get("name")) for case in failed[:SHOWN])
        raise GateError(f"{len(failed)} of {len(cases)} failed: {names}")
    reasons = sorted({str(one.get("message")) for one in skipped if one is not None})
    why = f" ({'; '.join(reasons)})" if reasons else ""
    if not passed:
        raise CannotTry(f"none of {len(cases)} tests ran{why}")
    return f"{passed} passed" + (f", {len(skipped)} skipped{why}" if skipped else "")
