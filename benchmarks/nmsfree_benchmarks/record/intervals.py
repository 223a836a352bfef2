"""How sure a ratio is: bootstrap intervals that resample whole rounds.

Calls of one turn lie close together in time and resemble each other, so rounds are drawn, not
calls (a block bootstrap; Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 8).
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmsfree_benchmarks.machine.measure import Times

RESAMPLES = 2000
CONFIDENCE = 0.95

Totals = NDArray[np.float64]  # [rounds, calls of a turn], nanoseconds


@dataclass(frozen=True)
class Interval:
    """A ratio of medians, and between which values it lies with 95 % confidence."""

    value: float
    low: float
    high: float

    @property
    def decides(self) -> bool:
        """Whether the ratio is known to be on one side of 1."""
        return self.low > 1 or self.high < 1

    def overlaps(self, other: "Interval") -> bool:
        return self.low <= other.high and other.low <= self.high

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} – {self.high:.3f})"

    def to_json(self) -> dict[str, Any]:
        return {name: round(value, 4) for name, value in asdict(self).items()}


def ratio_interval(
    times: Times, reference: Times, burst: int = 1, *, paired: bool = True
) -> Interval:
    """Median of `times` by that of `reference`.

    Args:
        times, reference: [timed calls, parts] ns, as `take_turns` gives them.
        burst: timed calls of a turn; rounds of so many rows are drawn together.
        paired: rows are of the same rounds, which are then drawn for both alike: what slows the
            machine for a while slows both. Otherwise (two runs) each is drawn for itself.

    Raises:
        ValueError: nothing was timed, or paired times differ in number.
    """
    if paired and len(times) != len(reference):
        raise ValueError(f"paired times differ: {len(times)} and {len(reference)} calls")
    a, b = _totals(times, burst), _totals(reference, burst)
    draw = np.random.default_rng(0)
    drawn_a = _draw(draw, len(a))
    drawn_b = drawn_a if paired else _draw(draw, len(b))
    ratios = _medians(a, drawn_a) / _medians(b, drawn_b)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(ratios, (tail, 1 - tail)).tolist()
    return Interval(float(np.median(a) / np.median(b)), low, high)


def _totals(times: Times, burst: int) -> Totals:
    totals: Totals = times.sum(axis=1).astype(np.float64)
    if len(totals) == 0:
        raise ValueError("no times")
    burst = min(burst, len(totals))
    return totals[: len(totals) // burst * burst].reshape(-1, burst)


def _draw(generator: np.random.Generator, rounds: int) -> NDArray[np.int64]:
    return generator.integers(rounds, size=(RESAMPLES, rounds))


def _medians(totals: Totals, drawn: NDArray[np.int64]) -> NDArray[np.float64]:
    medians: NDArray[np.float64] = np.median(totals[drawn].reshape(len(drawn), -1), axis=1)
    return medians
