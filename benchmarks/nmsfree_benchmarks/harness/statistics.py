"""What times say, and how sure it is: bootstrap intervals that resample whole rounds.

Calls of one turn lie close together in time and resemble each other, so rounds are drawn, not
calls (a block bootstrap; Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 8).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from nmsfree_benchmarks.harness.timer import Nanoseconds, Times

STAGES = ("preprocess", "network", "postprocess")
# Calls that a percentile needs. With fewer it is little more than the slowest call, which says
# nothing of a tail: of 100 calls one lies beyond the p99, of 20 one beyond the p95, two the p90.
CALLS_FOR = {90: 20, 95: 20, 99: 100}
WIDE_SPREAD = 0.10  # interquartile range / median above which a measurement distrusts itself
RESAMPLES = 2000
CONFIDENCE = 0.95
# Of fewer rounds the draws are too few different ones: what they give is narrower than it says.
FEWEST_ROUNDS = 10
TOLERATED = 1.05  # times the usual: constant work that takes longer was disturbed
USUAL = 25  # percentile; on a busy machine more than half of it may be disturbed
FASTEST = 0.25  # share of the calls of which each was disturbed least

Values = NDArray[np.float64]
Rows = NDArray[np.int64]
T = TypeVar("T", np.float64, np.int64)


@dataclass(frozen=True)
class Summary:
    p50: float  # percentiles in milliseconds, linear between neighbours
    p90: float | None  # None where there are not the calls for one, see `CALLS_FOR`
    p99: float | None
    spread: float  # interquartile range / median
    drift: float = 0.0  # median of the last third by the first's, minus 1; 0 of under 6 calls

    @property
    def fps(self) -> float:
        """Images in a second, one after another: 1 / median."""
        return 1000 / self.p50

    @property
    def fps_text(self) -> str:
        """FPS with one decimal, with two below 10: large networks on processors differ there."""
        return f"{self.fps:.1f}" if self.fps >= 10 else f"{self.fps:.2f}"

    @property
    def percentiles(self) -> tuple[float, float | None, float | None]:
        return self.p50, self.p90, self.p99

    @property
    def trusted(self) -> bool:
        return self.spread <= WIDE_SPREAD

    @property
    def doubt(self) -> str:
        """What marks a row that distrusts itself."""
        return "" if self.trusted else "!"


def summarize(times: Times) -> Summary:
    """Summarise the totals of raw times [rounds, parts]."""
    totals = milliseconds(times)
    p25, p50, p75 = np.percentile(totals, (25, 50, 75)).tolist()
    third = len(totals) // 3
    drift = 0.0
    if third >= 2:
        drift = float(np.median(totals[-third:]) / np.median(totals[:third]) - 1)
    p90, p99 = percentile(totals, 90), percentile(totals, 99)
    return Summary(p50, p90, p99, (p75 - p25) / p50, drift)


def milliseconds(times: Times) -> Values:
    """The time of every call, float64 [timed calls]."""
    total: Values = times.sum(axis=1) / 1e6
    return total


def percentile(values: Values, percent: int) -> float | None:
    """A percentile of `CALLS_FOR`; None of fewer values than it needs."""
    if len(values) < CALLS_FOR[percent]:
        return None
    return float(np.percentile(values, percent))


def shares(times: Times, in_graph: Times | None = None) -> dict[str, float]:
    """Share of each of `STAGES`, 0 … 1, summing to 1; from the medians of the stages.

    Args:
        times: [rounds, 3]. Eager: preprocess, network, post-processing. ONNX Runtime:
            preprocess, the whole graph, mapping to source pixels.
        in_graph: times [rounds, 1] of the part of that graph behind the head's raw maps, run by
            itself in the same rounds. It is taken off the graph's time and counted as
            post-processing. (The other way round, the network's part alone and the difference,
            would drown a millisecond in the noise of hundreds.)
    """
    preprocess, network, postprocess = np.median(times, axis=0).tolist()
    if in_graph is not None:
        part = min(network, float(np.median(in_graph)))
        network, postprocess = network - part, postprocess + part
    parts = (preprocess, network, postprocess)
    return {stage: part / sum(parts) for stage, part in zip(STAGES, parts, strict=True)}


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
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def side(self) -> int:
        """1 and -1 where the ratio is known to be above or below 1, else 0."""
        return (self.low > 1) - (self.high < 1)

    @property
    def decides(self) -> bool:
        return self.side != 0

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
    """A number with the 95 % interval of its resampled values, if the rounds allow one."""
    if rounds < FEWEST_ROUNDS:
        return Interval(value)
    tail_ = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(drawn, (tail_, 1 - tail_)).tolist()
    return Interval(value, low, high)


def bootstrap(statistic: Callable[[Rows], Values], calls: int, burst: int = 1) -> Interval:
    """A statistic of all timed calls, and between which values it lies with 95 %.

    It takes numbers of calls, int64 [draws, calls], and gives one value of each draw, NaN where its
    calls do not suffice. Calls of a turn (`burst`) are drawn together. ValueError: no calls.
    """
    rows = np.arange(calls)
    drawn, rounds = _draw(rows, burst, np.random.default_rng(0))
    return bounded(float(statistic(rows[None])[0]), statistic(drawn), rounds)


def _draw(values: NDArray[T], burst: int, draw: np.random.Generator) -> tuple[NDArray[T], int]:
    """Whole turns of values, drawn again and again [draws, calls]; and how many turns there are."""
    if len(values) == 0:
        raise ValueError("no times")
    burst = min(burst, len(values))
    turns = values[: len(values) // burst * burst].reshape(-1, burst)
    chosen = draw.integers(len(turns), size=(RESAMPLES, len(turns)))
    return turns[chosen].reshape(RESAMPLES, -1), len(turns)


def _medians(values: Values) -> Values:
    medians: Values = np.median(values, axis=-1)
    return medians


def paired_ratio(times: Times, reference: Times, burst: int = 1) -> Interval:
    """How many times as long a call takes as the one beside it: the median over all pairs.

    What slows the machine for a while slows both calls of a pair. Row i of both times [timed calls,
    parts], in ns, is the same image of the same round. ValueError: no calls, or differently many.
    """
    if len(times) != len(reference):
        raise ValueError(f"paired times differ: {len(times)} and {len(reference)} calls")
    quotients = milliseconds(times) / milliseconds(reference)
    return bootstrap(lambda rows: _medians(quotients[rows]), len(times), burst)


def ratio_of_medians(times: Times, reference: Times, burst: int = 1) -> Interval:
    """Median of `times` by that of `reference`, of two runs: each has rounds of its own.

    ValueError: nothing was timed.
    """
    draw = np.random.default_rng(0)
    own, own_rounds = _draw(milliseconds(times), burst, draw)
    other, other_rounds = _draw(milliseconds(reference), burst, draw)
    value = float(np.median(milliseconds(times)) / np.median(milliseconds(reference)))
    return bounded(value, _medians(own) / _medians(other), min(own_rounds, other_rounds))


def ratio_of_fastest(times: Times, reference: Times, burst: int = 1) -> Interval:
    """The fastest quarter of the calls by that of the reference, means; rounds are drawn alike."""
    a, b = milliseconds(times), milliseconds(reference)
    return bootstrap(lambda rows: _fastest(a[rows]) / _fastest(b[rows]), len(a), burst)


def _fastest(values: Values) -> Values:
    count = max(1, round(FASTEST * values.shape[-1]))
    means: Values = np.partition(values, count - 1, axis=-1)[..., :count].mean(axis=-1)
    return means


def processor_ratio(times: Nanoseconds, reference: Nanoseconds, burst: int = 1) -> Interval | None:
    """Like `paired_ratio`, of processor time; None where the clock is too coarse for it."""
    if not (times.all() and reference.all()):
        return None
    return paired_ratio(times[:, None], reference[:, None], burst)


def median_ms(times: Times, burst: int = 1) -> Interval:
    own = milliseconds(times)
    return bootstrap(lambda rows: _medians(own[rows]), len(own), burst)


def difference(whole: Values, without: Values, total: Values, burst: int) -> list[Interval]:
    """Median of one less that of the other, and that by the median of a third, of the same rounds.

    All are milliseconds.
    """

    def apart(rows: Rows) -> Values:
        return _medians(whole[rows]) - _medians(without[rows])

    def share(rows: Rows) -> Values:
        return apart(rows) / _medians(total[rows])

    return [bootstrap(statistic, len(total), burst) for statistic in (apart, share)]


def slope(times: Values, objects: Sequence[int], burst: int) -> Interval:
    """Milliseconds for 100 further objects: a least-squares line through the medians.

    `times` and `objects` are milliseconds and objects of each timed call.
    """
    number = np.array(objects)
    levels = np.unique(number)

    def fit(rows: Rows) -> Values:
        drawn, own = times[rows], number[rows]  # [draws, calls]
        medians = [
            _quantile(np.sort(np.where(own == level, drawn, np.nan)), 0.5) for level in levels
        ]
        return 100 * _line(levels.astype(np.float64), np.stack(medians, axis=-1))

    return bootstrap(fit, len(times), burst)


def _quantile(ordered: Values, share: float) -> Values:
    """A quantile of each ascending row, linear between neighbours; NaN, at its end, do not count.

    `np.nanquantile` takes many times as long.
    """
    at = share * ((~np.isnan(ordered)).sum(axis=-1, keepdims=True) - 1).clip(min=0)
    ends = np.concatenate([np.floor(at), np.ceil(at)], axis=-1).astype(np.int64)
    low, high = np.take_along_axis(ordered, ends, axis=-1).T
    return np.asarray(low + (high - low) * (at % 1)[:, 0], dtype=np.float64)


def _line(x: Values, y: Values) -> Values:
    """The least-squares slope of each row of `y`; points that are NaN do not count."""
    there = ~np.isnan(y)
    weight = there / np.maximum(there.sum(axis=-1, keepdims=True), 1)
    from_mean = np.where(there, x - (weight * x).sum(axis=-1, keepdims=True), 0)
    square = (from_mean**2).sum(axis=-1)
    slopes = (from_mean * np.where(there, y, 0)).sum(axis=-1) / np.where(square > 0, square, np.nan)
    return np.asarray(slopes, dtype=np.float64)


def tail(values: Values, burst: int, chosen: NDArray[np.bool_] | None = None) -> Interval | None:
    """p99 by p50 with its 95 % interval; None where there are too few calls for it.

    Milliseconds of all calls, a turn's together; those count that are chosen.
    """
    counted = values if chosen is None else np.where(chosen, values, np.nan)
    if np.count_nonzero(~np.isnan(counted)) < CALLS_FOR[99]:
        return None

    def statistic(rows: Rows) -> Values:
        drawn = np.sort(counted[rows], axis=-1)
        return _quantile(drawn, 0.99) / _quantile(drawn, 0.5)

    return bootstrap(statistic, len(counted), burst)


def undisturbed(probes: Sequence[Times]) -> list[NDArray[np.bool_]]:
    """Say which calls had the usual work on both sides.

    `probes`: [calls, 2] of each thing that took turns; what is usual is that of all of them.
    """
    usual = float(np.percentile(np.concatenate(probes), USUAL))
    return [np.all(own <= TOLERATED * usual, axis=1) for own in probes]
