"""How every command shows its progress; on stderr, so that stdout stays clean for results."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from nmsfree.text import shown

EVERY = 10  # seconds between lines where there is no terminal


class _Bar(Progress):
    """Nothing is drawn, not even an empty line, until there is something to count."""

    def start(self) -> None:
        if self.tasks:
            super().start()

    def stop(self) -> None:
        if self.tasks:
            super().stop()

    def add_task(self, description: str, *args: Any, **fields: Any) -> TaskID:
        task = super().add_task(description, *args, **fields)
        self.start()
        return task


def progress_bar() -> Progress:
    """Return a bar with description, count, elapsed and remaining time; use it in `with`."""
    return _Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


@contextmanager
def told_steps(what: str, console: Console) -> Iterator[Callable[[str], None]]:
    """Give what tells the step that is under way; without a terminal, a line every ten seconds."""
    last = time.monotonic()

    def tell(step: str) -> None:
        nonlocal last
        status.update(f"{shown(step)} …")
        if not console.is_terminal and time.monotonic() - last > EVERY:
            last = time.monotonic()
            console.print(f"{shown(step)} …", highlight=False, markup=False)

    with console.status(what) as status:
        yield tell
