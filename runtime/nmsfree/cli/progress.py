"""The progress bar of every command; on stderr, so that stdout stays clean for results."""

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
