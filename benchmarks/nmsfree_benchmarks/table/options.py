"""What `nmsfree bench` measures, and for how long."""

from dataclasses import dataclass

from nmsfree_benchmarks.common.run_options import RunOptions
from nmsfree_benchmarks.machine.measure import Plan

SIZES = ("nano", "large")
PLANS = {  # by size, quick; seconds are aimed at, min_rounds are kept
    ("nano", False): Plan(seconds=60, min_rounds=10, lead_in=3, burst=5),
    ("nano", True): Plan(seconds=6, min_rounds=5, lead_in=2, burst=4),
    ("large", False): Plan(seconds=180, min_rounds=4, lead_in=1, burst=2),
    ("large", True): Plan(seconds=8, min_rounds=3, warmup_rounds=1, lead_in=0, burst=2),
}


@dataclass(frozen=True, kw_only=True)
class Options(RunOptions):
    """What to run; a quick run has of the large models only the rows that the ratios need.

    Attributes:
        sizes: which of `SIZES` to measure.
        device: "cpu" or "cuda".
    """

    sizes: tuple[str, ...] = SIZES
    device: str = "cpu"

    def plan(self, size: str) -> Plan:
        """Return how long the models of a size are timed."""
        return self.timed(PLANS[size, self.quick])
