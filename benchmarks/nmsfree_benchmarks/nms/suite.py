"""`nmsfree bench nms`: what is measured, in which order."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

from nmsfree.spec import NmsSpec
from nmsfree_benchmarks.common.on_device import after_round, watch_gpu
from nmsfree_benchmarks.common.publishing import now
from nmsfree_benchmarks.common.run_options import Progress, silent
from nmsfree_benchmarks.crowd.models import (
    TOP_K,
    export_all,
    nano_jobs,
    unfiltered_job,
    use_threads,
)
from nmsfree_benchmarks.crowd.timed import Timed, slots
from nmsfree_benchmarks.machine.environment import describe
from nmsfree_benchmarks.machine.gpu_watch import GpuWatch
from nmsfree_benchmarks.machine.load import LoadMeter
from nmsfree_benchmarks.machine.measure import Plan, Stopwatch, take_turns
from nmsfree_benchmarks.nms.implementations import choose
from nmsfree_benchmarks.nms.options import LARGE_PLAN, Options
from nmsfree_benchmarks.nms.price import facts_of, ratios_of
from nmsfree_benchmarks.nms.setup import make_alone, make_large, make_scenes, open_contest
from nmsfree_benchmarks.record.records import Record, Results

Runs = Sequence[tuple[str, list[Timed], Plan]]  # what, of it what takes turns, for how long


def run_nms(options: Options, progress: Progress = silent) -> Results:
    """Measure everything.

    Raises:
        InputError: there is no such implementation, or none on this device; or the weights are not
            there.
        GateError: implementations keep different boxes, or an exported file differs from its
            checkpoint.
    """
    started, stamp = time.monotonic(), now()
    skipped = options.left_out()
    names: list[str] = []
    if not skipped:
        names, skipped = choose(options.implementations)
    use_threads(options.threads)
    jobs = nano_jobs(options.weights, 256 * options.tiles, options.device)
    bare = unfiltered_job(jobs[1], options.work)
    jobs += [] if bare is None else [bare]
    environment = describe(options.threads, options.device)
    files = export_all(jobs, options.work, progress)
    scenes = make_scenes(options, progress)
    watch, gpu = Stopwatch(), watch_gpu(options.device)
    with ExitStack() as stack:
        contest = open_contest(files, jobs, options, watch, stack)
        runs: list[tuple[str, list[Timed], Plan]] = []
        if names:
            alone = make_alone(contest, scenes, names, options)
            runs.append(("alone", alone, options.chosen.alone))
        runs.append(("call", contest.timed(scenes), options.chosen.call))
        if options.large:
            runs.append(("large", make_large(options, watch, stack, progress), LARGE_PLAN))
        records, loads = _take_turns(runs, options, progress, gpu)
    results = Results(
        "nms",
        stamp,
        options.command,
        options.quick,
        environment | gpu.to_json(),
        tuple(records),
        max(loads, default=None),
        _settings(options, runs),
        skipped=skipped,
        seconds=time.monotonic() - started,
    )
    results = replace(results, ratios=tuple(ratios_of(results)))
    return replace(results, facts=facts_of(results))


def _take_turns(
    runs: Runs, options: Options, progress: Progress, gpu: GpuWatch
) -> tuple[list[Record], list[float]]:
    """Time each measurement; also returns the cores that others kept busy in each."""
    records, loads = [], []
    for what, made, plan in runs:
        with LoadMeter() as meter:
            times = take_turns(
                {timed.name: timed.call for timed in made},
                slots(options.chosen.scenes),
                options.timed(plan),
                after_round(gpu, partial(progress, f"rounds: {what}")),
            )
        records += [timed.record(times[timed.name]) for timed in made]
        if meter.others is not None:
            loads.append(meter.others)
    return records, loads


def _settings(options: Options, runs: Runs) -> dict[str, Any]:
    base = options.chosen.points[0]
    return {
        "burst": {what: plan.burst for what, _, plan in runs},
        "base": vars(base),
        "scenes": options.chosen.scenes,
        "size": [256 * options.tiles] * 2,
        "top_k": TOP_K,
        "candidates_per_level": NmsSpec().candidates_per_level,
    }
