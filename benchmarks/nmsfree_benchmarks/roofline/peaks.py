"""What a device reaches at best, measured: matrix products in each precision, and memory copies.

A peak is the fastest call of the fastest implementation found here: ONNX Runtime's own matrix
product and PyTorch's on a processor, cuBLAS (through PyTorch) on an NVIDIA GPU. (The fastest and
not the median, as in the STREAM benchmark: what the device can do when nothing disturbs it.)
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nmsfree.errors import EngineError
from nmsfree_benchmarks.machine.measure import Call, Image, Plan, Times, take_turns
from nmsfree_benchmarks.record.records import Record

SIDES, GPU_SIDE = (512, 1024), 8192  # of the square matrices
COPIED_MIB = (1, 8, 64)  # read and written together; the largest is beyond most caches
GPU_COPIED_MIB = (8, 64, 1024)
FALLBACK = "fp32"  # a processor computes a precision that it has no instructions for in this one
QUICK = Plan(seconds=0.5, min_rounds=4, pause=0.001, lead_in=1, burst=2)


@dataclass(frozen=True)
class Peaks:
    """Attributes:
    flops: precision → FLOP/s of the largest matrix product.
    copies: (bytes read and written, bytes/s), ascending: small copies stay in a cache.
    """

    flops: Mapping[str, float]
    copies: tuple[tuple[int, float], ...]

    def flops_of(self, precision: str) -> float:
        """FLOP/s in a precision, or in FP32 where it was not measured."""
        return self.flops.get(precision, self.flops[FALLBACK])

    def bandwidth(self, moved: int) -> float:
        """Bytes/s of the smallest copy that moves as much, or of the largest."""
        return next((rate for size, rate in self.copies if moved <= size), self.copies[-1][1])

    def or_faster(self, other: "Peaks") -> "Peaks":
        """The faster of two measurements, peak by peak."""
        flops = {
            key: max(self.flops.get(key, 0.0), other.flops.get(key, 0.0))
            for key in (*self.flops, *other.flops)
        }
        copies = dict(self.copies)
        for size, rate in other.copies:
            copies[size] = max(rate, copies.get(size, 0.0))
        return Peaks(flops, tuple(sorted(copies.items())))


@dataclass(frozen=True, eq=False)
class Probe:
    """A call that shows a peak.

    Attributes:
        name: of its record.
        call: takes any picture and ignores it.
        work: FLOP of a matrix product, or bytes that a copy reads and writes.
        repeats: so often within a call.
        precision: of a matrix product; "" is a copy.
    """

    name: str
    call: Call
    work: int
    precision: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    repeats: int = 1

    def rate(self, times: Times) -> float:
        """FLOP/s or bytes/s of the fastest call."""
        return self.work * self.repeats / (float(times.sum(axis=1).min()) / 1e9)

    def record(self, times: Times) -> Record:
        what = "gb_per_s" if not self.precision else "gflop_per_s"
        figures = {what: round(self.rate(times) / 1e9, 2)}
        return Record(self.name, self.parameters, times, figures=figures)


def read_peaks(probes: Sequence[Probe], times: Mapping[str, Times]) -> Peaks:
    """Take the fastest probe of each precision, and the copies."""
    flops: dict[str, float] = {}
    copies: dict[int, float] = {}
    for probe in probes:
        rate = probe.rate(times[probe.name])
        if probe.precision:
            flops[probe.precision] = max(rate, flops.get(probe.precision, 0.0))
        else:
            copies[probe.work] = rate
    return Peaks(flops, tuple(sorted(copies.items())))


def measure_peaks(threads: int, device: str = "cpu", plan: Plan = QUICK) -> Peaks:
    """Measure a device's peaks in about a second.

    A processor's FP32 and INT8 in ONNX Runtime alone; a GPU's FP32 and FP16 through PyTorch, none
    where PyTorch does not run on it.
    """
    nothing = [np.zeros((1, 1, 3), np.uint8)]
    if device == "cpu":
        probes = _cpu_probes(threads)
        return read_peaks(probes, take_turns({p.name: p.call for p in probes}, nothing, plan))
    return _gpu_peaks(plan, nothing)


def _cpu_probes(threads: int) -> list[Probe]:
    from nmsfree_benchmarks.roofline.peaks_cpu import copy_probes, onnxruntime_probes

    return [*onnxruntime_probes(threads), *copy_probes(threads)]


def _gpu_peaks(plan: Plan, nothing: Sequence[Image]) -> Peaks:
    """Measure one probe after another: a GPU with engines on it has no room for all at once."""
    import torch

    from nmsfree_benchmarks.roofline.peaks_cuda import cuda_makers

    found = Peaks({}, ())
    try:
        for make in cuda_makers():
            probe = make()
            times = take_turns({probe.name: probe.call}, nothing, plan)
            found = found.or_faster(read_peaks([probe], times))
            del probe
            torch.cuda.empty_cache()  # PyTorch would keep the memory from the other engines
    except (EngineError, RuntimeError):  # no CUDA in this PyTorch, or no room
        return Peaks({}, ())
    return found


def timed(run: Callable[[], object], finish: Callable[[], object] = lambda: None) -> Call:
    """Make a call that times `run` until `finish` has returned (a GPU works on its own)."""

    def call(image: Image) -> Sequence[int]:
        start = time.perf_counter_ns()
        run()
        finish()
        return (time.perf_counter_ns() - start,)

    return call


def product_flop(side: int) -> int:
    """FLOP of a product of two square matrices; a multiply-add is two."""
    return 2 * side**3
