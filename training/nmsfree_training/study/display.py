"""A study on the console: bars of the running jobs and of all; elsewhere plain lines."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

from nmsfree.decode import read_bytes
from nmsfree.errors import InputError
from nmsfree.text import shown
from nmsfree_training.monitor.callbacks import clock_text, number_text
from nmsfree_training.monitor.curves import parse_record
from nmsfree_training.study.jobs import Job
from nmsfree_training.study.results import deployed, read_result

ALMOST = 0.98  # of an epoch: what is only guessed never completes one


@dataclass(frozen=True)
class Progress:
    """State of a run.

    Attributes:
        epochs: whole ones that are done.
        within: of the present epoch, guessed from the time the others took, 0–1.
        images_per_second: of the last epoch; None before its end.
        epoch_seconds: that an epoch takes in the mean; None before the first one's end.
    """

    epochs: int
    within: float = 0.0
    images_per_second: float | None = None
    epoch_seconds: float | None = None

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
    guess = min(ALMOST, max(0.0, age / seconds)) if seconds > 0 else 0.0
    done = int(records[-1]["epoch"])
    return Progress(
        done,
        guess if done < job.epochs else 0.0,
        records[-1].get("images_per_second"),
        seconds or None,
    )


REFRESH = 2  # drawings of the bars a second


class StudyDisplay:
    """Shows a study while it runs; use it in `with`.

    Args:
        console: where to, usually on stderr.
        jobs: all runs that were asked for.
        done: how many of them were finished before.
        at_once: how many run at a time.
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
        self._pace = _Pace()
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
        self._total = self._bars.add_task(
            "[bold]study", total=max(1, len(jobs)) * max(1, self._epochs), **_fields()
        )

    def __enter__(self) -> "StudyDisplay":
        self.refresh()
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def started(self, job: Job) -> None:
        """Add a bar."""
        self._running[job] = self._bars.add_task(job.name, total=job.epochs, **_fields())
        if self._bars.disable:
            self._say(f"{job.name}: started")

    def finished(self, job: Job) -> None:
        """Take its bar away; one line stays: what came out."""
        self._drop(job)
        self._done += 1
        self._say(f"{job.name}: {outcome(job)} ({self._done} of {self._all})")

    def failed(self, job: Job, reason: str) -> None:
        """Take its bar away; one line stays: why."""
        self._drop(job)
        self._failed += 1
        self._say(f"{job.name}: failed: {reason}")

    def refresh(self) -> None:
        """Move the bars on."""
        if self._bars.disable:
            return
        states = {job: read_progress(job) for job in self._running}
        for job, state in states.items():
            self._bars.update(
                self._running[job], completed=state.epochs + state.within, **_shown(job, state)
            )
        over = (self._done + self._failed) * self._epochs
        now = sum(state.epochs + state.within for state in states.values())
        left = self._pace.remaining(states, self._all * self._epochs - over - now, self._at_once)
        count = f"{self._done}/{self._all} runs" + f", {self._failed} failed" * bool(self._failed)
        fields = _fields(count, left="" if left is None else f"ETA {clock_text(left)}")
        self._bars.update(self._total, completed=over + now, **fields)

    def stopping(self) -> None:
        """Say that the trainings are saving."""
        self._say("stopping: the trainings save first; Ctrl-C again does not wait for them")

    def _drop(self, job: Job) -> None:
        self._bars.remove_task(self._running.pop(job))

    def _say(self, text: str) -> None:
        clock = time.strftime("%H:%M")
        self._console.print(
            f"{clock}  {shown(text, 2000)}", soft_wrap=True, markup=False, highlight=False
        )


class _Pace:
    """Remembers how long an epoch takes, also while no run has finished one."""

    def __init__(self) -> None:
        self._seconds: float | None = None

    def remaining(self, states: dict[Job, Progress], epochs: float, at_once: int) -> float | None:
        """Seconds for so many epochs, `at_once` at a time; None = unknown yet."""
        known = [s.epoch_seconds for s in states.values() if s.epoch_seconds is not None]
        if known:
            self._seconds = sum(known) / len(known)
        return None if self._seconds is None else epochs * self._seconds / at_once


def outcome(job: Job) -> str:
    """Return what a finished run reached: "val AP 77.1, crowd AP 57.3, 20.3 min"."""
    result = read_result(job.result_file)
    scores = [f"{split} AP {100 * deployed(result, split)['AP']:.1f}" for split in result["splits"]]
    return ", ".join([*scores, f"{result['minutes']:.1f} min"])


def _shown(job: Job, state: Progress) -> dict[str, Any]:
    if state.epochs >= job.epochs:
        return _fields("measuring")
    left, speed = state.remaining(job.epochs), state.images_per_second
    return _fields(
        f"epoch {state.epochs + 1}/{job.epochs}",
        "" if speed is None else f"{number_text(speed)} img/s",
        "" if left is None else f"ETA {clock_text(left)}",
    )


def _fields(count: str = "", speed: str = "", left: str = "") -> dict[str, Any]:
    return {"count": count, "speed": speed, "left": left}
