"""A short run of the fuzzing script; `make fuzz` is the long one."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("fuzz.py")
CANNOT = 77  # its exit status where it cannot be run safely


@pytest.mark.skipif(sys.platform != "linux", reason="limits and namespaces of Linux")
def test_malformed_inputs_are_answered_in_a_line(tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, "--inputs=80", "--seed=1", "--jobs=1", f"--keep={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == CANNOT:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 failed" in done.stdout
