"""Those who watch a run: one small protocol, a fan-out, and one that does nothing."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

# In a line of `metrics.jsonl`, what is neither a training loss nor a validation metric.
BOOKKEEPING = frozenset(
    {"epoch", "lr", "seconds", "images_per_second", "wait_share", "skipped", "left_out"}
)


@dataclass(frozen=True)
class StepEvent:
    """One optimizer step is done.

    Attributes:
        epoch: from 0.
        epochs: of the whole run.
        step: within the epoch, 1 … `steps`.
        steps: of one epoch.
        iteration: optimizer steps done in the whole run, those before a resume included.
        losses: weighted means over the images of this step: "loss" (the total) and its parts
            "o2m_cls", "o2m_box", "o2o_cls", "o2o_box", as far as the network has these heads. On a
            GPU they are those of two steps before, and there are none in the first two.
        learning_rate: of the first parameter group, as used in this step.
        images: images of this step, all processes together.
        wait: seconds of this step spent waiting for the loader.
        seconds: duration of the whole step, `wait` included.
        grad_norm: L2 norm of all gradients before clipping; None where it was not computed.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    iteration: int
    losses: dict[str, float]
    learning_rate: float
    images: int
    wait: float
    seconds: float
    grad_norm: float | None


@dataclass(frozen=True, eq=False)
class EpochEvent:
    """One epoch is done, and its evaluation where one was due.

    Attributes:
        record: the line written to `metrics.jsonl`: "epoch" (from 1), mean losses over the epoch
            under the names of `StepEvent.losses`, "lr" (of the last step), "seconds",
            "images_per_second", "wait_share" (0 … 1, of the training time), where there are any
            "skipped" (steps whose gradient was not finite, with fp16) and "left_out" (images that
            could not be used so far, of the first process), and after an evaluation
            "AP", "AP50", … (0 … 1).
        pictures: (name, uint8 [h, w, 3] BGR) validation images with predictions drawn.
        best: this epoch's weights are the best so far.
    """

    record: dict[str, float]
    pictures: tuple[tuple[str, NDArray[np.uint8]], ...]
    best: bool


def is_loss(name: str) -> bool:
    """Whether a name in a line of `metrics.jsonl` is a training loss: the total or a part."""
    return name == "loss" or name.endswith(("_cls", "_box"))


def is_metric(name: str) -> bool:
    """Whether a name in a line of `metrics.jsonl` is a validation metric ("AP", "AP50", …)."""
    return name not in BOOKKEEPING and not is_loss(name)


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
