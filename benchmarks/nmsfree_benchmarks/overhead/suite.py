"""What the runtime adds to the engine's call, by the size of the source picture."""

import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import cv2

from nmsfree.errors import GateError, InputError
from nmsfree_benchmarks.common import inputs
from nmsfree_benchmarks.common.exported import Wanted, export_all
from nmsfree_benchmarks.common.on_device import DeviceOptions, after_round, watch_gpu
from nmsfree_benchmarks.common.publishing import now
from nmsfree_benchmarks.common.run_options import Progress, silent
from nmsfree_benchmarks.common.sources import published_sources, trained_sources
from nmsfree_benchmarks.machine.environment import describe
from nmsfree_benchmarks.machine.load import LoadMeter
from nmsfree_benchmarks.machine.measure import Image, Plan
from nmsfree_benchmarks.overhead.measure import measure_network, ratios_of
from nmsfree_benchmarks.overhead.rules import LARGE, NANO, facts_of
from nmsfree_benchmarks.overhead.sources import SIZES, make_scenes
from nmsfree_benchmarks.record.records import Record, Results
from nmsfree_benchmarks.table.eager import Source, use_threads

QUICK_SIZES = ((256, 256), (480, 640), (1080, 1920))
SCENES = 4
PLANS = {  # by group, quick
    ("nano", False): Plan(seconds=75, min_rounds=12, lead_in=2, burst=4),
    ("nano", True): Plan(seconds=10, min_rounds=10, lead_in=1, burst=3),
    ("large", False): Plan(seconds=120, min_rounds=10, lead_in=1, burst=2),
    ("large", True): Plan(seconds=15, min_rounds=10),
}


@dataclass(frozen=True, kw_only=True)
class Options(DeviceOptions):
    """What to run; OpenCV gets as many threads as the engine.

    Attributes:
        large: the published network as well, with stand-in weights where there are no others.
        sizes: (height, width) of source pictures; None takes `SIZES`, fewer for a quick run.
    """

    large: bool = False
    sizes: tuple[tuple[int, int], ...] | None = None

    def plan(self, group: str) -> Plan:
        """Return how long a group, "nano" or "large", is timed."""
        return self.timed(PLANS[group, self.quick])


def run_overhead(options: Options, progress: Progress = silent) -> Results:
    """Measure the networks on pictures of every size.

    Raises:
        InputError: there are no weights, or the work folder cannot be written to.
        CheckpointError, DataError: weights or pictures cannot be read.
        GateError: an exported file differs from its checkpoint.
    """
    started, stamp = time.monotonic(), now()
    use_threads(options.threads)
    environment = describe(options.threads, options.device)
    wanted = {"nano": Wanted(_nano(options))}
    if options.large:
        wanted["large"] = Wanted(_large(options, progress))
    files, refused = export_all(
        list(wanted.values()), options.work, None, lambda d, t: progress("export", d, t)
    )
    if refused:
        raise GateError("; ".join(refused.values()))
    bases = _bases(options, progress)
    gpu = watch_gpu(options.device)
    loads: list[float] = []
    records: list[Record] = []
    options.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pictures-", dir=options.work) as folder:
        sizes = options.sizes or (QUICK_SIZES if options.quick else SIZES)
        scenes = {size: make_scenes(bases, size, Path(folder)) for size in sizes}
        for group, one in wanted.items():
            with LoadMeter() as meter:
                records += measure_network(
                    one,
                    files[one.name],
                    options,
                    bases,
                    scenes,
                    options.plan(group),
                    group == "nano",
                    after_round(gpu, partial(progress, f"rounds {group}")),
                )
            loads += [] if meter.others is None else [meter.others]
    bursts = {one.source.name: options.plan(group).burst for group, one in wanted.items()}
    results = Results(
        "overhead",
        stamp,
        options.command,
        options.quick,
        environment | gpu.to_json(),
        tuple(records),
        max(loads, default=None),
        {"burst": bursts, "opencv_threads": cv2.getNumThreads()},
        tuple(ratios_of(records, bursts)),
        seconds=time.monotonic() - started,
    )
    return replace(results, facts=facts_of(results))


def _nano(options: Options) -> Source:
    sources, skipped = trained_sources(options.weights)
    found = next((source for source in sources if source.name == NANO), None)
    if found is None:
        raise InputError(f"nothing to measure: {skipped[NANO]}")
    return found


def _large(options: Options, progress: Progress) -> Source:
    sources = published_sources(
        options.weights, options.work, lambda done, total: progress("weights", done, total)
    )
    return next(source for source in sources if source.name == LARGE)


def _bases(options: Options, progress: Progress) -> list[Image]:
    dataset = inputs.digits_val(
        options.data, options.work, lambda done, total: progress("digits val", done, total)
    )
    return inputs.pictures(dataset, SCENES)
