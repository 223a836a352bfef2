"""The suite: which models run in which engines on which pictures."""

import time
from dataclasses import replace
from datetime import UTC, datetime

from nmsfree.spec import ModelSpec
from nmsfree_benchmarks.common import inputs
from nmsfree_benchmarks.common.engines import DEPLOYED
from nmsfree_benchmarks.common.run_options import Progress, silent
from nmsfree_benchmarks.common.sources import NANO, published_sources, trained_sources
from nmsfree_benchmarks.machine.environment import describe
from nmsfree_benchmarks.machine.gpu_watch import GpuWatch
from nmsfree_benchmarks.machine.load import LoadMeter
from nmsfree_benchmarks.roofline.limits import limit_of
from nmsfree_benchmarks.roofline.peaks import Peaks, measure_peaks
from nmsfree_benchmarks.table.device_engines import DEVICES
from nmsfree_benchmarks.table.eager import use_threads
from nmsfree_benchmarks.table.group import Group, run_group
from nmsfree_benchmarks.table.options import Options
from nmsfree_benchmarks.table.results import Report
from nmsfree_benchmarks.table.rows import BASELINE, CPU_ENGINES, Row

QUICK_AP_IMAGES = 40
NANO_PICTURES, HD_PICTURES = 32, 4


def size_of(spec: ModelSpec) -> str:
    """Which of `SIZES` a model was timed in."""
    return "nano" if spec.name in NANO else "large"


def run_suite(options: Options, progress: Progress = silent) -> Report:
    """Measure everything.

    Raises:
        CheckpointError, DataError: weights or pictures cannot be read, or do not fit each other.
        GateError: an exported file differs from its checkpoint.
    """
    started = time.monotonic()
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    use_threads(options.threads)
    environment = describe(options.threads, options.device)
    peaks = measure_peaks(options.threads, options.device)
    groups, skipped = make_groups(options, progress)
    rows: list[Row] = []
    loads: list[float] = []
    gpu = GpuWatch(options.device == "cuda")
    for group in groups:
        with LoadMeter() as meter:
            found, refused = run_group(group, options, progress, gpu)
        skipped |= refused
        rows += found
        # A machine that was slow at the start would otherwise seem to beat its own limit.
        peaks = peaks.or_faster(measure_peaks(options.threads, options.device))
        if meter.others is not None:
            loads.append(meter.others)
    return Report(
        stamp,
        environment | gpu.to_json(),
        options.quick,
        tuple(with_limit(row, peaks) for row in rows),
        skipped,
        time.monotonic() - started,
        options.command,
        max(loads, default=None),
        {row.size_key: options.plan(size_of(row.spec)).burst for row in rows},
        options.settings(),
    )


def with_limit(row: Row, peaks: Peaks) -> Row:
    """Add what a graph takes at least, where the peak of its arithmetic was measured."""
    if row.graph is None or row.subject.precision not in peaks.flops:
        return row
    return replace(row, limit_ms=limit_of(row.graph, peaks).ms)


def make_groups(options: Options, progress: Progress) -> tuple[list[Group], dict[str, str]]:
    """Find models and pictures; also returns which models are not there, and why."""
    dataset = inputs.digits_val(
        options.data, options.work, lambda done, total: progress("digits scenes", done, total)
    )
    pictures = inputs.pictures(dataset, NANO_PICTURES)
    judged = inputs.first(dataset, QUICK_AP_IMAGES if options.quick else None)
    others = () if options.quick and options.device == "cpu" else DEVICES[options.device]
    groups: list[Group] = []
    skipped: dict[str, str] = {}
    if "nano" in options.sizes:
        sources, skipped = trained_sources(options.weights)
        groups.append(Group("nano", sources, pictures, judged, tuple(CPU_ENGINES), others))
    if "large" in options.sizes:
        sources = published_sources(
            options.weights, options.work, lambda done, total: progress("weights", done, total)
        )
        engines = (BASELINE, DEPLOYED) if options.quick else tuple(CPU_ENGINES)
        full_hd = inputs.full_hd(pictures, HD_PICTURES)
        groups.append(Group("large", sources, full_hd, None, engines, others))
    return groups, skipped
