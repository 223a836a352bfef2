"""How a run is carried out, and how it is asked to stop; what it computes is in the preset."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Annotated

from nmsfree.errors import NmsfreeError
from nmsfree.options import Option
from nmsfree_training.config import MAX_EPOCHS

DATA = partial(Option, panel="Evaluation and checkpoints")
MACHINE = partial(Option, panel="Machine")


class Interrupted(NmsfreeError):
    """Somebody asked the run to stop; everything is saved."""


@dataclass(frozen=True)
class RunConfig:
    """Settings of one run."""

    out: Path = Path()  # folder of checkpoints, states and `metrics.jsonl`
    # 0 = only after the last epoch.
    evaluate_every: Annotated[
        int,
        DATA("Epochs between AP; 0 = at the end.", flags=("--eval-every",), min=0, max=MAX_EPOCHS),
    ] = 1
    keep_every: Annotated[
        int, DATA("Epochs between checkpoints that are kept; 0 = none.", min=0, max=MAX_EPOCHS)
    ] = 0
    save_minutes: Annotated[
        float, DATA("Minutes between saves within an epoch; 0 = every step.", min=0, max=100_000)
    ] = 10.0
    resume: Annotated[bool, Option("Go on exactly where it was cut.", flags=("--resume",))] = False
    # minutes: the schedule is fitted to it as the speed shows; None = the recipe's epochs.
    minutes: Annotated[
        float | None,
        Option(
            "Train so long, evaluations included. The schedule is fitted to the measured speed.",
            min=0.1,
            max=1_000_000,
        ),
    ] = None
    patience: Annotated[
        int,
        DATA("Stop after so many epochs without a better AP; 0 = never.", min=0, max=MAX_EPOCHS),
    ] = 0
    no_tensorboard: Annotated[bool, DATA("Write nothing for it.", flags=("--no-tensorboard",))] = (
        False
    )
    seed: Annotated[int, MACHINE("Same seed, same run.", min=0)] = 0
    device: Annotated[str, Option("cpu or cuda.")] = "cpu"
    # Autocast for the network; losses stay in float32.
    precision: str = "fp32"  # or "bf16" or "fp16" for the network
    workers: int = 2  # processes that load images
    provenance: dict[str, str] = field(default_factory=dict)  # written into the checkpoint
    # Asked before every step; True saves and raises `Interrupted`.
    stop: Callable[[], bool] = lambda: False


class StopRequest:
    """Whether somebody asked the run to stop, and the exit status that answers the signal."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def exit_status(self) -> int:
        return 128 + (self.signal or signal.SIGINT)

    def _take(self, number: int, _: FrameType | None) -> None:
        if self.signal is not None:  # asked twice: do not wait for the step
            if number == signal.SIGTERM:
                sys.exit(128 + number)
            raise KeyboardInterrupt
        self.signal = number


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into a request, until the block ends.

    Raises:
        KeyboardInterrupt, SystemExit: it is the second SIGINT, or SIGTERM.
    """
    request = StopRequest()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, request._take) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
