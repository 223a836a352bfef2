"""Numbers read from times, with bootstrap intervals that resample whole rounds."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nmsfree_benchmarks.record.intervals import Interval, Rows, Values, bootstrap
from nmsfree_benchmarks.record.records import Record


def nms_cost(whole: Record, without: Record, burst: int) -> tuple[Interval, Interval]:
    """Return what NMS costs in a call: milliseconds, and its share of the call.

    Args:
        whole: parts preprocess, network (the whole graph) and postprocess.
        without: preprocess and network, of the same graph without its NMS, in the same rounds.
        burst: timed calls of a turn.
    """
    with_nms, cut = whole.times[:, 1] / 1e6, without.times[:, 1] / 1e6
    total = whole.times.sum(axis=1) / 1e6

    def milliseconds(rows: Rows) -> Values:
        return _medians(with_nms[rows]) - _medians(cut[rows])

    def share(rows: Rows) -> Values:
        return milliseconds(rows) / _medians(total[rows])

    calls = len(total)
    return bootstrap(milliseconds, calls, burst), bootstrap(share, calls, burst)


def part_cost(whole: Record, part: str, burst: int) -> tuple[Interval, Interval]:
    """Return what one timed part of a call costs: milliseconds, and its share of the call."""
    own = whole.times[:, whole.parts.index(part)] / 1e6
    total = whole.times.sum(axis=1) / 1e6

    def milliseconds(rows: Rows) -> Values:
        return _medians(own[rows])

    def share(rows: Rows) -> Values:
        return milliseconds(rows) / _medians(total[rows])

    calls = len(total)
    return bootstrap(milliseconds, calls, burst), bootstrap(share, calls, burst)


def slope(milliseconds: Values, objects: Sequence[int], burst: int) -> Interval:
    """Return milliseconds for 100 further objects: a least-squares line through the medians.

    Args:
        milliseconds, objects: of each timed call.
        burst: timed calls of a turn.
    """
    number = np.array(objects)
    levels = np.unique(number)

    def fit(rows: Rows) -> Values:
        own, times = number[rows], milliseconds[rows]  # [draws, calls]
        medians = np.stack([_medians_where(own == level, times) for level in levels], axis=-1)
        return 100 * _line(levels.astype(np.float64), medians)

    return bootstrap(fit, len(milliseconds), burst)


def _medians_where(chosen: NDArray[np.bool_], values: Values) -> Values:
    """Return the median of the chosen values of each row; NaN where none is."""
    ordered = np.sort(np.where(chosen, values, np.inf), axis=-1)
    count = chosen.sum(axis=-1, keepdims=True)
    middle = np.concatenate([(count - 1) // 2, count // 2], axis=-1).clip(min=0)
    found = np.take_along_axis(ordered, middle, axis=-1).mean(axis=-1)
    medians: Values = np.where(count[..., 0] > 0, found, np.nan)
    return medians


def _line(x: Values, y: Values) -> Values:
    """Return the least-squares slope of each row of `y`; points that are NaN do not count."""
    there = ~np.isnan(y)
    weight = there / np.maximum(there.sum(axis=-1, keepdims=True), 1)
    from_mean = np.where(there, x - (weight * x).sum(axis=-1, keepdims=True), 0)
    square = (from_mean**2).sum(axis=-1)
    slopes = (from_mean * np.where(there, y, 0)).sum(axis=-1) / np.where(square > 0, square, np.nan)
    return np.asarray(slopes, dtype=np.float64)


def _medians(values: Values) -> Values:
    medians: Values = np.median(values, axis=-1)
    return medians
