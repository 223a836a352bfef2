"""Which calls the machine left alone: a constant piece of work before and after each.

A virtual or shared machine slows any program down for a while, and a p99 then says what its
neighbours did. A matrix product that never changes shows it, whatever is being measured. Of the
calls between two products of the usual length the machine can have moved p99 / p50 by little more
than `TOLERATED`; what is beyond that is the program's own. (What it does to itself for longer than
one call would show in the products, too: that is why all calls are reported beside.)
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nmsfree_benchmarks.machine.measure import CALLS_FOR, Call, Image, Times
from nmsfree_benchmarks.record.intervals import Interval, Rows, Values, bootstrap
from nmsfree_benchmarks.roofline.peaks import timed
from nmsfree_benchmarks.roofline.peaks_cpu import product_session

TOLERATED = 1.05  # of the usual: a product that takes longer was disturbed
USUAL = 25  # percentile; on a busy machine more than half of the products may be disturbed
ENOUGH = CALLS_FOR[99]  # calls left alone, below which nothing is said of their tail
SIDE = 512  # of the matrices: 3 ms on a slow core


def probe(threads: int) -> Call:
    """Return the constant work: an FP32 matrix product in ONNX Runtime.

    Its threads sleep when it is done: spinning ones would take cores from what is measured.
    """
    factor = np.random.default_rng(0).standard_normal((SIDE, SIDE), dtype=np.float32)
    session = product_session(threads, "MatMul", factor, factor, spinning=False)
    return timed(lambda: session.run(None, {"a": factor}))


def between_probes(call: Call, probe: Call) -> Call:
    """Return a call whose parts are followed by the nanoseconds of the work before and after it."""

    def probed(image: Image) -> Sequence[int]:
        before = probe(image)
        parts = call(image)
        return [*parts, *before, *probe(image)]

    return probed


def split_probes(times: Times) -> tuple[Times, Times]:
    """Take apart what `between_probes` gives: times [calls, parts], probes [calls, 2]."""
    return times[:, :-2], times[:, -2:]


def left_alone(probes: Sequence[Times]) -> list[NDArray[np.bool_]]:
    """Say which calls had the usual work on both sides.

    Args:
        probes: [calls, 2] of each thing that took turns; what is usual is that of all of them.
    """
    usual = float(np.percentile(np.concatenate(probes), USUAL))
    return [np.all(own <= TOLERATED * usual, axis=1) for own in probes]


def tail(
    milliseconds: Values, burst: int, chosen: NDArray[np.bool_] | None = None
) -> Interval | None:
    """p99 by p50 with its 95 % interval; None where there are too few calls for it.

    Args:
        milliseconds: of all calls; those of a turn, `burst` of them, lie together.
        chosen: which calls count; all of them if not given.
    """
    values = milliseconds if chosen is None else np.where(chosen, milliseconds, np.nan)
    if np.count_nonzero(~np.isnan(values)) < ENOUGH:
        return None

    def statistic(rows: Rows) -> Values:
        middle, high = np.nanpercentile(values[rows], (50, 99), axis=-1)
        return np.asarray(high / middle, dtype=np.float64)

    return bootstrap(statistic, len(values), burst)
