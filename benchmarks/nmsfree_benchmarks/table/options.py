"""What `nmsfree bench` measures, and for how long."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from nmsfree_benchmarks.machine.measure import Plan
from nmsfree_benchmarks.table.eager import Source

SIZES = ("nano", "large")
PLANS = {  # by size, quick; seconds are aimed at, min_rounds are kept
    ("nano", False): Plan(seconds=60, min_rounds=10, lead_in=3, burst=5),
    ("nano", True): Plan(seconds=6, min_rounds=5, lead_in=2, burst=4),
    ("large", False): Plan(seconds=180, min_rounds=4, lead_in=1, burst=2),
    ("large", True): Plan(seconds=8, min_rounds=3, warmup_rounds=1, lead_in=0, burst=2),
}

Progress = Callable[[str, int, int], None]  # what, done, in all


@dataclass(frozen=True)
class Options:
    """What to run.

    Attributes:
        weights: folder of trained checkpoints, published ones in its `published/`.
        data: folder of a digits set that is used if its `val` split is there.
        work: folder for what is made on the way: ONNX files, stand-in weights, digits.
        threads: processor threads of every engine.
        quick: fewer rounds and images, and of the large models only the rows that the ratios need.
        seconds: time for the rounds of each size; None takes that of `PLANS`.
        min_rounds: rounds of each size however long they take; None takes that of `PLANS`.
        sizes: which of `SIZES` to measure.
        command: that repeats the run, for the report.
        device: "cpu" or "cuda".
    """

    weights: Path
    data: Path
    work: Path
    threads: int
    quick: bool = False
    seconds: float | None = None
    min_rounds: int | None = None
    sizes: tuple[str, ...] = SIZES
    command: str = "nmsfree bench"
    device: str = "cpu"

    def onnx(self, source: Source, precision: str = "fp32") -> Path:
        """Return where a model's exported file is."""
        kind = "" if precision == "fp32" else f".{precision}"
        return self.work / f"{source.name}{kind}.onnx"

    def plan(self, size: str) -> Plan:
        """Return how long the models of a size are timed."""
        plan = PLANS[size, self.quick]
        if self.seconds is not None:
            plan = replace(plan, seconds=self.seconds)
        return plan if self.min_rounds is None else replace(plan, min_rounds=self.min_rounds)
