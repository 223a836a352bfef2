"""A few of the kills of `kill_runs.py`; the long run is started by hand."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(sys.platform == "win32", reason="no fork there")
def test_killed_runs_leave_nothing_cut_short_and_go_on() -> None:
    script = Path(__file__).with_name("kill_runs.py")
    words = [sys.executable, str(script), "--kills", "4", "--only", "detect", "--only", "digits"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 failures" in done.stdout.splitlines()[-1]
