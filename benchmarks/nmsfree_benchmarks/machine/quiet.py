"""Which calls the machine left undisturbed: a constant piece of work before and after each.

A virtual or shared machine slows any program down for a while, and a p99 then says what its
neighbours did. A matrix product that never changes shows it, whatever is being measured: only
calls between two products of the usual length are taken for the program's own.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nmsfree_benchmarks.machine.measure import Call, Image, Times
from nmsfree_benchmarks.roofline.peaks_cpu import onnxruntime_probes

TOLERATED = 1.10  # of the usual: a product that takes longer was disturbed
USUAL = 25  # percentile; on a busy machine more than half of the products may be disturbed
ENOUGH = 100  # undisturbed calls, below which there is no 99th percentile to speak of


def probe(threads: int) -> Call:
    """Return the constant work: an FP32 matrix product in ONNX Runtime, 3 ms on one slow core."""
    return next(p.call for p in onnxruntime_probes(threads) if p.precision == "fp32")


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


def undisturbed(probes: Sequence[Times]) -> list[NDArray[np.bool_]]:
    """Say which calls had the usual work on both sides.

    Args:
        probes: [calls, 2] of each thing that took turns; what is usual is that of all of them.
    """
    usual = float(np.percentile(np.concatenate(probes), USUAL))
    return [np.all(own <= TOLERATED * usual, axis=1) for own in probes]


def tail(milliseconds: NDArray[np.float64]) -> float | None:
    """p99 by p50; None where there are too few calls for it."""
    if len(milliseconds) < ENOUGH:
        return None
    middle, high = np.percentile(milliseconds, (50, 99))
    return float(high / middle)
