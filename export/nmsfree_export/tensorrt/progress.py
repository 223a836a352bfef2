"""What the builder is doing: a bar for each phase, or lines where there is no terminal."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID

from nmsfree.cli.progress import progress_bar
from nmsfree.text import shown

SHOWN_DEPTH = 2  # of nested phases; deeper ones last milliseconds


class Phases:
    """Is told of the builder's phases, by whatever thread; this one shows nothing."""

    def start(self, name: str, depth: int, steps: int) -> None:
        """A phase begins; depth 0 is the whole build."""

    def step(self, name: str, done: int) -> None:
        """So many of its steps are done."""

    def finish(self, name: str, depth: int) -> None:
        """It ends."""


class Lines(Phases):
    """One line for each finished phase, with its seconds."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._begun: dict[str, float] = {}

    def start(self, name: str, depth: int, steps: int) -> None:
        self._begun[name] = time.perf_counter()

    def finish(self, name: str, depth: int) -> None:
        seconds = time.perf_counter() - self._begun.pop(name, time.perf_counter())
        if depth < SHOWN_DEPTH:
            self._say(f"{seconds:6.1f} s  {name}")


class Bars(Phases):
    """A bar for each phase that is going on, indented by its depth."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def start(self, name: str, depth: int, steps: int) -> None:
        if depth <= SHOWN_DEPTH:
            self._tasks[name] = self._progress.add_task("  " * depth + name, total=steps)

    def step(self, name: str, done: int) -> None:
        task = self._tasks.get(name)
        if task is not None:
            self._progress.update(task, completed=done)

    def finish(self, name: str, depth: int) -> None:
        task = self._tasks.pop(name, None)
        if task is not None:
            self._progress.remove_task(task)


@contextmanager
def show_phases(console: Console) -> Iterator[Phases]:
    """Show the phases of a build on this console, bars on a terminal and lines elsewhere."""
    if not console.is_terminal:
        yield Lines(lambda line: console.print(shown(line), highlight=False, markup=False))
        return
    with progress_bar() as progress:
        yield Bars(progress)


@contextmanager
def stoppable() -> Iterator[list[int]]:
    """Let Ctrl-C and SIGTERM stop a build at its next step, then do what they always do.

    Gives the signals that came. An exception must not fly through the builder's own code, where the
    monitor is called.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came  # signals reach the main thread only
        return
    before = {
        number: signal.signal(number, lambda number, _: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[-1])


def make_monitor(module: Any, phases: Phases, stop: list[int]) -> Any:
    """Return a progress monitor of a vendor module; it must outlive the builder's configuration."""

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]  # known at run time only
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)
            self._depths: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            depth = self._depths.get(parent_phase, 0) + 1 if parent_phase else 0
            self._depths[phase_name] = depth
            phases.start(phase_name, depth, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            phases.step(phase_name, step + 1)
            return not stop

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name, self._depths.pop(phase_name, 0))

    return Monitor()
