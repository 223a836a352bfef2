"""Images a second over batch and parallel streams, until the device is full."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from nmsfree.detector import Detector
from nmsfree.errors import GateError, InputError
from nmsfree_benchmarks.common import inputs
from nmsfree_benchmarks.common.exported import Wanted, export_all
from nmsfree_benchmarks.common.on_device import (
    CPU,
    DeviceOptions,
    after_round,
    on_gpu,
    open_on,
    watch_gpu,
)
from nmsfree_benchmarks.common.publishing import now
from nmsfree_benchmarks.common.run_options import Progress, silent
from nmsfree_benchmarks.common.sources import trained_sources
from nmsfree_benchmarks.machine.environment import describe
from nmsfree_benchmarks.machine.load import LoadMeter
from nmsfree_benchmarks.machine.measure import Image, Plan, take_turns
from nmsfree_benchmarks.record.records import Results
from nmsfree_benchmarks.table.eager import Source, use_threads
from nmsfree_benchmarks.throughput.rules import facts_of
from nmsfree_benchmarks.throughput.setup import Setup, ratios_of

MODELS = ("fcos_rt_nano", "fcos_e2e_nano")  # with NMS and without
BATCHES, STREAMS = (1, 2, 4, 8, 16), (1, 2, 4, 8)
QUICK_BATCHES, QUICK_STREAMS = (1, 4, 16), (1, 2, 4)
PICTURES = 32
# The pause lets the threads of one engine stop spinning before the next one begins.
PLAN = Plan(seconds=200, min_rounds=10, pause=0.03)
QUICK_PLAN = Plan(seconds=15, min_rounds=10, pause=0.02)
WINDOW, QUICK_WINDOW = 0.5, 0.12  # seconds


@dataclass(frozen=True, kw_only=True)
class Options(DeviceOptions):
    """What to run; each model is measured with one engine thread and with `threads` of them.

    A GPU has no such threads, and each model is measured once.

    Attributes:
        models: which models; None takes `MODELS`.
    """

    models: tuple[str, ...] | None = None

    @property
    def plan(self) -> Plan:
        return self.timed(QUICK_PLAN if self.quick else PLAN)

    @property
    def window(self) -> float:
        """Seconds of one window."""
        return QUICK_WINDOW if self.quick else WINDOW

    @property
    def engine_threads(self) -> list[int]:
        """Every number of engine threads."""
        return [self.threads] if on_gpu(self.device) else sorted({1, self.threads})

    def wanted(self, source: Source, batch: int) -> Wanted:
        """Return the file for a batch: on the processor one for all of them.

        Elsewhere each batch has its own, as it is deployed: compilers and CUDA graphs want shapes
        that are fixed.
        """
        return Wanted(source, batch=None if self.device == CPU else batch)

    def loads(self) -> list[tuple[int, int]]:
        """(batch, streams); while one of them grows the other is 1."""
        batches = QUICK_BATCHES if self.quick else BATCHES
        streams = QUICK_STREAMS if self.quick else STREAMS
        return [(batch, 1) for batch in batches] + [(1, n) for n in streams if n > 1]


def run_throughput(options: Options, progress: Progress = silent) -> Results:
    """Measure every model, with one and with all engine threads, under every load.

    Raises:
        InputError: there is no such model.
        CheckpointError, DataError: weights or pictures cannot be read, or do not fit each other.
        GateError: an exported file differs from its checkpoint.
    """
    started, stamp = time.monotonic(), now()
    use_threads(options.threads)
    environment = describe(options.threads, options.device)
    sources, skipped = choose(options)
    dataset = inputs.digits_val(
        options.data, options.work, lambda done, total: progress("digits val", done, total)
    )
    pictures = inputs.pictures(dataset, PICTURES)
    files = _export(sources, options, progress)
    gpu = watch_gpu(options.device)
    with ExitStack() as stack:
        setups = [s for source in sources for s in _setups(source, files, pictures, options, stack)]
        with LoadMeter() as meter:
            times = take_turns(
                {setup.name: setup for setup in setups},
                pictures,
                options.plan,
                after_round(gpu, partial(progress, "rounds")),
            )
        records = [setup.record(times[setup.name]) for setup in setups]
    results = Results(
        "throughput",
        stamp,
        options.command,
        options.quick,
        environment | gpu.to_json(),
        tuple(records),
        meter.others,
        {"burst": 1, "window_s": options.window},
        tuple(ratios_of(records)),
        skipped=skipped,
        seconds=time.monotonic() - started,
    )
    return replace(results, facts=facts_of(results))


def choose(options: Options) -> tuple[list[Source], dict[str, str]]:
    """Open the models to measure; also returns which are not there, and why."""
    sources, missing = trained_sources(options.weights)
    models = options.models or MODELS
    known = [source.name for source in sources]
    for name in models:
        if name not in known and (options.models is not None or name not in missing):
            raise InputError(
                f"model is {name!r}, the folder of weights has: {', '.join(known) or 'none'}"
            )
    found = [source for source in sources if source.name in models]
    skipped = {name: reason for name, reason in missing.items() if name in models}
    if not found:
        raise InputError("nothing to measure: " + "; ".join(skipped.values()))
    return found, skipped


def _export(sources: Sequence[Source], options: Options, progress: Progress) -> dict[str, Path]:
    """Export the files for all loads; returns them by `Wanted.name`."""
    all_wanted = [options.wanted(s, batch) for s in sources for batch, _ in options.loads()]
    wanted = {one.name: one for one in all_wanted}
    files, refused = export_all(
        list(wanted.values()), options.work, None, partial(progress, "export")
    )
    if refused:
        raise GateError("; ".join(refused.values()))
    return files


def _setups(
    source: Source,
    files: Mapping[str, Path],
    pictures: list[Image],
    options: Options,
    stack: ExitStack,
) -> list[Setup]:
    """Open each file once for each number of engine threads, and put it under its loads."""
    setups = []
    for threads in options.engine_threads:
        opened: dict[Path, Detector] = {}
        for batch, streams in options.loads():
            file = files[options.wanted(source, batch).name]
            if file not in opened:
                backend = open_on(file, options.device, threads)
                opened[file] = stack.enter_context(Detector(backend))
            load = (threads, batch, streams, pictures, options.window)
            setups.append(Setup(source, file, options.device, opened[file], *load))
    return setups
