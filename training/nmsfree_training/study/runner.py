"""Carries out the runs of the study, several at a time."""

import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Protocol

from nmsfree_training.loop.run_config import stop_on_signals
from nmsfree_training.study.jobs import Job

POLL = 0.5  # seconds between two looks at the workers
FRAME = " ╭╮╰╯│─"  # around what a command line says of wrong options

Failure = tuple[Job, str]


class Display(Protocol):
    """Shows what goes on."""

    def started(self, job: Job) -> None: ...
    def finished(self, job: Job) -> None: ...
    def failed(self, job: Job, reason: str) -> None: ...
    def refresh(self) -> None: ...
    def stopping(self) -> None: ...


class StoppedError(Exception):
    """Somebody asked the study to stop; all trainings have saved.

    Attributes:
        exit_status: that answers the signal.
    """

    def __init__(self, exit_status: int) -> None:
        super().__init__("stopped by a signal")
        self.exit_status = exit_status


def run_study(jobs: Sequence[Job], at_once: int, display: Display) -> list[Failure]:
    """Carry out runs in their order, `at_once` at a time; a failed one does not stop the others.

    Returns:
        The failed ones, with the last line of each one's log.

    Raises:
        StoppedError: SIGINT or SIGTERM came; the trainings have saved and ended.
        KeyboardInterrupt: it came twice.
    """
    waiting, running = deque(jobs), dict[Job, subprocess.Popen[bytes]]()
    failures: list[Failure] = []
    with stop_on_signals() as stop:
        try:
            while not stop and (waiting or running):
                while waiting and len(running) < at_once and not stop:
                    job = waiting.popleft()
                    running[job] = start_worker(job)
                    display.started(job)
                for job in [job for job, worker in running.items() if worker.poll() is not None]:
                    failures += _end(job, running.pop(job).wait(), display)
                display.refresh()
                if running:
                    time.sleep(POLL)
        finally:  # after the last run there is nobody to tell
            _tell_to_stop(running.values())
        if stop:
            display.stopping()
            for worker in running.values():
                worker.wait()
            raise StoppedError(stop.exit_status)
    return failures


def start_worker(job: Job) -> "subprocess.Popen[bytes]":
    """Start the process of one run; its output is added to the run's log.

    In a session of its own, as Ctrl-C reaches all processes of a terminal's, and a training that
    is interrupted twice does not save. It stops once its standard input is closed.
    """
    job.log.parent.mkdir(parents=True, exist_ok=True)
    module = "nmsfree_training.study.worker"
    with job.log.open("ab") as log:
        log.write(f"$ {job.command}\n".encode())
        log.flush()
        return subprocess.Popen(
            [sys.executable, "-m", module, json.dumps(job.to_json())],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )


def _end(job: Job, status: int, display: Display) -> list[Failure]:
    if status == 0 and job.result_file.is_file():
        display.finished(job)
        return []
    reason = f"{last_line(job)} (exit status {status})"
    display.failed(job, reason)
    return [(job, reason)]


def last_line(job: Job) -> str:
    """Return the last line of a run's log that says something; frames do not."""
    lines = job.log.read_text(encoding="utf-8", errors="replace").splitlines()
    texts = (line.strip(FRAME) for line in reversed(lines))
    return next((text for text in texts if text), "nothing in its log")


def _tell_to_stop(workers: "Iterable[subprocess.Popen[bytes]]") -> None:
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.close()
