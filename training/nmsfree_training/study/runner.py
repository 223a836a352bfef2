"""Carries out the runs of the study, several at a time, and shows how far they are."""

import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

from nmsfree.errors import InputError
from nmsfree.parsing import read_bytes
from nmsfree.text import shown
from nmsfree_training.loop.run_config import stop_on_signals
from nmsfree_training.monitor.callbacks import clock_text, number_text
from nmsfree_training.monitor.curves import parse_record
from nmsfree_training.study.job import Job
from nmsfree_training.study.results import read_result

# What is shown: bars of the running jobs and of all; elsewhere plain lines.

ALMOST = 0.98  # of an epoch: what is only guessed never completes one
REFRESH = 2  # drawings of the bars a second


@dataclass(frozen=True)
class Progress:
    """State of a run; None before the end of its first epoch."""

    epochs: int  # whole ones that are done
    within: float = 0.0  # of the present epoch, guessed from the time the others took, 0–1
    images_per_second: float | None = None  # of the last epoch
    epoch_seconds: float | None = None  # that an epoch takes in the mean

    def remaining(self, epochs: int) -> float | None:
        """Seconds left of a run of so many epochs; None = unknown yet."""
        if self.epoch_seconds is None:
            return None
        return max(0.0, (epochs - self.epochs - self.within) * self.epoch_seconds)


def read_progress(job: Job, clock: Callable[[], float] = time.time) -> Progress:
    """Return how far a run is; one that has not written anything yet is at its start."""
    path = job.folder / "metrics.jsonl"
    try:
        lines = read_bytes(path).splitlines()
        age = clock() - path.stat().st_mtime
    except (OSError, InputError):
        return Progress(0)
    records = [record for record in map(parse_record, lines) if record is not None]
    if not records:
        return Progress(0)
    seconds = sum(record.get("seconds", 0.0) for record in records) / len(records)
    done = int(records[-1]["epoch"])
    within = 0.0
    if done < job.epochs and seconds > 0:
        within = min(ALMOST, max(0.0, age / seconds))
    return Progress(done, within, records[-1].get("images_per_second"), seconds or None)


class StudyDisplay:
    """Shows a study while it runs; use it in `with`.

    Args:
        jobs: all runs that were asked for, `done` of them finished before.
        live: draw bars; None: if the console is a terminal.
    """

    def __init__(
        self,
        console: Console,
        jobs: Sequence[Job],
        done: int,
        at_once: int,
        live: bool | None = None,
    ) -> None:
        screen = console.is_interactive and console.file.isatty()
        self._console, self._at_once = console, at_once
        self._all, self._done, self._failed = len(jobs), done, 0
        self._epochs = jobs[0].epochs if jobs else 0  # the same of all
        self._running: dict[Job, TaskID] = {}
        self._epoch_seconds: float | None = None  # also known while no run has finished one
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[speed]}", justify="right"),
            TextColumn("{task.fields[left]}", justify="right"),
            console=console,
            refresh_per_second=REFRESH,
            transient=True,
            expand=True,
            disable=not (screen if live is None else live),
        )
        self._total = self._add("[bold]study", max(1, len(jobs)) * max(1, self._epochs))

    def _add(self, name: str, epochs: int) -> TaskID:
        return self._bars.add_task(name, total=epochs, count="", speed="", left="")

    def __enter__(self) -> "StudyDisplay":
        self.refresh()
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def started(self, job: Job) -> None:
        """Add a bar."""
        self._running[job] = self._add(job.name, job.epochs)
        if self._bars.disable:
            self.log(f"{job.name}: started")

    def finished(self, job: Job) -> None:
        """Take its bar away; one line stays: what came out."""
        self._bars.remove_task(self._running.pop(job))
        self._done += 1
        result = read_result(job.result_file)
        scores = [f"{split} AP {100 * s.deployed.AP:.1f}" for split, s in result.splits.items()]
        text = ", ".join([*scores, f"{result.minutes:.1f} min"])
        self.log(f"{job.name}: {text} ({self._done} of {self._all})")

    def failed(self, job: Job, reason: str) -> None:
        """Take its bar away; one line stays: why."""
        self._bars.remove_task(self._running.pop(job))
        self._failed += 1
        self.log(f"{job.name}: failed: {reason}")

    def refresh(self) -> None:
        """Move the bars on."""
        if self._bars.disable:
            return
        states = {job: read_progress(job) for job in self._running}
        for job, state in states.items():
            speed, measuring = state.images_per_second, state.epochs >= job.epochs
            self._bars.update(
                self._running[job],
                completed=state.epochs + state.within,
                count="measuring" if measuring else f"epoch {state.epochs + 1}/{job.epochs}",
                speed="" if measuring or speed is None else f"{number_text(speed)} img/s",
                left="" if measuring else _eta(state.remaining(job.epochs)),
            )
        known = [s.epoch_seconds for s in states.values() if s.epoch_seconds is not None]
        if known:
            self._epoch_seconds = sum(known) / len(known)
        over = sum(state.epochs + state.within for state in states.values())
        over += (self._done + self._failed) * self._epochs
        left = None
        if self._epoch_seconds is not None:
            left = (self._all * self._epochs - over) * self._epoch_seconds / self._at_once
        count = f"{self._done}/{self._all} runs" + f", {self._failed} failed" * bool(self._failed)
        self._bars.update(self._total, completed=over, count=count, left=_eta(left))

    def log(self, text: str) -> None:
        """Print a line above the bars."""
        line = f"{time.strftime('%H:%M')}  {shown(text, 2000)}"
        self._console.print(line, soft_wrap=True, markup=False, highlight=False)


def _eta(seconds: float | None) -> str:
    return "" if seconds is None else f"ETA {clock_text(seconds)}"


# The runs.

POLL = 0.5  # seconds between two looks at the workers
FRAME = " ╭╮╰╯│─"  # around what a command line says of wrong options

Failure = tuple[Job, str]


class StoppedError(Exception):
    """Somebody asked the study to stop; all trainings have saved."""

    def __init__(self, exit_status: int) -> None:
        super().__init__("stopped by a signal")
        self.exit_status = exit_status  # that answers the signal


def run_study(jobs: Sequence[Job], at_once: int, display: StudyDisplay) -> list[Failure]:
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
                    status = running.pop(job).wait()
                    if status == 0 and job.result_file.is_file():
                        display.finished(job)
                        continue
                    failures.append((job, f"{last_line(job)} (exit status {status})"))
                    display.failed(*failures[-1])
                display.refresh()
                if running:
                    time.sleep(POLL)
        finally:  # after the last run there is nobody to tell
            for worker in running.values():
                assert worker.stdin is not None
                worker.stdin.close()
        if stop:
            display.log("stopping: the trainings save first; Ctrl-C again does not wait for them")
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
    module = "nmsfree_training.study.job"
    with job.log.open("ab") as log:
        log.write(f"$ {job.command}\n".encode())
        log.flush()
        return subprocess.Popen(
            [sys.executable, "-m", module, job.to_text()],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )


def last_line(job: Job) -> str:
    """Return the last line of a run's log that says something; frames do not."""
    lines = job.log.read_text(encoding="utf-8", errors="replace").splitlines()
    texts = (line.strip(FRAME).removeprefix("Error: ") for line in reversed(lines))
    return next((text for text in texts if text), "nothing in its log")
