"""`nmsfree bench jitter`: does the time of a frame depend on what is in it?

A stream of frames grows from empty to crowded and back, then the same frames come in a shuffled
order. The NMS-free detector and the detector with NMS, at two score floors, take turns on the same
few consecutive frames, again and again: what slows the machine for a while slows all of them. On
the processor every call has a constant piece of work before and after it, which tells the calls
that the machine disturbed (`machine.quiet`).
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from nmsfree_benchmarks.common.on_device import DeviceOptions, after_round, on_gpu, watch_gpu
from nmsfree_benchmarks.common.publishing import now
from nmsfree_benchmarks.common.run_options import Progress, silent
from nmsfree_benchmarks.crowd.models import (
    IOU,
    LOWEST_FLOOR,
    TOP_K,
    Opened,
    export_all,
    nano_jobs,
    open_all,
    use_threads,
    with_floor,
)
from nmsfree_benchmarks.crowd.scenes import TILES
from nmsfree_benchmarks.jitter.facts import facts_of, ratios_of
from nmsfree_benchmarks.jitter.stream import (
    Frame,
    burst_of,
    in_order,
    ramp,
    stream_plan,
    time_stream,
)
from nmsfree_benchmarks.machine.environment import describe
from nmsfree_benchmarks.machine.load import LoadMeter
from nmsfree_benchmarks.machine.measure import Stopwatch, Times
from nmsfree_benchmarks.machine.quiet import probe
from nmsfree_benchmarks.nms.calls import FOUND_ABOVE, PARTS
from nmsfree_benchmarks.record.records import Record, Results
from nmsfree_benchmarks.table.entries import timed_call

FLOORS = (0.05, LOWEST_FLOOR)
ORDERS = ("ramp", "shuffled")
LEVELS = (0, 10, 25, 50, 100, 150, 200, 300, 400, 500)  # objects; up, then down again
QUICK_LEVELS = (0, 50, 100, 300, 500)
PASSES, QUICK_PASSES = 30, 10  # of the whole stream, in each order: 600 calls and 100
SIDE = 512  # px of the networks' input: short calls are told from the machine's moods


@dataclass(frozen=True, kw_only=True)
class Options(DeviceOptions):
    """What to run; rounds follow from frames and passes, not from seconds.

    Attributes:
        passes: of the stream in each order; None takes `PASSES` or `QUICK_PASSES`.
        levels: objects of the frames on the way up; None takes `LEVELS` or `QUICK_LEVELS`.
        tiles: to a side of a frame, 256 pixels each.
        side: of the networks' square input, in pixels.
    """

    passes: int | None = None
    levels: tuple[int, ...] | None = None
    tiles: int = TILES
    side: int = SIDE

    @property
    def chosen_levels(self) -> tuple[int, ...]:
        return self.levels or (QUICK_LEVELS if self.quick else LEVELS)

    @property
    def chosen_passes(self) -> int:
        return self.passes or (QUICK_PASSES if self.quick else PASSES)


def run_jitter(options: Options, progress: Progress = silent) -> Results:
    """Measure everything.

    Raises:
        InputError: the weights are not there.
        GateError: an exported file differs from its checkpoint.
    """
    started, stamp = time.monotonic(), now()
    use_threads(options.threads)
    jobs = nano_jobs(options.weights, options.side, options.device)
    environment = describe(options.threads, options.device)
    with_nms, nms_free = export_all(jobs, options.work, progress)
    frames = ramp(options.chosen_levels, options.tiles, progress)
    watch, gpu = Stopwatch(), watch_gpu(options.device)
    records, loads = [], []
    with ExitStack() as stack:
        files = [nms_free, *(with_floor(with_nms, floor) for floor in FLOORS)]
        opened = open_all(files, jobs[0].training, options, watch, stack)
        found = [_found(one, frames) for one in opened]
        calls = {one.file.name: timed_call(one.detector, watch) for one in opened}
        plan = options.timed(stream_plan(len(frames), options.chosen_passes))
        # A GPU has moods of its own, of which the processor's work says nothing.
        constant = None if on_gpu(options.device) else probe(options.threads)
        for order in ORDERS:
            shown = in_order(frames, order)
            told = after_round(gpu, partial(progress, f"stream: {order}"))
            with LoadMeter() as meter:
                times, probes = time_stream(calls, shown, plan, constant, told)
            loads += [] if meter.others is None else [meter.others]
            records += [
                _record(one, shown, times[one.file.name], probes.get(one.file.name), order, counts)
                for one, counts in zip(opened, found, strict=True)
            ]
    results = Results(
        "jitter",
        stamp,
        options.command,
        options.quick,
        environment | gpu.to_json(),
        tuple(records),
        max(loads, default=None),
        _settings(options, frames),
        seconds=time.monotonic() - started,
    )
    results = replace(results, ratios=tuple(ratios_of(results)))
    return replace(results, facts=facts_of(results))


def _settings(options: Options, frames: Sequence[Frame]) -> dict[str, Any]:
    return {
        "burst": burst_of(len(frames)),
        "frames": len(frames),
        "passes": options.chosen_passes,
        "size": [256 * options.tiles] * 2,
        "input": [options.side] * 2,
        "iou": IOU,
        "top_k": TOP_K,
    }


def _found(opened: Opened, frames: Sequence[Frame]) -> dict[int, float]:
    """Return how many detections score above 0.3, mean over the frames with so many objects."""
    found: dict[int, list[int]] = {}
    for frame in frames:
        count = len(opened.detector(frame.image, threshold=FOUND_ABOVE))
        found.setdefault(frame.objects, []).append(count)
    return {objects: float(np.mean(counts)) for objects, counts in found.items()}


def _record(
    opened: Opened,
    frames: Sequence[Frame],
    times: Times,
    probes: Times | None,
    order: str,
    found: dict[int, float],
) -> Record:
    """Say of every timed call how many objects were in its frame, and how the machine was."""
    objects = [frames[call % len(frames)].objects for call in range(len(times))]
    spec = opened.detector.spec
    iou = None if spec.nms is None else spec.nms.iou
    parameters = {"order": order, "floor": spec.score_floor, "iou": iou}
    most = max(objects)
    figures: dict[str, Any] = {
        "objects": objects,
        "found_empty": found[min(objects)],
        "found_fullest": found[most],
    }
    if probes is not None:
        figures["probes_ns"] = probes.tolist()
    name = f"{order} {spec.name}, floor {spec.score_floor:g}"
    return Record(name, parameters, times, PARTS, figures, opened.subject)
