"""What every question of the benchmark is asked with."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from nmsfree_benchmarks.machine.measure import Plan

Progress = Callable[[str, int, int], None]  # what, done, in all


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody is shown."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What to run; a sub-command adds what it varies.

    Attributes:
        weights: folder of trained checkpoints, published ones in its `published/`.
        data: folder of a digits set that is used if the split that is wanted is there.
        work: folder for what is made on the way: ONNX files, stand-in weights, digits.
        threads: processor threads of every engine.
        quick: less of everything, for a first look.
        seconds: time for each group of timed rounds; None takes that of its plan.
        min_rounds: rounds of each however long they take; None takes that of its plan.
        pause: ms of idling before each turn; None takes that of its plan.
        command: that repeats the run, for the report.
    """

    weights: Path
    data: Path = Path("data/digits")
    work: Path
    threads: int
    quick: bool = False
    seconds: float | None = None
    min_rounds: int | None = None
    pause: float | None = None
    command: str = "nmsfree bench"

    def timed(self, plan: Plan) -> Plan:
        """Return the plan with the time, the rounds and the idle gap that were asked for."""
        if self.pause is not None:
            plan = replace(plan, pause=self.pause / 1000)
        if self.seconds is not None:
            plan = replace(plan, seconds=self.seconds)
        return plan if self.min_rounds is None else replace(plan, min_rounds=self.min_rounds)

    def inputs(self) -> Iterator[Path]:
        """Every file that is read: weights and pictures."""
        for folder in (self.weights, self.data):
            yield from folder.rglob("*")

    def settings(self) -> dict[str, float]:
        """What result files say of a run that was not timed in the usual way."""
        return {} if self.pause is None else {"pause_ms": self.pause}
