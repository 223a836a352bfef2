"""Questions to a process of its own: a vendor's library may crash or hang."""

import json
import signal
import subprocess
import sys
from typing import Any

LIMIT_SECONDS = 120


def module_command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of ours, without what lies in the current folder."""
    return [sys.executable, "-P", "-m", module, *arguments]


def ask_child(
    command: list[str], limit: float = LIMIT_SECONDS
) -> tuple[dict[str, Any] | None, str]:
    """Run a command whose last line of output is a JSON object.

    Args:
        limit: seconds until it is ended.

    Returns:
        The object and "", or None and what went wrong in words.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        return None, f"gave no answer within {limit:g} seconds"
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        answer = None
    if done.returncode == 0 and isinstance(answer, dict):
        return answer, ""
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return None, f"crashed ({_ending(done.returncode)})" + (f": {said[-1]}" if said else "")


def _ending(status: int) -> str:
    """How a process ended; a negative status is the signal that ended it."""
    if -status in set(signal.Signals):
        return signal.Signals(-status).name
    return f"status {status}"
