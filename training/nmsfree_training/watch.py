"""Those who watch a run: one small protocol, a fan-out, and one that does nothing."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Protocol

from nmsfree_training.events import EpochEvent, StepEvent


class Watcher(Protocol):
    """Is told what a run does; never changes it. `close` is called once, also after an error."""

    def on_step(self, event: StepEvent) -> None:
        """Take note of an optimizer step."""

    def on_epoch(self, event: EpochEvent) -> None:
        """Take note of the end of an epoch, after its evaluation."""

    def on_evaluate(self, done: int, total: int) -> None:
        """Take note of images evaluated so far, of all to evaluate."""

    def message(self, text: str) -> None:
        """Pass on one line for the user: a resume, a fallback, a warning."""

    def close(self) -> None:
        """Release the screen or the file; further calls of `close` do nothing."""


class Silent:
    """Watches nothing: the other processes of a distributed run, and tests."""

    def on_step(self, event: StepEvent) -> None:
        """Do nothing."""

    def on_epoch(self, event: EpochEvent) -> None:
        """Do nothing."""

    def on_evaluate(self, done: int, total: int) -> None:
        """Do nothing."""

    def message(self, text: str) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class Watchers:
    """Tells several watchers, in their order."""

    def __init__(self, watchers: Sequence[Watcher]) -> None:
        self._watchers = tuple(watchers)

    def on_step(self, event: StepEvent) -> None:
        """Tell all."""
        for watcher in self._watchers:
            watcher.on_step(event)

    def on_epoch(self, event: EpochEvent) -> None:
        """Tell all."""
        for watcher in self._watchers:
            watcher.on_epoch(event)

    def on_evaluate(self, done: int, total: int) -> None:
        """Tell all."""
        for watcher in self._watchers:
            watcher.on_evaluate(done, total)

    def message(self, text: str) -> None:
        """Tell all."""
        for watcher in self._watchers:
            watcher.message(text)

    def close(self) -> None:
        """Close all, the last first, each even if another one's `close` fails."""
        with ExitStack() as stack:
            for watcher in self._watchers:
                stack.callback(watcher.close)
