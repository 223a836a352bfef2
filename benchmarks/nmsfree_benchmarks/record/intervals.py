"""How sure a number is: bootstrap intervals that resample whole rounds.

Calls of one turn lie close together in time and resemble each other, so rounds are drawn, not
calls (a block bootstrap; Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 8).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmsfree_benchmarks.machine.measure import Times

RESAMPLES = 2000
CONFIDENCE = 0.95
# Of fewer rounds the draws are too few different ones: what they give is narrower than it says.
FEWEST_ROUNDS = 10

Totals = NDArray[np.float64]  # [rounds, calls of a turn], nanoseconds
Rows = NDArray[np.int64]
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A number, and between which values it lies with 95 % confidence.

    Where the rounds for that are missing the bounds are infinite. So every rule that looks at them
    decides nothing, and texts and JSON leave them empty.
    """

    value: float
    low: float = -math.inf
    high: float = math.inf

    @property
    def known(self) -> bool:
        """Whether there are bounds."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def decides(self) -> bool:
        """Whether the ratio is known to be on one side of 1."""
        return self.low > 1 or self.high < 1

    def within(self, most: float) -> bool | None:
        """Whether it is at most so much; None where the interval holds the limit."""
        if self.high <= most:
            return True
        return False if self.low > most else None

    def overlaps(self, other: "Interval") -> bool:
        return self.low <= other.high and other.low <= self.high

    def by(self, other: "Interval") -> "Interval":
        """The quotient of two independent ratios: its extremes, so wider than 95 %."""
        value = self.value / other.value
        if not (self.known and other.known):
            return Interval(value)
        return Interval(value, self.low / other.high, self.high / other.low)

    def times(self, factor: float) -> "Interval":
        return Interval(factor * self.value, factor * self.low, factor * self.high)

    def text(self, digits: int = 2, unit: str = "", sign: str = "", dash: str = " – ") -> str:
        """Show it as "1.23 ms (1.10 – 1.30)", without bounds as "1.23 ms (–)"."""
        form = f"{sign}z.{digits}f"
        if not self.known:
            return f"{self.value:{form}}{unit} (–)"
        return f"{self.value:{form}}{unit} ({self.low:{form}}{dash}{self.high:{form}})"

    def __str__(self) -> str:
        return self.text(3)

    def to_json(self) -> dict[str, Any]:
        return {
            name: round(value, 4) if math.isfinite(value) else None
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Interval":
        """Read what `to_json` gave; other keys are passed over."""
        low, high = content["low"], content["high"]
        return cls(content["value"]) if None in (low, high) else cls(content["value"], low, high)


AIM = {True: "reached", False: "missed", None: "undecided"}  # what `Interval.within` means


def bounded(value: float, drawn: Values, rounds: int) -> Interval:
    """Return a number with the 95 % interval of its resampled values, if the rounds allow one."""
    if rounds < FEWEST_ROUNDS:
        return Interval(value)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(drawn, (tail, 1 - tail)).tolist()
    return Interval(value, low, high)


def bootstrap(statistic: Callable[[Rows], Values], calls: int, burst: int = 1) -> Interval:
    """Return a statistic of all timed calls, and between which values it lies with 95 %.

    Args:
        statistic: takes numbers of calls, int64 [draws, calls]; gives one value of each draw, NaN
            where its calls do not suffice.
        calls: number of timed calls.
        burst: calls of a turn, which are drawn together.

    Raises:
        ValueError: nothing was timed.
    """
    if calls == 0:
        raise ValueError("no times")
    burst = min(burst, calls)
    rounds = np.arange(calls // burst * burst).reshape(-1, burst)
    drawn = _draw(np.random.default_rng(0), len(rounds))
    found = statistic(rounds[drawn].reshape(RESAMPLES, -1))
    return bounded(float(statistic(np.arange(calls)[None])[0]), found, len(rounds))


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
    return bounded(float(np.median(a) / np.median(b)), ratios, min(len(a), len(b)))


def _totals(times: Times, burst: int) -> Totals:
    totals: Totals = times.sum(axis=1).astype(np.float64)
    if len(totals) == 0:
        raise ValueError("no times")
    burst = min(burst, len(totals))
    return totals[: len(totals) // burst * burst].reshape(-1, burst)


def _draw(generator: np.random.Generator, rounds: int) -> Rows:
    return generator.integers(rounds, size=(RESAMPLES, rounds))


def _medians(totals: Totals, drawn: Rows) -> Values:
    medians: Values = np.median(totals[drawn].reshape(len(drawn), -1), axis=1)
    return medians
