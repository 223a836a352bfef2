"""How a run is carried out; what it computes is in the preset."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch

from nmsfree.errors import NmsfreeError


class Interrupted(NmsfreeError):
    """Somebody asked the run to stop; everything is saved."""


@dataclass(frozen=True)
class RunConfig:
    """Settings of one run.

    Attributes:
        out: folder of checkpoints, states and `metrics.jsonl`.
        seed: same seed, same run.
        workers: processes that load images; 0 = in this one.
        precision: "fp32"; "bf16" or "fp16" autocast for the network (losses stay in float32).
        evaluate_every: epochs between evaluations on the validation set; 0 = only after the last.
        keep_every: epochs between checkpoints that stay, `epoch_0010.safetensors`; 0 = none.
        save_minutes: time between saves of the state within an epoch; 0 = after every step.
        resume: go on from the state in `out`.
        provenance: written into the checkpoint.
        pictures: draw predictions at every evaluation, for `EpochEvent.pictures`.
        stop: asked before every step; True saves and raises `Interrupted`.
    """

    out: Path
    device: torch.device
    seed: int = 0
    workers: int = 0
    precision: str = "fp32"
    evaluate_every: int = 1
    keep_every: int = 0
    save_minutes: float = 10.0
    resume: bool = False
    provenance: dict[str, str] = field(default_factory=dict)
    pictures: bool = False
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
