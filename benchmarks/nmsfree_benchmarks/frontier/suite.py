"""AP against latency: which precision, engine, input size and model are worth their time."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from nmsfree.errors import InputError, NmsfreeError
from nmsfree_benchmarks.common import inputs
from nmsfree_benchmarks.common.engines import ENGINES
from nmsfree_benchmarks.common.exported import Wanted, digits_train, export_all
from nmsfree_benchmarks.common.on_device import after_round
from nmsfree_benchmarks.common.publishing import now
from nmsfree_benchmarks.common.run_options import Progress, RunOptions, silent
from nmsfree_benchmarks.common.sources import trained_sources
from nmsfree_benchmarks.frontier.entries import Opener, calls_of, ratios_of, records_of
from nmsfree_benchmarks.frontier.rules import facts_of
from nmsfree_benchmarks.frontier.variants import SCALES, variants
from nmsfree_benchmarks.machine.environment import describe
from nmsfree_benchmarks.machine.gpu_watch import GpuWatch
from nmsfree_benchmarks.machine.load import LoadMeter
from nmsfree_benchmarks.machine.measure import Plan, Stopwatch, take_turns
from nmsfree_benchmarks.record.records import Results
from nmsfree_benchmarks.table.eager import Source, use_threads

PICTURES, QUICK_AP_IMAGES = 32, 40
QUICK_MODELS, QUICK_SCALES = ("fcos_e2e_nano",), (1.0,)
PLAN = Plan(seconds=90, min_rounds=25, lead_in=2, burst=4)
QUICK_PLAN = Plan(seconds=6, min_rounds=10, lead_in=1, burst=3)


@dataclass(frozen=True, kw_only=True)
class Options(RunOptions):
    """What to run.

    Attributes:
        models: which models; None takes all that there are, the NMS-free one for a quick run.
    """

    models: tuple[str, ...] | None = None

    @property
    def plan(self) -> Plan:
        return self.timed(QUICK_PLAN if self.quick else PLAN)


def run_frontier(options: Options, progress: Progress = silent) -> Results:
    """Export, evaluate and time everything.

    Raises:
        InputError: there is no such model, or nothing to measure.
        CheckpointError, DataError: weights or pictures cannot be read, or do not fit each other.
    """
    started, stamp = time.monotonic(), now()
    use_threads(options.threads)
    environment = describe(options.threads)
    sources, skipped = choose(options)
    files, engines = _export(sources, options, skipped, progress)
    dataset = inputs.digits_val(
        options.data, options.work, lambda done, total: progress("digits val", done, total)
    )
    wanted = variants(sources, engines, QUICK_SCALES if options.quick else SCALES)
    ready = [v for v in wanted if v.wanted.name in files]
    watch = Stopwatch()
    with ExitStack() as stack:
        judged = inputs.first(dataset, QUICK_AP_IMAGES if options.quick else None)
        opener = Opener(judged, options.threads, watch, stack)
        entries = opener.open_all(ready, files, skipped, progress)
        if not entries:
            raise InputError("nothing to measure: " + "; ".join(skipped.values()))
        gpu = GpuWatch(any(ENGINES[entry.variant.engine].gpu is not None for entry in entries))
        with LoadMeter() as meter:
            times = take_turns(
                calls_of(entries, watch),
                inputs.pictures(dataset, PICTURES),
                options.plan,
                after_round(gpu, partial(progress, "rounds")),
            )
        records = [
            record for entry in entries for record in records_of(entry, times, options.threads)
        ]
    results = Results(
        "frontier",
        stamp,
        options.command,
        options.quick,
        environment | gpu.to_json(),
        tuple(records),
        meter.others,
        {"burst": options.plan.burst},
        tuple(ratios_of(records, options.plan.burst)),
        skipped=skipped,
        seconds=time.monotonic() - started,
    )
    return replace(results, facts=facts_of(results))


def choose(options: Options) -> tuple[list[Source], dict[str, str]]:
    """Open the models to measure; also returns which are not there, and why."""
    sources, skipped = trained_sources(options.weights)
    models = options.models or (QUICK_MODELS if options.quick else None)
    known = [source.name for source in sources]
    if models is None:
        return sources, skipped
    for name in models:
        if name not in known:
            raise InputError(
                f"model is {name!r}, the folder of weights has: {', '.join(known) or 'none'}"
            )
    return [source for source in sources if source.name in models], {}


def _export(
    sources: Sequence[Source], options: Options, skipped: dict[str, str], progress: Progress
) -> tuple[dict[str, Path], list[str]]:
    """Return the files by name and the engines that work; says in `skipped` what does not."""
    plain = [Wanted(source) for source in sources]
    ready, refused = export_all(plain, options.work, None, lambda d, t: progress("export", d, t))
    skipped |= refused
    if not ready:
        return {}, []
    engines = working_engines(next(iter(ready.values())), options.threads, skipped)
    calibration = digits_train(
        options.data, options.work, lambda done, total: progress("digits train", done, total)
    )
    planned = variants(sources, engines, QUICK_SCALES if options.quick else SCALES)
    wanted = {v.wanted.name: v.wanted for v in planned if v.wanted.name not in skipped}
    files, refused = export_all(
        list(wanted.values()),
        options.work,
        calibration,
        lambda done, total: progress("export precisions and sizes", done, total),
    )
    skipped |= refused
    return files, engines


def working_engines(file: Path, threads: int, skipped: dict[str, str]) -> list[str]:
    """Try every engine on a file; the reasons of those that do not work go to `skipped`."""
    works = []
    for key, engine in ENGINES.items():
        try:
            engine.open(file, threads).close()
        except NmsfreeError as error:
            skipped[engine.label] = str(error).replace(str(file), file.name)
        else:
            works.append(key)
    return works
