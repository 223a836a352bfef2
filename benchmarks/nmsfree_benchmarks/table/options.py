"""What `nmsfree bench` measures, and for how long."""

from dataclasses import dataclass

from nmsfree_benchmarks.common.run_options import RunOptions
from nmsfree_benchmarks.machine.measure import Plan

SIZES = ("nano", "large")
# By size, quick; seconds are aimed at, min_rounds are kept: ten for an interval, a hundred calls of
# the small models for a p99. Calls of the large ones are so long that no lead-in is needed.
PLANS = {
    ("nano", False): Plan(seconds=60, min_rounds=20, lead_in=3, burst=5),
    ("nano", True): Plan(seconds=6, min_rounds=10, lead_in=1, burst=3),
    ("large", False): Plan(seconds=180, min_rounds=10, burst=2),
    ("large", True): Plan(seconds=8, min_rounds=10),
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
